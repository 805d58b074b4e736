"""Which members of a population stay: measuring them on all ranks, freezing them, and moving those that survive."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpinn.array.typing import Array, Shape
from mpinn.comm.channel import Channel
from mpinn.consensus.consensus import Consensus, Quality
from mpinn.datasets.batches import Batches
from mpinn.measure import EVALUATION_BATCH, RunMeasure
from mpinn.nn.layer import EMPTY, Tree
from mpinn.nn.network import Network
from mpinn.nn.packed import LAYER, Packed
from mpinn.nn.part import Part, build_part
from mpinn.ranking import Ranking
from mpinn.schedules.members import Members, population_of_part

BEST = "best"
"""The slot with the best weights of members that have patience."""
TAG = 7


class MemberMeasure(RunMeasure):
    """Every member on the validation split, and the best of them on the test split."""

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
        self._members = schedule
        self.ranking = ranking
        self.improved: Array = np.zeros(0, np.int64)
        self.ended: Array = np.zeros(0, np.int64)

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

    def _best(self) -> Tree:
        part = self._members.part
        return part.layout.views(part.slots[BEST]) if BEST in part.slots else part.weight_views

    def _sums(self, split: str, only: int | None) -> Array:
        """(M, 3) for all members of the population, by number."""
        rank, size = self._column.rank, self._column.size
        batches = self._batches.evaluation(split, EVALUATION_BATCH * size, rank, size)
        population = self._members.population
        numbers = np.array([member.number for member in population.members], np.int64)
        everyone = np.zeros((len(self.ranking.loss), 3))
        if only is None:
            everyone[numbers] = self._members.measure(batches)
        elif only in numbers:
            panels = [name for name, panel in population.panels if only in {m.number for m in panel.members}]
            everyone[numbers] = self._members.measure(batches, panels, self._best())
        self._control.all_sum(everyone).wait()
        return everyone


@dataclass(eq=False)
class Selection:
    """What becomes of members after an evaluation.

    ``changes`` is called when this rank has other members, or some that learn no more: by their numbers.
    """

    schedule: Members
    measure: MemberMeasure
    shards: Channel
    everyone: Packed
    """All that are there, on whatever rank."""
    shape: Shape
    rungs: Sequence[int]
    survive: float
    changes: Callable[[Part, frozenset[int]], None] = lambda part, stopped: None

    def __post_init__(self) -> None:
        self.owners = self.everyone.dealt(self.shards.size, self.shape)

    def resume(self, scalars: Mapping[str, Array | float]) -> None:
        """Go on with the ranking of a checkpoint, if there is one."""
        if scalars:
            self.measure.ranking.restore(scalars)
            self._freeze()

    def facts(self) -> dict[str, Array]:
        """The ranking, for a checkpoint, and where each member is: the number of its panel, and its place there."""
        panels, places = np.full((2, len(self.measure.ranking.loss)), -1, np.int64)
        for _, panel in self.everyone.panels:
            numbers = [member.number for member in panel.members]
            panels[numbers], places[numbers] = numbers[0], np.arange(len(numbers))
        return {**self.measure.ranking.arrays(), "member_panel": panels, "member_place": places}

    def _freeze(self) -> None:
        """Members that learn no more keep their weights; panels of nothing else need not be computed."""
        stopped = frozenset(np.flatnonzero(self.measure.ranking.stopped).tolist())
        panels = self.schedule.population.panels
        self.schedule.idle = frozenset(n for n, panel in panels if all(m.number in stopped for m in panel.members))
        self.changes(self.schedule.part, stopped)

    def after(self, step: int, last: bool) -> list[str]:
        """Called by all ranks after an evaluation; returns sentences for the log."""
        ranking, said = self.measure.ranking, []
        self._keep_best()
        if len(self.measure.ended):
            self._freeze()
            said.append(f"step {step}: {len(self.measure.ended):,} members learn no more")
        if step in self.rungs and not last:
            leaving = ranking.worst(self.survive)
            if len(leaving):
                ranking.left[leaving] = step
                self._repack(ranking.alive)
                said.append(f"step {step}: {len(leaving):,} members left, {len(ranking.alive):,} go on")
        return said

    def _keep_best(self) -> None:
        part = self.schedule.part
        if BEST not in part.slots:
            return
        improved = {*self.measure.improved.tolist()}
        kept, now = (part.layout.views(vector).get(LAYER, EMPTY) for vector in (part.slots[BEST], part.weights))
        for name, panel in self.schedule.population.panels:
            for place, member in enumerate(panel.members):
                if member.number in improved:
                    for best, own in zip(panel.arrays(kept[name], place), panel.arrays(now[name], place), strict=True):
                        best[...] = own

    def _repack(self, alive: Array) -> None:
        """Put the survivors into new panels, deal these to the shards, and send members to where they belong."""
        old, before, shape = self.schedule.part, self.owners, self.shape
        self.everyone = self.everyone.only({*alive.tolist()})
        self.owners = self.everyone.dealt(self.shards.size, shape)
        mine = self.everyone.shard(self.shards.rank, self.shards.size, shape)
        network = Network(((LAYER, mine),))
        part = build_part(old.name, network, shape, old.layout.dtype, tuple(old.slots), ops=old.ops)
        part.counters[:] = old.counters
        move(self.shards, (old, part), (before, self.owners))
        self.schedule.replace(part)
        self.schedule.share = self.shards.size / len(self.everyone.members)
        self._freeze()


def move(shards: Channel, parts: tuple[Part, Part], owners: tuple[Mapping[int, int], Mapping[int, int]]) -> None:
    """Fill the second part with the members of the first one, on whatever rank they were.

    ``owners``: the rank of each member by its number, before and after; who has none after is left behind.
    """
    (old, new), (before, after) = parts, owners
    coming, going = [], []
    for rank in range(shards.size):
        if rank != shards.rank:
            leaving = [n for n, to in after.items() if (before[n], to) == (shards.rank, rank)]
            joining = [n for n, to in after.items() if (before[n], to) == (rank, shards.rank)]
            if leaving:
                going.append(shards.send(_taken(old, leaving), rank, TAG))
            if joining:
                vector = _taken(new, joining)
                coming.append((joining, vector, shards.receive(vector, rank, TAG)))
    staying = [n for n, to in after.items() if before[n] == to == shards.rank]
    _put(new, staying, _taken(old, staying))
    for joining, vector, pending in coming:
        pending.wait()
        _put(new, joining, vector)
    for pending in going:
        pending.wait()


def _values(part: Part, numbers: Iterable[int]) -> Iterator[Array]:
    """Every array of these members: their weights, and what the optimizer remembers of them."""
    wanted = {*numbers}
    trees = [part.layout.views(vector).get(LAYER, EMPTY) for vector in (part.weights, *part.slots.values())]
    found = {}
    for name, panel in population_of_part(part).panels:
        for place, member in enumerate(panel.members):
            if member.number in wanted:
                found[member.number] = [array for tree in trees for array in panel.arrays(tree[name], place)]
    for number in numbers:
        yield from found[number]


def _taken(part: Part, numbers: Sequence[int]) -> Array:
    arrays = [array.reshape(-1) for array in _values(part, numbers)]
    return np.concatenate(arrays) if arrays else np.empty(0, part.layout.dtype)


def _put(part: Part, numbers: Sequence[int], vector: Array) -> None:
    start = 0
    for array in _values(part, numbers):
        array[...] = vector[start : start + array.size].reshape(array.shape)
        start += array.size
