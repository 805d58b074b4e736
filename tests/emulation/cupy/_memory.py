"""Memory of the emulated devices: blocks between guard bytes, poisoned where nobody has written yet."""

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np

from . import _streams
from ._errors import OutOfMemoryError, refuse_in_capture

ALIGNMENT = 512
FRONT, BACK = 512, 2048
"""Guard bytes before and after a block."""
POISON = 0xFF
"""NaN as a number, -1 as an integer."""
LOCK = threading.RLock()
LIVE: dict[int, "weakref.ref[Memory]"] = {}
"""Address -> block."""
PINNED: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()
USED: dict[int, int] = {}
"""Device -> bytes."""


def capacity() -> int:
    """Bytes of each device."""
    return int(os.environ.get("MPINN_EMULATED_MEMORY", str(16 << 30)))


class Memory:
    """A block on a device; ``raw`` keeps its bytes alive, also for a graph that was captured with it."""

    def __init__(self, size: int, pool: "MemoryPool | None" = None):
        self.size = size
        self.pool = pool
        self.device_id = _streams.current_device()
        self.private = pool is not None and pool is not _default_pool
        with LOCK:
            used = USED.get(self.device_id, 0) + size
            if used > capacity():
                raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes ({used - size:,} are in use)")
            USED[self.device_id] = used
        self.raw = np.full(FRONT + ALIGNMENT + size + BACK, POISON, np.uint8)
        self.start = -(-(self.raw.ctypes.data + FRONT) // ALIGNMENT) * ALIGNMENT - self.raw.ctypes.data
        self.ptr = self.raw.ctypes.data + self.start
        with LOCK:
            LIVE[self.ptr] = weakref.ref(self)

    def __del__(self) -> None:
        if hasattr(self, "ptr"):
            with LOCK:
                LIVE.pop(self.ptr, None)
                USED[self.device_id] -= self.size


def _guards(raw: Any, start: int, size: int) -> tuple[Any, Any]:
    return raw[start - FRONT : start], raw[start + size : start + size + BACK]


def guards_whole(raw: Any, start: int, size: int) -> bool:
    """Whether nobody wrote beside a block."""
    return all(bool((guard == POISON).all()) for guard in _guards(raw, start, size))


def mend_guards(raw: Any, start: int, size: int) -> None:
    for guard in _guards(raw, start, size):
        guard.fill(POISON)


def block_at(address: int) -> Memory | None:
    """The live block that an address lies in, or one beyond its end."""
    with LOCK:
        for start, reference in LIVE.items():
            memory = reference()
            if memory is not None and start <= address <= start + memory.size:
                return memory
    return None


def pinned_at(address: int) -> Any:
    """The pinned host memory that an address lies in, or None."""
    with LOCK:
        for start, owner in PINNED.items():
            if start <= address < start + max(1, len(owner)):
                return owner
    return None


class MemoryPointer:
    """A place in a block."""

    def __init__(self, mem: Memory, offset: int):
        self.mem = mem
        self.ptr = mem.ptr + offset

    @property
    def device_id(self) -> int:
        return self.mem.device_id

    def __add__(self, offset: int) -> "MemoryPointer":
        return MemoryPointer(self.mem, self.ptr + offset - self.mem.ptr)

    def __int__(self) -> int:
        return self.ptr

    def copy_from_device(self, src: "MemoryPointer", size: int) -> None:
        self.copy_from_device_async(src, size)

    def copy_from_device_async(self, src: "MemoryPointer", size: int, stream: Any = None) -> None:
        copy_bytes(self.ptr, src.ptr, size, stream or _streams.get_current_stream())

    def copy_from_host(self, mem: int, size: int) -> None:
        refuse_in_capture(_streams.get_current_stream())
        self.copy_from_host_async(mem, size)
        _streams.get_current_stream().synchronize()

    def copy_from_host_async(self, mem: int, size: int, stream: Any = None) -> None:
        copy_bytes(self.ptr, int(getattr(mem, "value", mem)), size, stream or _streams.get_current_stream())

    def copy_to_host(self, mem: int, size: int) -> None:
        refuse_in_capture(_streams.get_current_stream())
        self.copy_to_host_async(mem, size)
        _streams.get_current_stream().synchronize()

    def copy_to_host_async(self, mem: int, size: int, stream: Any = None) -> None:
        copy_bytes(int(getattr(mem, "value", mem)), self.ptr, size, stream or _streams.get_current_stream())

    def memset_async(self, value: int, size: int, stream: Any = None) -> None:
        target = _range(self.ptr, size)
        stream = stream or _streams.get_current_stream()
        stream.submit(lambda: target.fill(value), [self.mem])

    def memset(self, value: int, size: int) -> None:
        self.memset_async(value, size)


def _range(address: int, size: int) -> Any:
    """The bytes of a device from an address on, which stay alive with the result."""
    memory = block_at(address)
    if memory is None or address + size > memory.ptr + memory.size:
        return None
    start = memory.start + address - memory.ptr
    return memory.raw[start : start + size]


def _host_range(address: int, size: int) -> Any:
    owner = pinned_at(address)
    array = (ctypes.c_ubyte * size).from_address(address)
    view = np.frombuffer(array, np.uint8)
    array.owner = owner  # type: ignore[attr-defined]
    return view, owner is not None


def copy_bytes(dst: int, src: int, size: int, stream: Any) -> None:
    """What cudaMemcpyAsync does; memory of the host that isn't pinned is read at once, or waited for."""
    if not size:
        return
    blocks = [memory for memory in (block_at(dst), block_at(src)) if memory is not None]
    target, source, paged = _range(dst, size), _range(src, size), False
    if target is None:
        target, pinned = _host_range(dst, size)
        paged = not pinned
    if source is None:
        source, pinned = _host_range(src, size)
        if not pinned:
            refuse_in_capture(stream)
            source = source.copy()
    if paged:
        refuse_in_capture(stream)
    stream.submit(lambda: np.copyto(target, source), blocks)
    if paged:
        stream.synchronize()


class MemoryPool:
    """Counts what it has given; memory goes back to the host at once."""

    def __init__(self, allocator: Callable[[int], Any] | None = None):
        self._given: weakref.WeakSet[Memory] = weakref.WeakSet()

    def malloc(self, size: int) -> MemoryPointer:
        memory = Memory(size, self)
        self._given.add(memory)
        return MemoryPointer(memory, 0)

    def used_bytes(self) -> int:
        return sum(memory.size for memory in self._given)

    def total_bytes(self) -> int:
        return self.used_bytes()

    def free_bytes(self) -> int:
        return 0

    def n_free_blocks(self) -> int:
        return 0

    def free_all_blocks(self, stream: Any = None) -> None:
        """Nothing is kept."""

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        """No limit but the device's."""

    def get_limit(self) -> int:
        return 0


_default_pool = MemoryPool()
_local = threading.local()
_allocator: Callable[[int], MemoryPointer] = _default_pool.malloc


def get_default_memory_pool() -> MemoryPool:
    return _default_pool


def set_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> None:
    global _allocator
    _allocator = allocator or _default_pool.malloc


def get_allocator() -> Callable[[int], MemoryPointer]:
    return getattr(_local, "allocator", None) or _allocator


@contextmanager
def using_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> Iterator[None]:
    before = getattr(_local, "allocator", None)
    _local.allocator = allocator or _default_pool.malloc
    try:
        yield
    finally:
        _local.allocator = before


def alloc(size: int) -> MemoryPointer:
    return get_allocator()(size)


def alloc_pinned_memory(size: int) -> Any:
    """Memory of the host that copies may use later than the call."""
    kind = type("PinnedMemoryPointer", (ctypes.c_ubyte * size,), {"ptr": property(ctypes.addressof), "__slots__": ()})
    memory = kind()
    ctypes.memset(memory, POISON, size)
    with LOCK:
        PINNED[ctypes.addressof(memory)] = memory
    return memory


class PinnedMemoryPool:
    def malloc(self, size: int) -> Any:
        return alloc_pinned_memory(size)

    def free_all_blocks(self) -> Self:
        return self
