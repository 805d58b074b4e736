"""Everything of a part that replicas average, concatenated to one vector, so that one message carries it."""

from itertools import pairwise

import numpy as np

from mpinn.array.typing import Array
from mpinn.consensus.statistics import from_moments, to_moments
from mpinn.nn.part import Part


class Packing:
    """The buffer [weights, running statistics, slots if they are averaged] of a part, kept between meetings."""

    def __init__(self, part: Part, slots: bool):
        self._part = part
        self._vectors = [part.weights, part.state, *(part.slots.values() if slots else ())]
        self.buffer: Array = np.zeros(sum(vector.size for vector in self._vectors), part.weights.dtype)
        bounds = np.cumsum([0, *(vector.size for vector in self._vectors)])
        self._pieces = [self.buffer[a:b] for a, b in pairwise(bounds)]
        self.weights, self.state = self._pieces[:2]

    def copy(self) -> None:
        """Fill the buffer with the part's own vectors as they are."""
        for piece, vector in zip(self._pieces, self._vectors, strict=True):
            np.copyto(piece, vector)

    def share(self, weight: float) -> None:
        """Fill the buffer with this replica's term of the weighted sum; a weight of 0 masks, since 0 * NaN is NaN."""
        if weight == 0:
            self.buffer.fill(0)
            return
        self.copy()
        to_moments(self._part.state_layout, self.state)
        np.multiply(self.buffer, weight, out=self.buffer)

    def merged(self) -> None:
        """The buffer holds the sum of all terms: turn second moments to variances again."""
        from_moments(self._part.state_layout, self.state)

    def move(self, mix: float) -> None:
        """Move the part's vectors towards the buffer: theta + mix (mean - theta)."""
        for piece, vector in zip(self._pieces, self._vectors, strict=True):
            if mix == 1:
                np.copyto(vector, piece)
            else:
                np.subtract(piece, vector, out=piece)
                np.multiply(piece, mix, out=piece)
                np.add(vector, piece, out=vector)
