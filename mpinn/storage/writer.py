"""Writing one checkpoint: the file from a queue of blocks, and the steps that make it the newest one."""

import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

import mpinn
from mpinn.array.typing import Array, Shape
from mpinn.config import InputError
from mpinn.storage import schema
from mpinn.storage.contents import Contents, fixed
from mpinn.storage.directory import RunDirectory, partial, sync_directory, sync_file
from mpinn.storage.index import Saved, digest, finite, kept, list_anew, read_index, write_index
from mpinn.storage.sink import Sink


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One block of one data set on its way to the file; ``group`` is the kind, below /replica/<r> for one replica."""

    group: str
    kind: str
    name: str
    shape: Shape
    selection: tuple[slice, ...]
    values: Array
    merged: bool = False


class Queue:
    """Blocks on their way from the main thread to the writer's, at most ``budget`` bytes of them.

    The writer gets the first one when all are here, or no more fit: it keeps Python's lock while it writes a block, and
    training would stand still for longer than it takes to copy what is saved.

    A context of the main thread: if it is left by an exception, the writer gets InterruptedError and gives up.
    """

    def __init__(self, budget: int):
        self._budget = budget
        self._pieces: deque[Piece] = deque()
        self._bytes = 0
        self._full = self._complete = self._interrupted = self._abandoned = False
        self._changed = threading.Condition()

    def put(self, piece: Piece) -> None:
        """Hand over a block, which is not touched afterwards; waits while the queue is full."""
        with self._changed:
            if self._pieces and not self._room(piece):
                self._full = True
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._abandoned or not self._pieces or self._room(piece))
            if not self._abandoned:
                self._pieces.append(piece)
                self._bytes += piece.values.nbytes
                self._changed.notify_all()

    def abandon(self) -> None:
        """The writer has failed: what is put from now on is dropped, and nobody waits."""
        with self._changed:
            self._abandoned = True
            self._pieces.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Piece]:
        while (piece := self._take()) is not None:
            yield piece

    def __enter__(self) -> "Queue":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._complete, self._interrupted = True, kind is not None
            self._changed.notify_all()

    def _room(self, piece: Piece) -> bool:
        return self._bytes + piece.values.nbytes <= self._budget

    def _take(self) -> Piece | None:
        with self._changed:
            self._changed.wait_for(lambda: self._complete or (self._full and self._pieces))
            if self._interrupted:
                raise InterruptedError("the program failed while a checkpoint was being collected")
            if not self._pieces:
                return None
            piece = self._pieces.popleft()
            self._bytes -= piece.values.nbytes
            self._changed.notify_all()
            return piece


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """What rank 0 alone says: attributes of the file, and small values and columns by path."""

    step: int
    epoch: int
    score: float | None
    attributes: Mapping[str, Any]
    values: Mapping[str, Any]

    @classmethod
    def of(cls, snapshot: schema.Snapshot, score: float | None) -> "Header":
        """A copy of the snapshot's small contents, so that training may change its own."""
        attributes = {
            "format": schema.FORMAT,
            "version": schema.VERSION,
            "step": snapshot.step,
            "epoch": snapshot.epoch,
            "seed": snapshot.seed,
            "grid": np.array(snapshot.grid, dtype=np.int64),
            "dtype": snapshot.dtype,
            "program": mpinn.__version__,
        }
        values: dict[str, Any] = {schema.CONFIGURATION: json.dumps(snapshot.configuration, ensure_ascii=False)}
        for table in ("data", "random", "scalars", "history"):
            for name, value in getattr(snapshot, table).items():
                values[f"{table}/{name}"] = value if isinstance(value, str) else np.array(value)
        return cls(snapshot.step, snapshot.epoch, finite(score), attributes, values)


def save(directory: RunDirectory, header: Header, queue: Queue, keep: int) -> None:
    """Write, name and prune; leaves nothing behind if it fails. Runs in the writer's thread."""
    path = directory.checkpoint(header.step)
    temporary = partial(path)
    with ExitStack() as undo:
        undo.callback(temporary.unlink, missing_ok=True)
        undo.callback(queue.abandon)
        write(temporary, header, queue)
        publish(directory, temporary, header, keep)
        undo.pop_all()


def save_aside(path: Path, header: Header, queue: Queue) -> None:
    """Write a file that is no checkpoint of its run: it is not listed, and nothing is pruned."""
    temporary = partial(path)
    with ExitStack() as undo:
        undo.callback(temporary.unlink, missing_ok=True)
        undo.callback(queue.abandon)
        write(temporary, header, queue)
        sync_file(temporary)
        os.replace(temporary, path)
        sync_directory(path.parent)
        undo.pop_all()


def write(path: Path, header: Header, pieces: Iterable[Piece]) -> None:
    """Write a checkpoint file, which may not be on the disk yet; raises OSError if that is full or fails."""
    # A block is a whole chunk: a cache of chunks (rdcc) would only copy it. The format of HDF5 1.10 has checksums on
    # the metadata too, and no index tree for an array of one chunk, which would be larger than most parameters.
    with Sink(path) as sink, h5py.File(sink, "w", rdcc_nbytes=0, libver=("v110", "v110")) as file:
        for name, value in header.attributes.items():
            file.attrs[name] = fixed(value)
        contents = Contents(file)
        for name, value in header.values.items():
            _value(contents, name, value)
        for piece in pieces:
            _write_block(contents, piece)
            sink.check()
    sink.check()


def publish(directory: RunDirectory, temporary: Path, header: Header, keep: int) -> None:
    """Make a complete temporary file the newest checkpoint, so that a crash at any point leaves a good one in use."""
    path = directory.checkpoint(header.step)
    size = temporary.stat().st_size
    entry = Saved(path.name, header.step, header.epoch, header.score, size, _sealed(temporary))
    entries = [*_known(directory), entry]
    # Until the rename, an older file of the same step is still the one on disk, and its entry must still be there.
    write_index(directory, entries)
    os.replace(temporary, path)
    sync_directory(directory.path)
    directory.point_latest(path.name)
    _prune(directory, entries, keep)


def _sealed(path: Path) -> str:
    """The digest of a file that is on the disk now: it is read while it is written out."""
    with ThreadPoolExecutor(1, "sync") as beside:
        synced = beside.submit(sync_file, path)
        found = digest(path)
        synced.result()
    return found


def _prune(directory: RunDirectory, entries: list[Saved], keep: int) -> None:
    current = [
        entry for entry in entries[:-1] if entry.file != entries[-1].file and (directory.path / entry.file).exists()
    ]
    current.append(entries[-1])
    keeping = kept(current, keep)
    for entry in current:
        if entry not in keeping:
            (directory.path / entry.file).unlink(missing_ok=True)
    write_index(directory, keeping)


def _known(directory: RunDirectory) -> list[Saved]:
    """What is listed; where the list is lost or damaged, what is there."""
    try:
        listed = read_index(directory)
    except InputError:  # reported when the run looked for its newest checkpoint
        listed = None
    return list_anew(directory) if listed is None else listed


def _write_block(contents: Contents, piece: Piece) -> None:
    path = f"{piece.group}/{piece.name}"
    if path not in contents:
        contents.create(path, piece.shape, piece.values.dtype)
        contents.mark(piece.group, schema.KIND, piece.kind)
        if piece.merged:
            contents.mark(path, schema.MERGED, True)
    contents.write(path, piece.selection, piece.values)


def _value(contents: Contents, path: str, value: Any) -> None:
    value = fixed(value)
    contents.create(path, value.shape, value.dtype)
    for block in schema.blocks(value.shape, value.dtype.itemsize):
        contents.write(path, block.selection, value[block.selection])
