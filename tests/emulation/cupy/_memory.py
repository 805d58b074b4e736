"""Memory of the emulated devices: blocks between guard bytes, poisoned where nobody has written yet."""

import ctypes
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from . import _streams
from ._errors import CUDARuntimeError, refuse_in_capture

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
_numbers = itertools.count()


def capacity() -> int:
    """Bytes of each device."""
    return int(os.environ.get("MPINN_EMULATED_MEMORY", str(16 << 30)))


class Segment:
    """Bytes that the device has given, from which blocks are cut, between guard bytes."""

    def __init__(self, size: int):
        self.size = -(-size // ALIGNMENT) * ALIGNMENT
        self.device_id = _streams.current_device()
        with LOCK:
            used = USED.get(self.device_id, 0) + self.size
            if used > capacity():
                raise CUDARuntimeError("cudaErrorMemoryAllocation", f"{size:,} bytes; {used - self.size:,} are in use")
            USED[self.device_id] = used
        self.raw = np.full(FRONT + ALIGNMENT + self.size + BACK, POISON, np.uint8)
        self.start = -(-(self.raw.ctypes.data + FRONT) // ALIGNMENT) * ALIGNMENT - self.raw.ctypes.data
        self._uses: dict[tuple[int, int, _streams.Queue], int] = {}
        """First byte, bytes and queue -> how many works of the queue have to be done until it does not use them."""

    def __del__(self) -> None:
        if hasattr(self, "raw"):
            with LOCK:
                USED[self.device_id] -= self.size

    def note(self, start: int, size: int, queue: _streams.Queue) -> None:
        """The last work of the queue uses these bytes."""
        with LOCK:
            self._uses[start, size, queue] = queue.given

    def _waiting(self, start: int, size: int) -> dict[_streams.Queue, int]:
        """Queue -> after how many of its works none uses these bytes."""
        with LOCK:
            self._uses = {use: until for use, until in self._uses.items() if use[2].done < until}
            found: dict[_streams.Queue, int] = {}
            for (first, length, queue), until in self._uses.items():
                if first < start + size and start < first + length:
                    found[queue] = max(until, found.get(queue, 0))
            return found

    def poison(self, start: int, size: int) -> None:
        """Poison what the current stream gets, when its queue has done what it has for it.

        Nothing is recorded. With other queues' work on it, it comes after all that the stream waits for by now.
        """
        target, queue = self.raw[start : start + size], _streams.get_current_stream().queue

        def work() -> None:
            target.fill(POISON)

        with _streams.RUNNING:
            waiting = self._waiting(start, size)
            if not waiting:
                work()
            elif waiting.keys() == {queue}:
                queue.follow(waiting[queue], work)
            else:
                queue.add(work)
                self.note(start, size, queue)


class Memory:
    """A block on a device; ``raw`` keeps its bytes alive, also for a graph that was captured with it."""

    private = False
    """Whether it is of a pool of somebody's own."""

    def __init__(self, size: int, segment: Segment | None = None, start: int | None = None):
        self.size = size
        self.segment = segment or Segment(size)
        self.number = next(_numbers)
        self.device_id, self.raw = self.segment.device_id, self.segment.raw
        self.start = self.segment.start if start is None else start
        self.ptr = self.raw.ctypes.data + self.start
        self.give_back: Callable[[], None] = _nothing
        with LOCK:
            LIVE[self.ptr] = weakref.ref(self)

    def __del__(self) -> None:
        if hasattr(self, "ptr"):
            with LOCK:
                LIVE.pop(self.ptr, None)
            self.give_back()

    def note(self, queue: _streams.Queue) -> None:
        """The last work of the queue uses the block."""
        self.segment.note(self.start, self.size, queue)


def _nothing() -> None:
    """A block of no pool: it is the segment's only one."""


class Guards:
    """The bytes around some blocks, without these. Others' may be among them, so they are poisoned only for a while.

    They keep the bytes alive but not the blocks, as a captured graph would.
    """

    def __init__(self, blocks: Sequence[Memory]):
        self._parts = [(place, part) for place, block in enumerate(blocks) for part in _around(block, blocks)]

    def run(self, work: Callable[[], Any]) -> list[int]:
        """Do the work; beside which blocks it wrote. Then all is as it was."""
        before = []
        for _, part in self._parts:
            before.append(part.copy())
            part.fill(POISON)
        try:
            work()
            return [place for place, part in self._parts if not (part == POISON).all()]
        finally:
            while before:
                np.copyto(self._parts[len(before) - 1][1], before.pop())


def _around(block: Memory, others: Sequence[Memory]) -> Iterator[Any]:
    """What is before and after a block, as far as the next of the others."""
    end = block.start + block.size
    beside = [other for other in others if other.raw is block.raw and other.size]
    first = max((other.start + other.size for other in beside if other.start < block.start), default=0)
    last = min((other.start for other in beside if other.start > block.start), default=block.raw.size)
    yield block.raw[max(first, block.start - FRONT) : block.start]
    yield block.raw[end : min(last, end + BACK)]


def block_at(address: int) -> Memory | None:
    """The live block that an address lies in, or one beyond its end."""
    behind = None
    with LOCK:
        # a copy is made at once, while a list of pairs may be interrupted by blocks that are freed
        for start, reference in LIVE.copy().items():
            memory = reference()
            if memory is not None and start <= address <= start + memory.size:
                if address < start + memory.size:
                    return memory
                behind = memory
    return behind


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
