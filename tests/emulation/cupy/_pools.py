"""Pools of the emulated devices' memory: what is freed is handed out again, as CuPy's pools do."""

import gc
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

from . import _streams
from ._errors import CUDARuntimeError, OutOfMemoryError
from ._memory import ALIGNMENT, LOCK, Memory, MemoryPointer, Segment

Key: TypeAlias = tuple[int, int]
"""A device and a stream."""


class Piece(NamedTuple):
    """Bytes of a segment for one block."""

    segment: Segment
    start: int
    size: int

    def split(self, size: int) -> "tuple[Piece, Piece | None]":
        """The first bytes, and the rest if there is any."""
        if size == self.size:
            return self, None
        return self._replace(size=size), Piece(self.segment, self.start + size, self.size - size)

    def before(self, other: "Piece") -> bool:
        """Whether the other one comes next."""
        return self.segment is other.segment and self.start + self.size == other.start

    def whole(self) -> bool:
        return self.size == self.segment.size


class MemoryPool:
    """Keeps what is freed for the stream that was current when it was given, each device's for itself.

    The smallest piece that is large enough is taken, of several the one that was freed last, and split.
    """

    def __init__(self, allocator: Callable[[int], Any] | None = None):
        self.private = True
        self._allocator = allocator or (lambda size: MemoryPointer(Memory(size), 0))
        self._arenas: dict[Key, list[Piece]] = {}
        """What is free, as it was freed."""
        self._back: deque[tuple[Key, Piece]] = deque()
        """What was freed of late: it may be freed while others are looked through."""
        self._segments: weakref.WeakSet[Segment] = weakref.WeakSet()
        self._used: dict[int, int] = {}
        """Device -> bytes."""

    def malloc(self, size: int) -> MemoryPointer:
        if not size:
            return MemoryPointer(Memory(0), 0)
        rounded = -(-size // ALIGNMENT) * ALIGNMENT
        key = (_streams.current_device(), _streams.get_current_stream().ptr)
        with LOCK:
            self._settle()
            piece = self._taken(key, rounded)
            known = piece is not None
            piece = piece or self._fresh(rounded)
            self._used[key[0]] = self._used.get(key[0], 0) + piece.size
        memory = Memory(size, piece.segment, piece.start)
        memory.private = self.private
        memory.give_back = _Return(self, key, piece)
        if known:
            piece.segment.poison(piece.start, piece.size)
        return MemoryPointer(memory, 0)

    def _taken(self, key: Key, size: int) -> Piece | None:
        arena = self._arenas.setdefault(key, [])
        fitting = [place for place, piece in enumerate(arena) if piece.size >= size]
        if not fitting:
            return None
        piece, rest = arena.pop(min(reversed(fitting), key=lambda place: arena[place].size)).split(size)
        if rest is not None:
            arena.append(rest)
        return piece

    def _fresh(self, size: int) -> Piece:
        for attempt in range(3):
            if attempt == 2:
                gc.collect()
            if attempt:
                self.free_all_blocks()
            try:
                segment = self._allocator(size).mem.segment
            except CUDARuntimeError as error:
                failed = error
            else:
                self._segments.add(segment)
                return Piece(segment, segment.start, segment.size)
        raise OutOfMemoryError(str(failed))

    def give_back(self, key: Key, piece: Piece) -> None:
        self._back.append((key, piece))

    def _settle(self) -> None:
        """Let free pieces that lie side by side be one."""
        while self._back:
            key, piece = self._back.popleft()
            self._used[key[0]] -= piece.size
            arena = self._arenas.setdefault(key, [])
            for other in [other for other in arena if other.before(piece) or piece.before(other)]:
                arena.remove(other)
                first = min(other, piece, key=lambda part: part.start)
                piece = first._replace(size=other.size + piece.size)
            arena.append(piece)

    def used_bytes(self) -> int:
        with LOCK:
            self._settle()
            return self._used.get(_streams.current_device(), 0)

    def total_bytes(self) -> int:
        device = _streams.current_device()
        with LOCK:
            return sum(segment.size for segment in list(self._segments) if segment.device_id == device)

    def free_bytes(self) -> int:
        return self.total_bytes() - self.used_bytes()

    def n_free_blocks(self) -> int:
        with LOCK:
            self._settle()
            return sum(len(arena) for key, arena in self._arenas.items() if key[0] == _streams.current_device())

    def free_all_blocks(self, stream: Any = None) -> None:
        """Give whole segments back to the device."""
        device = _streams.current_device()
        with LOCK:
            self._settle()
            for key, arena in self._arenas.items():
                if key[0] == device and (stream is None or key[1] == stream.ptr):
                    arena[:] = [piece for piece in arena if not piece.whole()]

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        """No limit but the device's."""

    def get_limit(self) -> int:
        return 0


class _Return:
    """Gives a piece back to its pool, if there still is one."""

    def __init__(self, pool: MemoryPool, key: Key, piece: Piece):
        self._pool, self._key, self._piece = weakref.ref(pool), key, piece

    def __call__(self) -> None:
        pool = self._pool()
        if pool is not None:
            pool.give_back(self._key, self._piece)


_default_pool = MemoryPool()
_default_pool.private = False
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
