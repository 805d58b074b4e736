"""Sums in the order of the ranks, whatever order an MPI library would choose.

Each rank adds up a slice of the array, to which all others send theirs, and then sends it to all others: as many bytes
as a ring takes, and room for one array more. All of it are messages between two ranks, with a tag of their own for each
sum, so that it does not matter in which order ranks come to the second half of several sums.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.channel import Pending

TAGS = 1 << 14
"""Sums that are told apart; as many may be under way at once."""


class Exchanges(Protocol):
    """The channel of such sums."""

    rank: int
    size: int

    def exchange(
        self, leaving: Iterable[tuple[int, Array]], coming: Iterable[tuple[int, Array]], tag: int, index: int
    ) -> Pending:
        """Send an array to each of some ranks, and receive one from each."""
        ...


class OrderedSum:
    """Replaces ``array`` by its sum over the ranks; the ``number`` of the sum is the same on all of them."""

    def __init__(self, channel: Exchanges, array: Array, number: int, index: int):
        flat, size, rank = array.reshape(-1), channel.size, channel.rank
        bounds = [flat.size * place // size for place in range(size + 1)]
        self._slices = [flat[bounds[place] : bounds[place + 1]] for place in range(size)]
        self._others = [other for other in range(size) if other != rank]
        self._channel, self._index, self._tag = channel, index, 2 * (number % TAGS)
        own = self._slices[rank]
        self._terms = np.empty_like(flat, shape=(size, own.size))
        self._terms[rank] = own
        leaving = [(other, self._slices[other]) for other in self._others]
        coming = [(other, self._terms[other]) for other in self._others]
        self._first = channel.exchange(leaving, coming, self._tag, index)
        self._second: Pending | None = None

    def wait(self) -> None:
        """Block until the array is the sum."""
        self._first.wait()
        self._share().wait()

    def test(self) -> bool:
        """Whether the array is the sum; also moves it along."""
        return self._first.test() and self._share().test()

    def _share(self) -> Pending:
        """All terms of the own slice are here: send their sum to the others, and receive theirs."""
        if self._second is None:
            own = self._slices[self._channel.rank]
            add_rows(self._terms, own)
            leaving = [(other, own) for other in self._others]
            coming = [(other, self._slices[other]) for other in self._others]
            self._second = self._channel.exchange(leaving, coming, self._tag + 1, self._index)
        return self._second


def add_rows(rows: Array, into: Array) -> None:
    """The sum of the rows, in their order; rows: (R, *shape), into: shape."""
    into[...] = rows[0]
    for row in rows[1:]:
        np.add(into, row, out=into)
