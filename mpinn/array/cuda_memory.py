"""Moving arrays between the host and a CUDA device."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import cupy
import cupyx
import numpy as np

from mpinn.array.cuda_kernels import address
from mpinn.array.pool import Pool, RestingPool
from mpinn.array.typing import Array, Dtype, Shape


def on_host(array: Array) -> Array:
    """A copy in host memory, complete on return; an array that is there already is given back as it is."""
    own: Any = array
    return cast("Array", own.get()) if isinstance(own, cupy.ndarray) else array


def on_device(array: Array) -> Array:
    """The values of a host array on the device; an array that is there already is given back as it is."""
    return array if isinstance(array, cupy.ndarray) else cast("Array", cupy.asarray(np.ascontiguousarray(array)))


def contiguous(array: Array) -> Array:
    """The twin of `ops.contiguous`."""
    return cast("Array", cupy.ascontiguousarray(array))


def fill(into: Array, values: Array) -> None:
    """Copy the values of an array, from wherever it is, into another one of its shape."""
    if isinstance(into, cupy.ndarray):
        into[...] = on_device(values)
    elif into is not values:
        into[...] = on_host(values)


def synchronize() -> None:
    """Return when the current stream has done all that was asked of it."""
    cupy.cuda.get_current_stream().synchronize()


def empty_pinned(shape: Shape, dtype: Dtype) -> Array:
    """A host array from which the device copies at full speed, without a stop; its values are arbitrary."""
    found: Any = cupyx.empty_pinned(shape, dtype)
    pinned: Array = found
    return pinned


def stay_on(device: int) -> None:
    """Let this thread work with a device from now on.

    A thread that has chosen none begins to use the first one, and so does one that goes back to it: hundreds of
    megabytes of that device are taken then, or refused where it belongs to another process.
    """
    cupy.cuda.runtime.setDevice(device)


class _AsOf(threading.local):
    event: Any = None


_AS_OF = _AsOf()


@contextmanager
def as_of(event: Any) -> Iterator[None]:
    """Let messages that begin in here wait for what was asked of the device before the event, and for nothing later."""
    before, _AS_OF.event = _AS_OF.event, event
    try:
        yield
    finally:
        _AS_OF.event = before


class CudaInbox:
    """Arrays in which messages arrive while the device works: they wait only for what it was asked to do with them."""

    def __init__(self) -> None:
        self._pool = RestingPool(cupy, lambda: recorded(cupy.cuda.get_current_stream()))

    def room(self, shape: Shape, dtype: Dtype) -> tuple[Array, AbstractContextManager[None]]:
        """An array, and within what a message into it is to begin."""
        array, since = self._pool.rested(shape, dtype)
        return array, as_of(since)


def inbox(pool: Pool) -> CudaInbox:
    """The twin of `ops.inbox`."""
    return CudaInbox()


class CudaMemory:
    """What a transport must know of the device that holds the arrays; see `mpinn.comm.memory.Memory`.

    Copies go on streams of their own, one for each way, as the hardware has an engine for each.
    """

    def __init__(self) -> None:
        self._out = cupy.cuda.Stream(non_blocking=True)
        self._in = cupy.cuda.Stream(non_blocking=True)

    def owns(self, array: Array) -> bool:
        """Whether the array lies on a device."""
        return isinstance(array, cupy.ndarray)

    def now(self, fresh: bool = False) -> Any:
        """The event that comes when the current stream has done all that was asked of it until now, or `as_of` when."""
        return recorded(cupy.cuda.get_current_stream()) if fresh or _AS_OF.event is None else _AS_OF.event

    def pinned_empty(self, shape: Shape, dtype: Dtype) -> Array:
        """A host array that the device copies to and from at full speed."""
        return empty_pinned(shape, dtype)

    def copy_out(self, into: Array, source: Array, after: Sequence[Any]) -> Any:
        """Begin to copy from the device; the event of its end."""
        kind = cupy.cuda.runtime.memcpyDeviceToHost
        return _beside(self._out, into.ctypes.data, address(source), source.nbytes, kind, after)

    def copy_in(self, into: Array, source: Array, after: Sequence[Any]) -> Any:
        """Begin to copy to the device; the event of its end."""
        kind = cupy.cuda.runtime.memcpyHostToDevice
        return _beside(self._in, address(into), source.ctypes.data, source.nbytes, kind, after)

    def follow(self, event: Any) -> None:
        """Let what is asked of the current stream from now on come after the event."""
        if isinstance(event, cupy.cuda.Event):
            cupy.cuda.get_current_stream().wait_event(event)


def _beside(stream: Any, into: int, source: int, size: int, kind: int, after: Sequence[Any]) -> Any:
    for event in after:
        # others have been: they come from the host
        if isinstance(event, cupy.cuda.Event):
            stream.wait_event(event)
    if size:
        _copy(into, source, size, kind, stream)
    return recorded(stream)


def recorded(stream: Any) -> Any:
    """The event that comes when a stream has done all that was asked of it until now."""
    event = cupy.cuda.Event(disable_timing=True)
    event.record(stream)
    return event


def _copy(into: int, source: int, size: int, kind: int, stream: Any) -> None:
    cupy.cuda.runtime.memcpyAsync(into, source, size, kind, stream.ptr)


class Uploads:
    """Copies batches to the device on a stream of its own, while the device still works with those before.

    Slot by slot in turn: what was in a slot is not read any more by what is asked of the device after the next batch
    has been handed over.
    """

    def __init__(self) -> None:
        self._device = cupy.cuda.get_device_id()
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._arrays: dict[int, tuple[Array, ...]] = {}
        self._copied: dict[int, Any] = {}
        self._before: Any = None
        """The computing stream when the batch before this one was handed over."""

    def release(self, slot: int) -> None:
        """Return when the host arrays of a slot may be written: they have been copied. From any thread."""
        if (event := self._copied.get(slot)) is not None:
            stay_on(self._device)
            event.synchronize()

    def send(self, slot: int, hosts: tuple[Array, ...]) -> tuple[Array, ...]:
        """The values of the pinned ``hosts``, on the device for all that is asked of the current stream from now on."""
        stream, computing = self._stream, cupy.cuda.get_current_stream()
        now = recorded(computing)
        if self._before is not None:
            stream.wait_event(self._before)
        self._before = now
        devices = self._twins(slot, hosts)
        for device, host in zip(devices, hosts, strict=True):
            if host.size:
                _copy(address(device), host.ctypes.data, host.nbytes, cupy.cuda.runtime.memcpyHostToDevice, stream)
        copied = self._copied[slot] = recorded(stream)
        computing.wait_event(copied)
        return devices

    def _twins(self, slot: int, hosts: tuple[Array, ...]) -> tuple[Array, ...]:
        known = self._arrays.get(slot, ())
        if not known or any(len(twin) < len(host) for twin, host in zip(known, hosts, strict=True)):
            known = self._arrays[slot] = tuple(cupy.empty(host.shape, host.dtype) for host in hosts)
            # memory that was used before may still be read by the computing stream
            self._stream.wait_event(self._before)
        return tuple(twin[: len(host)] for twin, host in zip(known, hosts, strict=True))


def uploads() -> Uploads:
    """The twin of `ops.uploads`."""
    return Uploads()
