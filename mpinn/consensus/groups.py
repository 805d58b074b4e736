"""What of a part is scored and weighed for itself: a network as a whole, or each member of a population."""

from typing import Any, Protocol

import numpy as np

from mpinn.array.typing import Array
from mpinn.consensus.consensus import Measure
from mpinn.nn.packed import population_of
from mpinn.nn.part import Part
from mpinn.nn.pieces import inside, pieces


class Groups(Protocol):
    """G groups, of which each element of a vector in the layout of the part belongs to one."""

    count: int
    """G."""

    def finite(self, vector: Array) -> Array:
        """Whether all that each group has of a vector is finite: (G,)."""
        ...

    def squares(self, vector: Array) -> Array:
        """The sum of squares of what each group has of a vector: (G,), float64, on the host."""
        ...

    def share(self, vector: Array, factors: Array, out: Array) -> None:
        """Write a vector with each group times its factor, (G,); a factor of 0 masks, since 0 * NaN is NaN."""
        ...

    def copy(self, vector: Array, out: Array | float, chosen: Array) -> None:
        """Write into a vector what the groups that are ``chosen``, (G,) of truth values, have of another, or zero."""
        ...

    def across(self, measure: Measure, values: Array) -> Array:
        """Sums of what is known of a group on each of the ranks that have some of it."""
        ...


class OneGroup:
    """A network, which may be cut across the ranks of its replica."""

    count = 1

    def __init__(self, ops: Any):
        self._ops = ops

    def finite(self, vector: Array) -> Array:
        """See `Groups`."""
        return np.array([self._ops.all_finite(vector)])

    def squares(self, vector: Array) -> Array:
        """See `Groups`."""
        return np.array([float(self._ops.sum_of_squares(vector))])

    def share(self, vector: Array, factors: Array, out: Array) -> None:
        """See `Groups`."""
        if factors[0]:
            np.multiply(vector, float(factors[0]), out=out)
        else:
            out.fill(0)

    def copy(self, vector: Array, out: Array | float, chosen: Array) -> None:
        """See `Groups`."""
        if chosen[0]:
            np.copyto(vector, out)

    def across(self, measure: Measure, values: Array) -> Array:
        """See `Groups`."""
        return measure.across(values)


class MemberGroups:
    """The members of a population that this rank has, in the order of their places: each is on one rank alone."""

    def __init__(self, part: Part):
        population = population_of(part.network)
        if population is None:
            raise TypeError(f"{part.name} is no population")
        self.count = len(population.members)
        self._ops, self._size = part.ops, part.layout.size
        self._pieces = pieces(population, part.layout)
        self._starts, self._stops, self._owners = part.ops.prepared_pieces(*self._pieces)

    def finite(self, vector: Array) -> Array:
        """See `Groups`."""
        return np.isfinite(self.squares(vector))

    def squares(self, vector: Array) -> Array:
        """See `Groups`."""
        squares = self._ops.LIBRARY.zeros(self.count)
        with np.errstate(over="ignore", invalid="ignore"):
            self._ops.packed_squares(vector, self._starts, self._stops, self._owners, squares)
        found: Array = self._ops.on_host(squares)
        return found

    def share(self, vector: Array, factors: Array, out: Array) -> None:
        """See `Groups`."""
        np.copyto(out, vector)
        self.copy(out, 0.0, factors == 0)
        self._ops.packed_scale(out, self._starts, self._stops, self._ops.on_device(factors)[self._owners])

    def copy(self, vector: Array, out: Array | float, chosen: Array) -> None:
        """See `Groups`."""
        if chosen.any():
            np.copyto(vector, out, where=self._ops.on_device(inside(self._pieces, chosen, self._size)))

    def across(self, measure: Measure, values: Array) -> Array:
        """See `Groups`."""
        return values


def groups_of(part: Part) -> Groups:
    """Of a network, or of a population."""
    return OneGroup(part.ops) if population_of(part.network) is None else MemberGroups(part)
