"""Everything of a part that replicas average, concatenated to one vector, so that one message carries it."""

from itertools import accumulate, pairwise

import numpy as np

from mpinn.array.typing import Array
from mpinn.consensus.groups import Groups, OneGroup, groups_of
from mpinn.consensus.statistics import extra_size, from_terms, to_terms
from mpinn.nn.part import Part


class Packing:
    """The buffer [weights, running statistics, their extra terms, slots if they are averaged] of a part.

    It is kept between meetings. ``statistics`` is the stretch of it that merges the running statistics alone. Weights
    of a mean are those of each of the ``groups``, (G,); running statistics have those of the first one, since a
    population has none.
    """

    def __init__(self, part: Part, slots: bool, groups: Groups | None = None):
        self.groups = groups or groups_of(part)
        self._layout = part.state_layout
        self._vectors = [part.weights, part.state, *(part.remembered.values() if slots else ())]
        sizes = [vector.size for vector in self._vectors]
        sizes.insert(2, extra_size(part.state_layout))
        self.buffer: Array = np.zeros_like(part.weights, shape=sum(sizes))
        self._all_finite = part.ops.all_finite
        self._pieces = [self.buffer[a:b] for a, b in pairwise(accumulate(sizes, initial=0))]
        self.weights, self.state = self._pieces[:2]
        self._extra = self._pieces.pop(2)
        self.statistics = self.buffer[sizes[0] : sum(sizes[:3])]

    def finite(self) -> Array:
        """Whether all that this replica would contribute to each group is finite: (G,)."""
        weights, state, *slots = self._vectors
        good = self.groups.finite(weights) & bool(self._all_finite(state))
        for vector in slots:
            good &= self.groups.finite(vector)
        return good

    def copy(self) -> None:
        """Fill the buffer with the part's own vectors as they are."""
        for piece, vector in zip(self._pieces, self._vectors, strict=True):
            np.copyto(piece, vector)

    def share(self, weights: Array) -> None:
        """Fill the buffer with this replica's term of the weighted sum; a weight of 0 masks."""
        own, state, *slots = self._pieces
        vector, statistics, *remembered = self._vectors
        for into, values in zip((own, *slots), (vector, *remembered), strict=True):
            self.groups.share(values, weights, into)
        if not state.size:
            return
        if weights[0]:
            np.copyto(state, statistics)
            to_terms(self._layout, state, self._extra, float(weights[0]))
        else:
            self.statistics.fill(0)

    def merged(self) -> None:
        """The buffer holds the sum of all terms: turn those of the running statistics into statistics again."""
        from_terms(self._layout, self.state, self._extra)

    def move(self, mix: float, masked: Array) -> None:
        """Move the part's vectors towards the buffer: theta + mix (mean - theta), and all the way where ``masked``."""
        for piece, vector in zip(self._pieces, self._vectors, strict=True):
            if mix == 1:
                np.copyto(vector, piece)
            elif vector.size:
                self.groups.copy(vector, piece, masked)
                np.subtract(piece, vector, out=piece)
                np.multiply(piece, mix, out=piece)
                np.add(vector, piece, out=vector)

    def forget(self, part: Part, masked: Array) -> None:
        """Let the optimizer forget what it remembers of the groups that are ``masked``, (G,).

        The count of its steps is that of all members, on whatever shard they are, and goes on.
        """
        for vector in part.remembered.values():
            self.groups.copy(vector, 0.0, masked)
        if isinstance(self.groups, OneGroup) and masked[0]:
            part.counters.fill(0)
