"""Which members of a population stay: freezing them, and moving those that survive."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpinn.array.typing import Array, Shape
from mpinn.comm.channel import Channel
from mpinn.nn.layer import EMPTY
from mpinn.nn.layout import Layout
from mpinn.nn.network import Network
from mpinn.nn.packed import LAYER, Packed
from mpinn.nn.part import BEST, Part, build_part
from mpinn.nn.pieces import inside, pieces
from mpinn.population.measure import MemberMeasure
from mpinn.schedules.members import population_of_part

TAG = 7


@dataclass(eq=False)
class Selection:
    """What becomes of members after an evaluation.

    ``changes`` is called when this rank has other members, or some that learn no more: by their numbers.
    """

    measure: MemberMeasure
    shards: Channel
    everyone: Packed
    """All that are there, on whatever rank."""
    shape: Shape
    rungs: Sequence[int]
    survive: float
    changes: Callable[[Part, frozenset[int]], None] = lambda part, stopped: None

    def __post_init__(self) -> None:
        self.schedule = self.measure.members
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

    def shares(self, merge: Array) -> Callable[[str], Array | None]:
        """From weights of each member, (R, M) by number, those of the elements of a parameter, (R, size)."""
        panels = {
            "/".join((LAYER, name, *entry.path)): (panel, panel.bounds(entry.path[0], entry.path[1], entry.shape))
            for name, panel in self.everyone.panels
            for entry in Layout(panel.parameters(self.shape), np.float32)
        }

        def of(name: str) -> Array | None:
            if name not in panels:
                return None
            panel, bounds = panels[name]
            return np.repeat(merge[:, [member.number for member in panel.members]], np.diff(bounds), axis=1)

        return of

    def _freeze(self) -> None:
        """Members that learn no more are moved by meetings alone; panels of nothing else need not be computed."""
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
        part, improved = self.schedule.part, self.measure.improved
        if BEST not in part.slots or not len(improved):
            return
        population = self.schedule.population
        better = np.isin([member.number for member in population.members], improved)
        own = inside(pieces(population, part.layout), better, part.layout.size)
        np.copyto(part.slots[BEST], self.measure.measured, where=part.ops.on_device(own))

    def _repack(self, alive: Array) -> None:
        """Put the survivors into new panels, deal these to the shards, and send members to where they belong."""
        old, before, shape = self.schedule.part, self.owners, self.shape
        self.everyone = self.everyone.only({*alive.tolist()})
        self.owners = self.everyone.dealt(self.shards.size, shape)
        mine = self.everyone.shard(self.shards.rank, self.shards.size, shape)
        network = Network(((LAYER, mine),))
        part = build_part(old.name, network, shape, old.layout.dtype, tuple(old.slots), ops=old.ops)
        part.counters[:] = old.counters
        remembered = self._remembered(old)
        self.schedule.replace(part)
        self.schedule.share = self.shards.size / len(self.everyone.members)
        self._freeze()
        held = Held(old, remembered), Held(part, self._remembered(part))
        move(self.shards, held, (before, self.owners))

    def _remembered(self, part: Part) -> list[Array]:
        """What the consensus keeps of each element of the part."""
        return [vector for layout, vector in self.measure.consensus.memory.values() if layout is part.layout]


def move(shards: Channel, held: "tuple[Held, Held]", owners: tuple[Mapping[int, int], Mapping[int, int]]) -> None:
    """Fill the second part with the members of the first one, on whatever rank they were.

    ``owners``: the rank of each member by its number, before and after; who has none after is left behind. Members are
    thousands of small pieces of a vector, so all of it is done in host memory.
    """
    (before, after), (old, new) = owners, held
    coming, going = [], []
    for rank in range(shards.size):
        if rank != shards.rank:
            leaving = [n for n, to in after.items() if (before[n], to) == (shards.rank, rank)]
            joining = [n for n, to in after.items() if (before[n], to) == (rank, shards.rank)]
            if leaving:
                going.append(shards.send(old.taken(leaving), rank, TAG))
            if joining:
                vector = new.taken(joining)
                coming.append((joining, vector, shards.receive(vector, rank, TAG)))
    staying = [n for n, to in after.items() if before[n] == to == shards.rank]
    new.put(staying, old.taken(staying))
    for joining, vector, pending in coming:
        pending.wait()
        new.put(joining, vector)
    for pending in going:
        pending.wait()
    new.give_back()


class Held:
    """The weights of the members of a part, and what is remembered of them besides, in host memory.

    ``remembered``: vectors in the layout of the part, beside those of the optimizer.
    """

    def __init__(self, part: Part, remembered: Sequence[Array] = ()):
        self._part = part
        self._given = (part.weights, *part.slots.values(), *remembered)
        self._vectors = [part.ops.on_host(vector) for vector in self._given]

    def taken(self, numbers: Sequence[int]) -> Array:
        """All that there is of some members, one after the other."""
        arrays = [array.reshape(-1) for array in self._values(numbers)]
        return np.concatenate(arrays) if arrays else np.empty(0, self._part.layout.dtype)

    def put(self, numbers: Sequence[int], vector: Array) -> None:
        """Write what `taken` gave."""
        start = 0
        for array in self._values(numbers):
            array[...] = vector[start : start + array.size].reshape(array.shape)
            start += array.size

    def give_back(self) -> None:
        """What was written is in the part."""
        for into, vector in zip(self._given, self._vectors, strict=True):
            self._part.ops.fill(into, vector)

    def _values(self, numbers: Iterable[int]) -> Iterator[Array]:
        wanted, found = {*numbers}, {}
        trees = [self._part.layout.views(vector).get(LAYER, EMPTY) for vector in self._vectors]
        for name, panel in population_of_part(self._part).panels:
            for place, member in enumerate(panel.members):
                if member.number in wanted:
                    found[member.number] = [array for tree in trees for array in panel.arrays(tree[name], place)]
        for number in numbers:
            yield from found[number]
