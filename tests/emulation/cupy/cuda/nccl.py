"""NCCL between processes, through files: ranks that ask for different things are told so, as NCCL does not.

A communicator is strict about its end: it is not destroyed while work is left, nor by the interpreter, nor by some of
its ranks. A file ``failed`` in its folder is an error that NCCL meets while nobody asks it for anything. Other files
there say how it ended on which rank.

With MPINN_EMULATED_EARLY set the work is done as soon as it may be, while the host goes on: what its stream waits for
comes first, and nothing else.
"""

# ruff: noqa: N802

import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .._memory import block_at
from .._streams import Stream, current_device

available = not os.environ.get("MPINN_EMULATED_WITHOUT_NCCL")
KINDS = ("INT8", "UINT8", "INT32", "UINT32", "INT64", "UINT64", "FLOAT16", "FLOAT32", "FLOAT64")
(
    NCCL_INT8, NCCL_UINT8, NCCL_INT32, NCCL_UINT32, NCCL_INT64, NCCL_UINT64, NCCL_FLOAT16, NCCL_FLOAT32, NCCL_FLOAT64,
) = range(len(KINDS))  # fmt: skip
NCCL_SUM, NCCL_PROD, NCCL_MAX, NCCL_MIN = range(4)
OPERATIONS = {NCCL_SUM: np.add, NCCL_MAX: np.maximum}
PATIENCE = 60.0
_group: list[list[Callable[[], None]]] = []
"""What groups that are not closed have been asked for."""


class NcclError(RuntimeError):
    """What NCCL refuses."""


class _AbortedError(Exception):
    """Another thread has given the communicator up."""


def get_version() -> int:
    return 22703


def get_unique_id() -> bytes:
    return os.urandom(128)


def groupStart() -> None:
    """What is asked for from now on is begun by `groupEnd`, and never without it."""
    _group.append([])


def groupEnd() -> None:
    """See `groupStart`."""
    asked = _group.pop()
    (_group[-1].extend if _group else _begin)(asked)


def _begin(asked: list[Callable[[], None]]) -> None:
    for begin in asked:
        begin()


class NcclCommunicator:
    def __init__(self, ndev: int, commId: bytes, rank: int):
        self._size, self._rank, self._numbers = ndev, rank, itertools.count()
        self._folder = Path(tempfile.gettempdir()) / f"nccl-{commId[:16].hex()}"
        if ndev > 1:
            self._folder.mkdir(exist_ok=True)
        self._device = current_device()
        self._live, self._given, self._done = True, 0, 0
        self._aborted = threading.Event()
        devices = self._exchange("device", bytes([self._device]))
        if len(set(devices)) < ndev:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: duplicate GPU detected")

    def size(self) -> int:
        return self._size

    def rank_id(self) -> int:
        return self._rank

    def check_async_error(self) -> None:
        self._check()
        if (self._folder / "failed").exists():
            raise NcclError("NCCL_ERROR_REMOTE_ERROR: remote process exited or there was a network error")

    def destroy(self) -> None:
        """All ranks come, with nothing left to do."""
        if not self._live:
            return
        self._check()
        if self._done < self._given:
            raise NcclError("the stand-in would wait for work that is not done")
        self._live = False
        self._exchange("destroy", b"")
        self._note("destroyed")

    def abort(self) -> None:
        """From any thread."""
        if not self._live:
            return
        self._check()
        self._live = False
        self._aborted.set()
        self._note("aborted")

    def _note(self, what: str) -> None:
        if self._size > 1:
            (self._folder / f"{what}-{self._rank}").touch()

    def __del__(self, write: Callable[[int, bytes], int] = os.write) -> None:
        """By the interpreter, at a time when the driver may be gone."""
        if getattr(self, "_live", False):
            write(2, b"a communicator of NCCL's was never ended\n")

    def _check(self) -> None:
        if not self._live:
            raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: the communicator is not there any more")
        if current_device() != self._device:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: another device is current")

    def allReduce(self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int) -> None:
        def work(own: Any, into: Any, rows: list[Any]) -> None:
            _add(into, rows, op)

        self._ask(f"allReduce {count} {datatype} {op}", sendbuf, recvbuf, count, count, datatype, stream, work)

    def reduce(self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, root: int, stream: int) -> None:
        def work(own: Any, into: Any, rows: list[Any]) -> None:
            if self._rank == root:
                _add(into, rows, op)

        self._ask(f"reduce {count} {datatype} {op} {root}", sendbuf, recvbuf, count, count, datatype, stream, work)

    def broadcast(self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int) -> None:
        def work(own: Any, into: Any, rows: list[Any]) -> None:
            into[:] = rows[root]

        self._ask(f"broadcast {count} {datatype} {root}", sendbuff, recvbuff, count, count, datatype, stream, work)

    def allGather(self, sendbuf: int, recvbuf: int, count: int, datatype: int, stream: int) -> None:
        def work(own: Any, into: Any, rows: list[Any]) -> None:
            into[:] = np.concatenate(rows)

        length = count * self._size
        self._ask(f"allGather {count} {datatype}", sendbuf, recvbuf, count, length, datatype, stream, work)

    def _ask(
        self, what: str, send: int, receive: int, count: int, length: int, kind: int, stream: int,
        work: Callable[[Any, Any, list[Any]], None],
    ) -> None:  # fmt: skip
        """Let the stream exchange the arrays; NCCL looks at no device but that of its communicator."""
        self._check()
        queue = Stream.known[stream]
        if queue.is_capturing():
            raise NcclError("the stand-in does not capture NCCL's work")
        own, into = _view(send, count, kind), _view(receive, length, kind)
        if send != receive + self._rank * own.nbytes * (length > count) and np.shares_memory(own, into):
            raise NcclError("NCCL_ERROR_INVALID_USAGE: in place means that an array lies where its result is to be")

        exchange = _Exchange(self, what, own, into, work)

        blocks = [block for block in (block_at(send), block_at(receive)) if block is not None]

        def begin() -> None:
            self._given += 1
            queue.submit(exchange, blocks)
            if os.environ.get("MPINN_EMULATED_EARLY"):
                queue.synchronize()

        if _group:
            _group[-1].append(begin)
        else:
            begin()

    def _exchange(self, what: str, own: bytes) -> list[bytes]:
        return self.collect(self.give(what, own), what, own)

    def give(self, what: str, own: bytes) -> int:
        """Show the others what this rank has; the number of the exchange."""
        number = next(self._numbers)
        if self._size > 1:
            name = self._folder / f"{number}-{self._rank}"
            name.with_suffix(".part").write_bytes(what.encode() + b"\n" + own)
            name.with_suffix(".part").rename(name)
        return number

    def all_here(self, number: int) -> bool:
        """Whether `collect` would not wait."""
        names = [self._folder / f"{number}-{rank}" for rank in range(self._size)]
        return self._size == 1 or self._aborted.is_set() or all(name.exists() for name in names)

    def finished(self) -> None:
        self._done += 1

    def collect(self, number: int, what: str, own: bytes) -> list[bytes]:
        """What each rank gives; all must ask for the same thing."""
        if self._size == 1:
            return [own]
        rows = []
        for rank in range(self._size):
            asked, _, row = _awaited(self._folder / f"{number}-{rank}", self._aborted).partition(b"\n")
            if asked.decode() != what:
                raise NcclError(f"rank {self._rank} asks for {what}, rank {rank} for {asked.decode()}")
            rows.append(row)
        # all have begun this one, so all have read the one before
        with suppress(FileNotFoundError):
            (self._folder / f"{number - 1}-{self._rank}").unlink()
        return rows


class _Exchange:
    """Work of a stream that brings the arrays of all ranks together."""

    def __init__(self, communicator: NcclCommunicator, what: str, own: Any, into: Any, work: Callable[..., None]):
        self._communicator, self._what, self._own, self._into, self._work = communicator, what, own, into, work
        self._given: tuple[int, bytes] | None = None

    def _give(self) -> tuple[int, bytes]:
        if self._given is None:
            raw = self._own.tobytes()
            self._given = self._communicator.give(self._what, raw), raw
        return self._given

    def ready(self) -> bool:
        return self._communicator.all_here(self._give()[0])

    def __call__(self) -> None:
        number, raw = self._give()
        # what is aborted comes to an end, with whatever is in the arrays
        with suppress(_AbortedError):
            rows = [np.frombuffer(row, self._own.dtype) for row in self._communicator.collect(number, self._what, raw)]
            self._work(self._own, self._into, rows)
        self._communicator.finished()


def _awaited(path: Path, aborted: threading.Event) -> bytes:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        if aborted.is_set():
            raise _AbortedError
        if time.monotonic() > deadline:
            raise NcclError(f"nobody has asked for {path.name} after {PATIENCE:g} s")
        time.sleep(1e-4)
    return path.read_bytes()


def _add(into: Any, rows: list[Any], operation: int) -> None:
    total = rows[0].copy()
    for row in rows[1:]:
        OPERATIONS[operation](total, row, out=total)
    into[:] = total


def _view(address: int, count: int, kind: int) -> Any:
    """The elements at an address of the device."""
    dtype = np.dtype(KINDS[kind].lower())
    if not count:
        return np.empty(0, dtype)
    block = block_at(address)
    if block is None or address + count * dtype.itemsize > block.ptr + block.size:
        raise NcclError(f"no {count} elements of a device at {address:#x}")
    begin = block.start + address - block.ptr
    return block.raw[begin : begin + count * dtype.itemsize].view(dtype)


__all__ = ["NcclCommunicator", "NcclError", "get_unique_id", "get_version", "groupEnd", "groupStart"]
