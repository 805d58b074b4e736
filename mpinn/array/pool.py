"""Buffers that are kept between steps, so that a steady step allocates no large array."""

import sys
from collections import deque
from collections.abc import Iterator
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
