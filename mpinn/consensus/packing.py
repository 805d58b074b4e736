"""Everything of a part that replicas average, concatenated to one vector, so that one message carries it."""

from itertools import accumulate, pairwise

import numpy as np

from mpinn.array.typing import Array
from mpinn.consensus.statistics import extra_size, from_terms, to_terms
from mpinn.nn.part import Part


class Packing:
    """The buffer [weights, running statistics, their extra terms, slots if they are averaged] of a part.

    It is kept between meetings. ``statistics`` is the stretch of it that merges the running statistics alone.
    """

    def __init__(self, part: Part, slots: bool):
        self._layout = part.state_layout
        self._vectors = [part.weights, part.state, *(part.slots.values() if slots else ())]
        sizes = [vector.size for vector in self._vectors]
        sizes.insert(2, extra_size(part.state_layout))
        self.buffer: Array = np.zeros_like(part.weights, shape=sum(sizes))
        self._all_finite = part.ops.all_finite
        self._pieces = [self.buffer[a:b] for a, b in pairwise(accumulate(sizes, initial=0))]
        self.weights, self.state = self._pieces[:2]
        self._extra = self._pieces.pop(2)
        self.statistics = self.buffer[sizes[0] : sum(sizes[:3])]

    def finite(self) -> bool:
        """Whether all that this replica would contribute is finite."""
        return all(map(self._all_finite, self._vectors))

    def copy(self) -> None:
        """Fill the buffer with the part's own vectors as they are."""
        for piece, vector in zip(self._pieces, self._vectors, strict=True):
            np.copyto(piece, vector)

    def share(self, weight: float) -> None:
        """Fill the buffer with this replica's term of the weighted sum; a weight of 0 masks, since 0 * NaN is NaN."""
        if weight == 0:
            self.buffer.fill(0)
            return
        for piece, vector in zip(self._pieces, self._vectors, strict=True):
            np.multiply(vector, weight, out=piece)
        np.copyto(self.state, self._vectors[1])
        to_terms(self._layout, self.state, self._extra, weight)

    def merged(self) -> None:
        """The buffer holds the sum of all terms: turn those of the running statistics into statistics again."""
        from_terms(self._layout, self.state, self._extra)

    def move(self, mix: float) -> None:
        """Move the part's vectors towards the buffer: theta + mix (mean - theta)."""
        for piece, vector in zip(self._pieces, self._vectors, strict=True):
            if mix == 1:
                np.copyto(vector, piece)
            else:
                np.subtract(piece, vector, out=piece)
                np.multiply(piece, mix, out=piece)
                np.add(vector, piece, out=vector)
