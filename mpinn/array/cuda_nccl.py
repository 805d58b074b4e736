"""Collectives among GPUs by NCCL, on a stream beside the computing; see `mpinn.comm.group`."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

import cupy

from mpinn.array.cuda_kernels import address
from mpinn.array.cuda_memory import CudaMemory, as_of, recorded, stay_on
from mpinn.array.typing import Array


def library() -> ModuleType:
    """CuPy's NCCL; raises ImportError where it finds none."""
    with warnings.catch_warnings():
        # that it could not be loaded is said below
        warnings.simplefilter("ignore")
        from cupy.cuda import nccl
    if not nccl.available:
        raise ImportError("CuPy finds no NCCL: pip install nvidia-nccl-cu12, or -cu13 for CUDA 13")
    module: ModuleType = nccl
    return module


KINDS = {
    "b": "INT8", "B": "UINT8", "i": "INT32", "I": "UINT32", "l": "INT64", "L": "UINT64", "q": "INT64", "Q": "UINT64",
    "f": "FLOAT32", "d": "FLOAT64",
}  # fmt: skip
"""What NCCL calls dtypes."""


class CudaNccl:
    """NCCL on this rank's device. All groups use one stream, so that two of them never wait for each other."""

    def __init__(self, memory: CudaMemory, machine: int):
        self.machine, self.memory = machine, memory
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._device = cupy.cuda.get_device_id()
        self._library = library()
        self._idle: list[Any] = []
        """Events that are not in use."""

    @property
    def version(self) -> str:
        """Of the library, such as 2.27.3."""
        number = self._library.get_version()
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"

    def identity(self) -> bytes:
        """Names a new group."""
        return bytes(self._library.get_unique_id())

    def group(self, identity: bytes, rank: int, size: int) -> "CudaGroup":
        """The group with a name, when all of its ranks are here."""
        return CudaGroup(self._library, self._library.NcclCommunicator(size, identity, rank), self._stream)

    def as_of(self, event: Any) -> AbstractContextManager[None]:
        """See `mpinn.array.cuda_memory.as_of`."""
        return as_of(event)

    def here(self) -> None:
        """This thread may look at events and groups from now on."""
        stay_on(self._device)

    def follow(self, event: Any) -> "CudaWait":
        """Let what is asked of the current stream from now on come after the event, and time how long it waits."""
        begin, end = self._event(), self._event()
        begin.record()
        self.memory.follow(event)
        end.record()
        return CudaWait(begin, end, self._idle)

    def _event(self) -> Any:
        return self._idle.pop() if self._idle else cupy.cuda.Event()


class CudaWait:
    """What a stream waits between two events, which serve again when that is known; see `mpinn.comm.memory.Wait`."""

    __slots__ = ("_begin", "_end", "_idle")

    def __init__(self, begin: Any, end: Any, idle: list[Any]):
        self._begin, self._end, self._idle = begin, end, idle

    @property
    def done(self) -> bool:
        """Whether the device has come to the end."""
        return bool(self._end.done)

    def seconds(self) -> float:
        """From one to the other. To be asked once."""
        self._end.synchronize()
        taken = float(cupy.cuda.get_elapsed_time(self._begin, self._end)) * 1e-3
        self._idle += (self._begin, self._end)
        return taken


class CudaGroup:
    """A communicator of NCCL's; see `mpinn.comm.group.Group`."""

    def __init__(self, library: ModuleType, communicator: Any, stream: Any):
        self._library, self._communicator, self._stream = library, communicator, stream

    def all_sum(self, array: Array, after: Any) -> Any:
        """The sum over the ranks."""
        return self._reduce(array, self._library.NCCL_SUM, after)

    def all_max(self, array: Array, after: Any) -> Any:
        """The elementwise maximum over the ranks."""
        return self._reduce(array, self._library.NCCL_MAX, after)

    def _reduce(self, array: Array, operation: int, after: Any) -> Any:
        place, stream = address(array), self._after(after)
        self._communicator.allReduce(place, place, array.size, self._kind(array), operation, stream)
        return recorded(self._stream)

    def all_gather(self, into: Array, after: Any) -> Any:
        """Row r comes from rank r."""
        own, stream = into[self._communicator.rank_id()], self._after(after)
        kind = self._library.NCCL_UINT8
        self._communicator.allGather(address(own), address(into), own.nbytes, kind, stream)
        return recorded(self._stream)

    def broadcast(self, array: Array, root: int, after: Any) -> Any:
        """The array of rank ``root``."""
        self._broadcast(array, root, self._after(after))
        return recorded(self._stream)

    def collect(self, pieces: Sequence[Array], after: Any) -> Any:
        """Piece k becomes the sum over the ranks on rank k."""
        stream, add, kind = self._after(after), self._library.NCCL_SUM, self._kind(pieces[0])
        with self._at_once():
            for root, piece in enumerate(pieces):
                place = address(piece)
                self._communicator.reduce(place, place, piece.size, kind, add, root, stream)
        return recorded(self._stream)

    def spread(self, pieces: Sequence[Array], after: Any) -> Any:
        """Piece k becomes that of rank k."""
        stream = self._after(after)
        with self._at_once():
            for root, piece in enumerate(pieces):
                self._broadcast(piece, root, stream)
        return recorded(self._stream)

    def _broadcast(self, array: Array, root: int, stream: int) -> None:
        place = address(array)
        self._communicator.broadcast(place, place, array.nbytes, self._library.NCCL_UINT8, root, stream)

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        self._library.groupStart()
        try:
            yield
        finally:
            self._library.groupEnd()

    def _after(self, event: Any) -> int:
        """The stream, whose work from now on comes after the event."""
        self._stream.wait_event(event)
        return int(self._stream.ptr)

    def _kind(self, array: Array) -> int:
        return int(getattr(self._library, f"NCCL_{KINDS[array.dtype.char]}"))

    def failure(self) -> str:
        """What has gone wrong on the device or among the ranks since the group was made; nothing if nothing has."""
        try:
            self._communicator.check_async_error()
        except RuntimeError as error:
            return str(error)
        except KeyError:
            # CuPy knows no name of the state of one that is at work
            return ""
        return ""

    def close(self) -> None:
        """Give it back, when the device has done what it was asked for; NCCL wants all ranks to do so."""
        self._communicator.destroy()

    def abort(self) -> None:
        """Stop what the device is at, and give it back."""
        self._communicator.abort()
