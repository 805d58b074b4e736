"""Buffers that are kept between steps, so that a steady step allocates no large array."""

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any

import numpy as np

from mpinn.array.typing import Array, Shape

SMALL = 1 << 16
"""Arrays below this many bytes come from the allocator of the array library, which serves them from its own lists."""


def _idle_references() -> int:
    """To an array that only its ring has, as `Pool.empty` counts them.

    The ring, the local name, and the argument, which Python 3.14 borrows without counting it.
    """
    ring = deque([np.empty(0)])
    owner = ring[0]
    return sys.getrefcount(owner)


_IDLE_REFERENCES = _idle_references()


class Pool:
    """Hands out uninitialised arrays and takes each one back when nobody but the pool refers to it.

    Python's reference counts are the only book-keeping: a view keeps its owner busy, and so does a pending message or
    the ``saved`` of a pass in flight. Nothing is given back by hand, so nothing can be given back too early.
    """

    def __init__(self, library: Any = np):
        self._library = library
        self._rings: dict[tuple[Shape, np.dtype[Any]], deque[Array]] = {}

    def empty(self, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """An array of ``shape`` and ``dtype`` that nobody else uses; its values are arbitrary."""
        ring = self._rings.get((shape, dtype))
        if ring is None:
            if prod(shape) * dtype.itemsize < SMALL:
                small: Array = self._library.empty(shape, dtype)
                return small
            ring = self._rings[shape, dtype] = deque()
        for _ in range(len(ring)):
            owner = ring[0]
            ring.rotate(-1)
            if sys.getrefcount(owner) == _IDLE_REFERENCES:
                view: Array = owner[...]
                return view
        return self._grow(ring, shape, dtype)

    def _grow(self, ring: deque[Array], shape: Shape, dtype: np.dtype[Any]) -> Array:
        owner: Array = self._library.empty(shape, dtype)
        ring.append(owner)
        return owner[...]

    def __iter__(self) -> Iterator[Array]:
        """The arrays that the pool holds, in use or idle."""
        return (owner for ring in self._rings.values() for owner in ring)

    @property
    def nbytes(self) -> int:
        """Their bytes."""
        return sum(owner.nbytes for owner in self)


class Inbox:
    """Arrays of a pool in which messages arrive."""

    def __init__(self, pool: Pool):
        self._pool = pool

    def room(self, shape: Shape, dtype: np.dtype[Any]) -> tuple[Array, AbstractContextManager[None]]:
        """An array, and within what a message into it is to begin."""
        return self._pool.empty(shape, dtype), nullcontext()


class RestingPool(Pool):
    """A pool of arrays that a device reads behind the program's back; ``now`` is an event, that of what it was asked.

    Whoever writes to an array without the device's knowing has to wait until it does not read it any more. An array
    rests from one call to the next before it is given away, so that this is not the moment of what was asked last.
    """

    def __init__(self, library: Any, now: Callable[[], Any]):
        super().__init__(library)
        self._now = now
        self._since: dict[int, tuple[int, Any]] = {}
        """Idle array -> in which call it was found so, and the event then."""
        self._calls = 0

    def rested(self, shape: Shape, dtype: np.dtype[Any]) -> tuple[Array, Any]:
        """An array of ``shape`` that nobody else uses, and the event since which nobody has asked for it."""
        ring = self._rings.setdefault((shape, dtype), deque())
        self._calls += 1
        now = self._now()
        found, since = None, (self._calls, now)
        for owner in ring:
            if sys.getrefcount(owner) == _IDLE_REFERENCES:
                idle = self._since.setdefault(id(owner), (self._calls, now))
                if idle[0] < since[0]:
                    found, since = owner, idle
        if found is None:
            # the memory of a new one may have been another's
            return self._grow(ring, shape, dtype), now
        del self._since[id(found)]
        return found[...], since[1]
