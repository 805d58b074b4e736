"""Measuring the members of a population, each for itself: those of one replica, and those of the run."""

from collections.abc import Iterable

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel
from mpinn.consensus.consensus import Consensus, Quality
from mpinn.consensus.groups import groups_of
from mpinn.consensus.packing import Packing
from mpinn.datasets.batches import Batch, Batches
from mpinn.nn.part import BEST, Part
from mpinn.population.ranking import Ranking
from mpinn.schedules.members import Members
from mpinn.training.measure import EVALUATION_BATCH, ReplicaMeasure, RunMeasure


class MemberReplicaMeasure(ReplicaMeasure):
    """What a score may ask about the members that this rank has of a replica, which the ``shards`` make."""

    def __init__(self, schedule: Members, batches: Batches, step: int, seed: int, replica: int, shards: Channel):
        super().__init__(schedule, schedule.loss, batches, step, seed, replica)
        self._members = schedule
        self._shards = shards

    def across(self, values: Array) -> Array:
        """The sum of ``values`` over the shards, on all of them; the array is written."""
        self._shards.all_sum(values).wait()
        return values

    def _sums(self, batches: Iterable[Batch]) -> Array:
        return self._members.measure(batches)


class MemberMeasure(RunMeasure):
    """Every member on the validation split, and the best of them on the test split.

    Where replicas differ, they are members' own merged weights that are measured.
    """

    def __init__(
        self,
        schedule: Members,
        batches: Batches,
        control: Channel,
        consensus: Consensus,
        column: Channel,
        ranking: Ranking,
    ):
        super().__init__(schedule, schedule.loss, batches, control, consensus, column)
        self.members = schedule
        self.consensus = consensus
        self.ranking = ranking
        self.improved: Array = np.zeros(0, np.int64)
        self.ended: Array = np.zeros(0, np.int64)
        self.measured: Array = schedule.part.weights
        """The vector that the last validation has measured."""
        self._merging: tuple[Part, Packing] | None = None

    def quality(self, split: str, step: int = 0) -> Quality:
        """Of the best member; called by all ranks. Only ``validation`` measures all of them and decides which is best.

        Members that had patience are measured elsewhere with the best weights that they ever had.
        """
        if split == "validation":
            self.improved, self.ended = self.ranking.take(self._sums(split, None), step)
            return self.ranking.quality(self.ranking.best())
        number = self.ranking.best()
        loss, right, samples = self._sums(split, number)[number].tolist()
        return Quality(loss / samples, right / samples) if samples else Quality(np.nan, np.nan)

    def merge_weights(self) -> Array:
        """The weights (R, M) of the merge, by the number of each member: the consensus's, of finite replicas alone."""
        row, replicas, merge = self._column.rank, self._column.size, self.consensus.merge
        table = np.zeros((2, replicas, len(self.ranking.loss)))
        if replicas == 1 or self.consensus.agreed:
            return np.full(table.shape[1:], 1 / replicas)
        groups, numbers = groups_of(self.members.part), self._numbers()
        table[1, row, numbers] = groups.finite(self.members.part.weights)
        table[0, row, numbers] = merge[row] * table[1, row, numbers]
        self._control.all_sum(table).wait()
        # whom no replica that has a weight has as it should be
        shares, finite = table
        weights = np.where(shares.any(axis=0), shares, np.where(finite.any(axis=0), finite, 1.0))
        merged: Array = weights / weights.sum(axis=0)
        return merged

    def _numbers(self) -> Array:
        return np.array([member.number for member in self.members.population.members], np.int64)

    def _weights(self) -> Array:
        """Those that are measured: this rank's own, or the merged ones."""
        part = self.members.part
        if self._column.size == 1 or self.consensus.agreed:
            return part.weights
        if self._merging is None or self._merging[0] is not part:
            self._merging = part, Packing(part, slots=False)
        packing = self._merging[1]
        packing.share(self.merge_weights()[self._column.rank, self._numbers()])
        self._column.all_sum(packing.buffer).wait()
        return packing.weights

    def _sums(self, split: str, only: int | None) -> Array:
        """(M, 3) for all members of the population, by number."""
        rank, size = self._column.rank, self._column.size
        batches = self._batches.evaluation(split, EVALUATION_BATCH * size, rank, size)
        part, numbers = self.members.part, self._numbers()
        everyone = np.zeros((len(self.ranking.loss), 3))
        vector = part.slots[BEST] if only is not None and BEST in part.slots else self._weights()
        if only is None:
            self.measured = vector
            everyone[numbers] = self.members.measure(batches, weights=vector)
        elif only in numbers:
            panels = [n for n, panel in self.members.population.panels if only in {m.number for m in panel.members}]
            everyone[numbers] = self.members.measure(batches, panels, vector)
        self._control.all_sum(everyone).wait()
        return everyone
