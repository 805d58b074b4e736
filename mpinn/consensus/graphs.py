"""Graphs of replicas, and the weights with which neighbours mix."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from math import isqrt
from typing import Literal, TypeAlias

GraphName: TypeAlias = Literal["ring", "torus", "complete"]
Neighbours: TypeAlias = tuple[int, ...]


def ring(replicas: int, replica: int) -> Neighbours:
    """The replicas before and after, which are the same one of two."""
    return _others(replica, (replica - 1) % replicas, (replica + 1) % replicas)


def torus(replicas: int, replica: int) -> Neighbours:
    """Those above, below, left and right in a table of `sides`, whose opposite borders meet."""
    rows, columns = sides(replicas)
    row, column = divmod(replica, columns)
    beside = (row * columns + (column + step) % columns for step in (-1, 1))
    above = ((row + step) % rows * columns + column for step in (-1, 1))
    return _others(replica, *beside, *above)


def complete(replicas: int, replica: int) -> Neighbours:
    """All others."""
    return _others(replica, *range(replicas))


def sides(replicas: int) -> tuple[int, int]:
    """Rows and columns of the most nearly square table of that many replicas; a prime number gives one row: a ring."""
    rows = next(rows for rows in range(isqrt(replicas), 0, -1) if replicas % rows == 0)
    return rows, replicas // rows


GRAPHS: Mapping[GraphName, Callable[[int, int], Neighbours]] = {"ring": ring, "torus": torus, "complete": complete}
"""By name: (number of replicas, replica) -> its neighbours in rising order."""


def metropolis(neighbours: Callable[[int], Neighbours], replica: int) -> list[tuple[int, float]]:
    """The row of ``replica`` in the matrix of mixing: (r, a_sr) for itself and its neighbours, in rising order.

    a_sr = 1 / (1 + max(deg s, deg r)) for neighbours and a_ss = 1 - sum of these (Xiao, Boyd & Lall 2006): symmetric,
    and doubly stochastic on any graph, so that mixing preserves the mean. Formed as fractions and rounded once.
    """
    around = neighbours(replica)
    shares = {r: Fraction(1, 1 + max(len(around), len(neighbours(r)))) for r in around}
    shares[replica] = 1 - sum(shares.values(), Fraction())
    return [(r, float(shares[r])) for r in sorted(shares)]


def _others(replica: int, *found: int) -> Neighbours:
    return tuple(sorted({*found} - {replica}))
