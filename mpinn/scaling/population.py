"""A population on any number of ranks: its members are dealt to shards, which send each other nothing.

A shard takes the share of a step that its panels have of all work. Replicas of a shard sum one gradient in every step,
or train alone, and each member meets those of other replicas, or mixes with them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from mpinn.comm.channel import NullChannel
from mpinn.commands.member_plan import buffers_of
from mpinn.config import Config
from mpinn.consensus.independent import Independent
from mpinn.consensus.registry import CONSENSUSES
from mpinn.consensus.scores import MEMBER_SCORES
from mpinn.datasets.batches import Batches
from mpinn.datasets.samples import Source
from mpinn.models.model import Model
from mpinn.nn.layout import Layout
from mpinn.nn.packed import Packed, Panel
from mpinn.nn.part import WHOLE, build_part, in_memory
from mpinn.partition.profile import OPERATIONS
from mpinn.population.update import MemberUpdate
from mpinn.scaling.cluster import Cluster
from mpinn.scaling.collectives import Group
from mpinn.scaling.exchange import SCORED, held, validated
from mpinn.scaling.ownership import Vectors, itemsize
from mpinn.scaling.predict import Prediction, Samples, Scaling
from mpinn.scaling.statistics import changes
from mpinn.scaling.traffic import NUMBER, Course, bytes_of, degree, packed, period_of, replica_sent
from mpinn.scaling.work import seconds_of, sizes_of
from mpinn.schedules.members import Members


@dataclass(frozen=True)
class Steps:
    """Seconds of a step of all members on one rank, by the size of the batch; between two, those of the line."""

    seconds: dict[int, float]
    source: str

    def of(self, batch: float) -> float:
        """For so many samples; of more than were measured, by the line through the last two."""
        sizes = sorted(self.seconds)
        times = [self.seconds[size] for size in sizes]
        if batch > sizes[-1] and len(sizes) > 1:
            return times[-1] + (batch - sizes[-1]) * (times[-1] - times[-2]) / (sizes[-1] - sizes[-2])
        return float(np.interp(batch, sizes, times))


def steps_of(
    config: Config, model: Model, population: Packed, source: Source, ops: ModuleType, measured: bool
) -> Steps:
    """Measure steps of the whole population, or count their multiplications."""
    sizes = sizes_of(config.data.batch)
    if not measured:
        work = 3 * sum(panel.cost(prod(model.shape)) for _, panel in population.panels) / OPERATIONS
        return Steps({size: size * work for size in sizes}, f"estimated: {OPERATIONS:.0e} multiply-adds a second")
    dtype, seconds = np.dtype(config.run.dtype), {}
    for size in sizes:
        with in_memory(model.network, model.shape, WHOLE):
            part = build_part("network", model.network, model.shape, dtype, config.optimizer.slots, ops=ops)
        part.initialize(config.run.seed)
        batches = Batches(source, config.run.seed, size, 1, 0, "redealt", dtype, ops=ops)
        schedule = Members(part, config.loss, config.run.seed)
        alone = Independent(NullChannel("alone"))
        update = MemberUpdate(alone, config.optimizer, lambda step: 0.0, config.train.clip, {part.name: part})

        def once(schedule: Members = schedule, batches: Batches = batches, update: MemberUpdate = update) -> None:
            schedule.step(batches.batch(0), update)

        seconds[size] = seconds_of(once, ops)
    where = ops.device_name() or "one core of this machine"
    return Steps(seconds, f"steps of all members measured now on {where}, batches of {', '.join(map(str, sizes))}")


class PopulationPlanner:
    """Predicts as `mpinn.scaling.predict.Planner` does, for R replicas of S shards; see there for the scalings."""

    def __init__(self, config: Config, model: Model, population: Packed, steps: Steps, cluster: Cluster,
                 samples: Samples, scaling: Scaling = "strong", gpu: bool = False):  # fmt: skip
        self.config, self.cluster, self.samples, self.scaling = config, cluster, samples, scaling
        self._population, self._shape, self._steps = population, model.shape, steps
        self._item, self._slots = itemsize(config), len(config.optimizer.slots) + bool(config.model.patience)
        self._sizes = {
            panel.members[0].number: Layout({name: panel.parameters(model.shape)}, config.run.dtype).size
            for name, panel in population.panels
        }
        self._costs = {panel.members[0].number: panel.cost(prod(model.shape)) for _, panel in population.panels}
        self.consensuses: dict[str, Any] = {
            name: config.consensus if name == config.names["consensus"] else options()
            for name, options in CONSENSUSES.items()
        }
        self._gpu = gpu
        self.shares, self.dealt, self.memory = cache(self._shares), cache(self._dealt), cache(self._memory)

    def _dealt(self, shards: int) -> list[tuple[Packed, int]]:
        """The members of each shard, and its parameters."""
        owners, panels = self._population.dealt(shards, self._shape), self._population.panels
        found: list[list[tuple[str, Panel]]] = [[] for _ in range(shards)]
        for name, panel in panels:
            found[owners[panel.members[0].number]].append((name, panel))
        return [(Packed(tuple(own), self._population.outputs), sum(map(self._size, own))) for own in found]

    def _size(self, own: tuple[str, Panel]) -> int:
        return self._sizes[own[1].members[0].number]

    def _shares(self, shards: int) -> tuple[float, Vectors]:
        """The largest part of all work that a shard has, and the most parameters, with the members they are of."""
        found = self.dealt(shards)
        work = [sum(self._costs[panel.members[0].number] for _, panel in own.panels) for own, _ in found]
        most, size = max(found, key=lambda pair: pair[1])
        return max(work) / sum(work), Vectors(size, groups=len(most.members))

    def _memory(self, shards: int, batch: int, consensus: str, replicas: int) -> int:
        """Bytes of the shard that holds most, for so many samples of a replica."""
        features, dtype = prod(self._shape), np.dtype(self.config.run.dtype)
        options, slots = self.consensuses[consensus], len(self.config.optimizer.slots)
        return max(
            ((2 + self._slots) * size + held(consensus, options, [Vectors(size)], replicas, slots)) * self._item
            + buffers_of(own, batch, features, dtype, self._gpu).bytes
            for own, size in self.dealt(shards)
        )

    def refusal(self, shards: int, replicas: int) -> str:
        """Why there is no such grid; nothing if there is one."""
        batch, panels = self.config.data.batch, len(self._population.panels)
        if shards > panels:
            return f"the members make {panels} panels, which are never cut"
        if self.scaling == "strong" and replicas > batch:
            return f"{replicas:,} replicas can't share a batch of {batch:,} samples"
        if self.scaling == "weak" and replicas * batch > self.samples.train:
            return f"{replicas:,} batches of {batch:,} are more than the {self.samples.train:,} training samples"
        return ""

    def grids(self, ranks: int) -> Iterator[tuple[int, int]]:
        """(shards, replicas) that make so many ranks."""
        for shards in range(1, min(ranks, len(self._population.panels)) + 1):
            if ranks % shards == 0 and not self.refusal(shards, ranks // shards):
                yield shards, ranks // shards

    def why_not(self, ranks: int) -> str:
        """Why there is no grid of so many ranks; nothing if there is one."""
        if next(self.grids(ranks), None) is not None:
            return ""
        most = max(n for n in range(1, len(self._population.panels) + 1) if ranks % n == 0)
        return self.refusal(most, ranks // most) + (f", even with {most} shards" if most > 1 else "")

    def predictions(self, ranks: int) -> list[Prediction]:
        """Every grid of so many ranks, its replicas with every consensus that members can have."""
        fit = [name for name, options in self.consensuses.items() if _fits(options)]
        return [
            self.predict(shards, replicas, consensus)
            for shards, replicas in self.grids(ranks)
            for consensus in (fit if replicas > 1 else ["gradients"])
        ]

    def predict(self, shards: int, replicas: int, consensus: str = "gradients") -> Prediction:
        """One of them."""
        batch, options = self.config.data.batch, self.consensuses[consensus]
        whole, local = (batch, -(-batch // replicas)) if self.scaling == "strong" else (batch * replicas, batch)
        share, vectors = self.shares(shards)
        period = period_of(options, -(-self.samples.train // whole))
        course, slots = Course(period, replicas, period), len(self.config.optimizer.slots)
        sent = replica_sent(consensus, options, [vectors], course, self._item, slots)
        if consensus in ("averaging", "outer") and shards > 1 and sent:
            # what the members of all shards had for scores and weights, and how many were left out
            sent["shards", "all_sum"] = 1, 3 * replicas * NUMBER
        exchanged = self._round(consensus, shards, replicas) / period if sent else 0.0
        busy = self._steps.of(local) * share
        here = min(shards * replicas, self.cluster.ranks)
        crowded = here * self._steps.of(local) / shards / min(here, self.cluster.cores)
        seconds = max(busy + exchanged, crowded)
        alone = batch / self._steps.of(batch)
        return Prediction(
            ranks=shards * replicas, replicas=replicas, stages=1, schedule="serial", consensus=consensus,
            batch=whole, local=local, seconds=seconds, computing=self._steps.of(local) / shards,
            exchanging=exchanged, speedup=whole / seconds / alone,
            memory=self.memory(shards, local, consensus, replicas), sent=bytes_of(sent) / period,
            changes=changes("serial", None, 1, consensus, options, replicas, period), shards=shards,
        )  # fmt: skip

    def _round(self, consensus: str, shards: int, replicas: int) -> float:
        """Seconds in which replicas agree once: a sum of gradients, a mix, or a meeting with its scores."""
        share, vectors = self.shares(shards)
        together, nodes = self.cluster.local(shards, replicas)
        group = Group(self.cluster.inside, self.cluster.between, together, nodes, self.cluster.reduction)
        if consensus == "gradients":
            return group.all_reduce(vectors.weights * self._item)
        options, samples, reduction = self.consensuses[consensus], 0, self.cluster.reduction
        if consensus == "gossip":
            count, size = degree(options, replicas), vectors.weights * self._item
            return count * group.neighbour.seconds(size) + (count + 1) * size / reduction
        if options.score == "accuracy_shard":
            samples = self.samples.train // replicas
        elif SCORED[options.score] is validated:
            samples = self.samples.validation
        averaged = getattr(options, "slots", "keep") == "average"
        size = packed(vectors, len(self.config.optimizer.slots) * averaged) * self._item
        # a third of a step is its forward pass
        scored = samples * self._steps.of(self.config.data.batch) / self.config.data.batch / 3 * share
        sums = group.all_gather(NUMBER * vectors.groups) + group.all_reduce(size)
        return scored + sums + 2 * size / reduction


def _fits(options: Any) -> bool:
    """Whether replicas of a population may meet so."""
    return getattr(options, "score", "uniform") in MEMBER_SCORES
