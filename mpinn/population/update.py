"""The update of a population: every member has a rate, a weight decay and a norm of its own."""

from collections.abc import Callable, Mapping
from math import inf

import numpy as np

from mpinn.array.steps import Segments
from mpinn.array.typing import Array
from mpinn.consensus.consensus import Consensus
from mpinn.nn.optimizer import Optimizer
from mpinn.nn.part import Part
from mpinn.nn.pieces import pieces
from mpinn.schedules.members import population_of_part
from mpinn.trace import SILENT, Trace
from mpinn.training.update import OptimizerUpdate


class MemberUpdate(OptimizerUpdate):
    """As `OptimizerUpdate`, member by member; those that are ``stopped`` stay as they are."""

    def __init__(
        self,
        consensus: Consensus,
        optimizer: Optimizer,
        rate: Callable[[int], float],
        clip: float,
        parts: Mapping[str, Part],
        trace: Trace = SILENT,
    ):
        super().__init__(consensus, optimizer, rate, clip, parts, trace=trace)
        for part in parts.values():
            self.prepare(part)

    def prepare(self, part: Part, stopped: frozenset[int] = frozenset()) -> None:
        """Take up a part with other members, or with some ``stopped`` ones, by their numbers."""
        self._pieces = pieces(population_of_part(part), part.layout)
        self._owned = part.ops.prepared_pieces(*self._pieces)
        members = population_of_part(part).members
        if stopped or any((member.rate, member.weight_decay) != (None, None) for member in members):
            self._segments[part.name] = part.ops.prepared(self._own(part, stopped))
        else:
            self._segments[part.name] = part.ops.prepared(self._optimizer.segments(part.layout))

    def _own(self, part: Part, stopped: frozenset[int]) -> Segments:
        """A segment for each array of each member."""
        members, optimizer = population_of_part(part).members, self._optimizer
        starts = np.array([entry.start for entry in part.layout])
        decaying = np.array([optimizer.decays(entry) for entry in part.layout])
        found = []
        for start, stop, place in self._pieces.T.tolist():
            member = members[place]
            decay = optimizer.weight_decay if member.weight_decay is None else member.weight_decay
            factor = 1.0 if member.rate is None else member.rate / optimizer.rate
            decays = decaying[np.searchsorted(starts, start, "right") - 1]
            found.append((start, stop, decay if decays else 0.0, 0.0 if member.number in stopped else factor))
        return Segments.of(found)

    def _scale(self, part: Part, samples: int) -> float:
        """Each member's gradient becomes no longer than the limit."""
        scale = 1 / samples
        if self._clip:
            starts, stops, owners = self._owned
            squares = part.ops.LIBRARY.zeros(len(population_of_part(part).members))
            part.ops.packed_squares(part.grads, starts, stops, owners, squares)
            norms: Array = np.sqrt(squares) * scale
            long = (norms > self._clip) & (norms < inf)
            factors = np.where(long, self._clip / np.where(long, norms, 1), 1.0)
            part.ops.packed_scale(part.grads, starts, stops, factors[owners])
        return scale
