"""CUDA's runtime, as CuPy shows it."""

# ruff: noqa: N802, N816

from typing import Any

from .._errors import CUDARuntimeError
from .._memory import USED, capacity, copy_bytes
from .._streams import Event, Stream, current_device, device_count, set_device, synchronize_device

is_hip = False
memcpyHostToHost, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice, memcpyDefault = range(5)
streamCaptureModeGlobal, streamCaptureModeThreadLocal, streamCaptureModeRelaxed = range(3)
streamDefault, streamNonBlocking = range(2)
eventDefault, eventBlockingSync, eventDisableTiming = range(3)


def getDeviceCount() -> int:
    if not device_count():
        raise CUDARuntimeError("cudaErrorNoDevice")
    return device_count()


def getDevice() -> int:
    return current_device()


def setDevice(device: int) -> None:
    set_device(device)


def getDeviceProperties(device: int) -> dict[str, Any]:
    if not 0 <= device < getDeviceCount():
        raise CUDARuntimeError("cudaErrorInvalidDevice")
    return {
        "name": b"Emulated GPU",
        "uuid": bytes([device] * 16),
        "totalGlobalMem": capacity(),
        "sharedMemPerBlock": 48 << 10,
        "sharedMemPerBlockOptin": 227 << 10,
        "sharedMemPerMultiprocessor": 228 << 10,
        "regsPerBlock": 65536,
        "warpSize": 32,
        "maxThreadsPerBlock": 1024,
        "maxThreadsPerMultiProcessor": 2048,
        "maxThreadsDim": (1024, 1024, 64),
        "maxGridSize": ((1 << 31) - 1, 65535, 65535),
        "clockRate": 1_000_000,
        "memoryClockRate": 1_000_000,
        "memoryBusWidth": 4096,
        "l2CacheSize": 50 << 20,
        "major": 9,
        "minor": 0,
        "multiProcessorCount": 4,
        "concurrentKernels": 1,
        "pciBusID": device + 1,
        "pciDeviceID": 0,
        "pciDomainID": 0,
        "integrated": 0,
        "unifiedAddressing": 1,
    }


def driverGetVersion() -> int:
    return 12080


def runtimeGetVersion() -> int:
    return 12080


def memGetInfo() -> tuple[int, int]:
    return capacity() - USED.get(current_device(), 0), capacity()


def deviceSynchronize() -> None:
    synchronize_device()


def deviceCanAccessPeer(device: int, peer: int) -> int:
    return 0


def _stream(pointer: int) -> Stream:
    stream = Stream.known.get(pointer)
    if stream is None:
        raise CUDARuntimeError("cudaErrorInvalidValue", f"no stream {pointer:#x}")
    return stream


def streamSynchronize(stream: int) -> None:
    _stream(stream).synchronize()


def streamIsCapturing(stream: int) -> bool:
    return _stream(stream).is_capturing()


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:
    """Copy bytes, where ``kind`` is right."""
    _check_kind(dst, src, size, kind)
    copy_bytes(dst, src, size, _stream(stream))


def memcpy(dst: int, src: int, size: int, kind: int) -> None:
    """Copy bytes, and wait."""
    memcpyAsync(dst, src, size, kind, 0)
    _stream(0).synchronize()


def memsetAsync(ptr: int, value: int, size: int, stream: int) -> None:
    from .._memory import MemoryPointer, block_at

    memory = block_at(ptr)
    if memory is None:
        raise CUDARuntimeError("cudaErrorInvalidValue")
    MemoryPointer(memory, ptr - memory.ptr).memset_async(value, size, _stream(stream))


def _check_kind(dst: int, src: int, size: int, kind: int) -> None:
    from .._memory import block_at

    for address, ours in ((dst, kind in (1, 3)), (src, kind in (2, 3))):
        memory = block_at(address)
        if kind != memcpyDefault and (memory is not None) != ours:
            raise CUDARuntimeError("cudaErrorInvalidValue", f"copy of kind {kind} with address {address:#x}")
        if memory is not None and address + size > memory.ptr + memory.size:
            raise CUDARuntimeError("cudaErrorInvalidValue", f"copy of {size} bytes beyond a block of {memory.size}")


__all__ = ["CUDARuntimeError", "Event", "Stream"]
