"""Where each named parameter of a model stands in its flat vector."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpinn.array.typing import Array, Shape, Shapes

ALIGNMENT = 256
"""Every parameter starts on a multiple of this many bytes: whole cache lines, and what a GPU loads at once."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter: its path in the tree of layers, its shape, and its slice of the vector."""

    path: tuple[str, ...]
    shape: Shape
    start: int

    @property
    def name(self) -> str:
        """The path as HDF5 writes it: ``hidden1/dense/weight``."""
        return "/".join(self.path)

    @property
    def size(self) -> int:
        """Number of elements, padding excluded."""
        return prod(self.shape)

    @property
    def slice(self) -> slice:
        """The elements of the parameter in the flat vector."""
        return slice(self.start, self.start + self.size)


class Layout:
    """Name -> slice for a tree of shapes, in layer order.

    Padding between entries is zero, stays zero, and is never counted or stored.
    ``size`` is the length of the vector with padding, ``count`` the number of elements without it.
    """

    def __init__(self, shapes: Shapes, dtype: DTypeLike):
        self.dtype = np.dtype(dtype)
        step = ALIGNMENT // self.dtype.itemsize
        entries, start = [], 0
        for path, shape in _leaves(shapes):
            entry = Entry(path, shape, start)
            entries.append(entry)
            start += -(-entry.size // step) * step
        self.entries: tuple[Entry, ...] = tuple(entries)
        self.size = start
        self.count = sum(entry.size for entry in entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def views(self, vector: Array) -> dict[str, Any]:
        """The tree of the layout with a view into ``vector``, of shape (size,), at every leaf."""
        if vector.shape != (self.size,):
            raise ValueError(f"the layout needs a vector of {self.size} elements, got shape {vector.shape}")
        tree: dict[str, Any] = {}
        for entry in self.entries:
            node = tree
            for name in entry.path[:-1]:
                node = node.setdefault(name, {})
            node[entry.path[-1]] = vector[entry.slice].reshape(entry.shape)
        return tree

    def span(self, names: tuple[str, ...]) -> slice:
        """The contiguous slice, padding included, that holds every entry below the top-level ``names``."""
        starts = [entry.start for entry in self.entries if entry.path[0] in names]
        if not starts:
            return slice(0, 0)
        after = [entry.start for entry in self.entries if entry.start > starts[-1]]
        return slice(starts[0], after[0] if after else self.size)


def _leaves(shapes: Shapes, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Shape]]:
    for name, value in shapes.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value
