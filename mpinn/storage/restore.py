"""Finding the newest good checkpoint, and taking a rank's state from it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mpinn.array import ops as plain
from mpinn.array.typing import Array
from mpinn.config import InputError
from mpinn.storage.directory import RunDirectory
from mpinn.storage.index import Saved, best_of, digest, read_index
from mpinn.storage.reader import Checkpoint
from mpinn.storage.schema import VectorSpec

Log = Callable[[str], None]


def newest(directory: str | Path, log: Log) -> Path | None:
    """The newest checkpoint that is not damaged, or None if none was ever saved. For one rank, which tells the others.

    Digests are compared before HDF5 opens a file. What is passed over is reported by name and reason. Raises InputError
    if there are files, but none is good.
    """
    run = RunDirectory(directory)
    listed = _listed(run, log)
    for entry in reversed(listed):
        reason = _damage(run.path / entry.file, entry)
        if reason is None:
            return run.path / entry.file
        log(f"{run.path / entry.file}: {reason}; trying the checkpoint before it")
    names = {entry.file for entry in listed}
    for path in run.checkpoints():
        if path.name not in names and _readable(path, log):
            return path
    if found := run.checkpoints():
        raise InputError(str(run.path), f"none of its {len(found)} checkpoints can be used")
    return None


def checkpoint_of(path: Path, want_best: bool, log: Log) -> Path:
    """The file itself, or the best or newest good checkpoint of a run directory; raises InputError."""
    if path.is_file():
        if want_best:
            raise InputError(str(path), "the best is one of a run directory's checkpoints, and this is one file")
        return path
    if not path.exists():
        raise InputError(str(path), "there is no such file or directory")
    if want_best:
        entry = best_of(read_index(RunDirectory(path)) or [])
        found = None if entry is None else path / entry.file
    else:
        found = newest(path, log)
    if found is None:
        raise InputError(str(path), f"there is no {'scored ' if want_best else ''}checkpoint in this directory")
    return found


def check_digest(path: Path) -> None:
    """Raise InputError if a file is not what the checkpoints.json beside it says; without an entry nothing is known."""
    file = path.resolve()
    for entry in _listed(RunDirectory(file.parent), lambda line: None):
        reason = _damage(file, entry) if entry.file == file.name else None
        if reason is not None:
            raise InputError(str(path), reason)


def restore(
    path: str | Path,
    vectors: Sequence[VectorSpec],
    grid: tuple[int, int, int],
    replica: int | None,
    *,
    whole: bool = True,
    fill: Callable[[Array, Array], None] = plain.fill,
) -> list[str]:
    """Fill the vectors of this rank from a file, exactly or not at all; returns sentences on what had to be merged.

    On as many replicas as were saved each takes its own values; on another number, or if ``replica`` is None, all take
    the merged ones. ``whole`` says that each layout covers its part of the model: what the file has beyond it is an
    error. ``fill`` copies values from the host to where a vector is. No messages.
    """
    with Checkpoint(path) as checkpoint:
        for spec in vectors:
            checkpoint.check(spec.layout, spec.kind, whole=whole)
        own = replica if grid[0] == checkpoint.grid[0] else None
        read = [np.zeros(spec.layout.size, spec.layout.dtype) for spec in vectors]
        for spec, values in zip(vectors, read, strict=True):
            checkpoint.fill(spec.layout, values, spec.kind, own, whole=whole)
        merged = [] if own is not None else _merged(checkpoint, vectors, grid)
    for spec, values in zip(vectors, read, strict=True):
        fill(spec.vector, values)
    return merged


def _merged(checkpoint: Checkpoint, vectors: Sequence[VectorSpec], grid: tuple[int, int, int]) -> list[str]:
    kinds = [spec.kind for spec in vectors if any(entry.merged for entry in checkpoint.parameters(spec.kind))]
    if not kinds:
        return []
    step, was, now = checkpoint.step, checkpoint.grid[0], grid[0]
    who = f"each of the {now}" if now > 1 else "the one there is now"
    return [f"{kind}: the {was} replicas of step {step} differ; {who} takes their mean" for kind in kinds]


def _listed(run: RunDirectory, log: Log) -> list[Saved]:
    try:
        listed = read_index(run)
    except InputError as error:
        log(f"{error}; the checkpoints beside it are not verified by their digests")
        return []
    return listed or []


def _damage(path: Path, entry: Saved) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            return f"damaged: {size} bytes instead of {entry.bytes}"
        return None if digest(path) == entry.sha256 else "damaged: its digest is not that of checkpoints.json"
    except FileNotFoundError:
        return "listed in checkpoints.json, but missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _readable(path: Path, log: Log) -> bool:
    try:
        with Checkpoint(path) as checkpoint:
            checkpoint.verify()
            _ = checkpoint.configuration, checkpoint.data, checkpoint.scalars
    except InputError as error:
        log(f"{error}; trying the checkpoint before it")
        return False
    log(f"{path}: not listed in checkpoints.json: its checksums are right, its digest is unknown")
    return True
