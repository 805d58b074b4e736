"""What a step takes on any number of ranks, under every schedule and every consensus; nothing is run.

Strong scaling: ``data.batch`` is the global batch, as in training, and replicas share it; no replica is left without a
sample. Weak scaling: ``data.batch`` is that of one replica, and the global batch grows with the replicas.

    throughput   samples of the global batch / seconds of a step
    speed-up     throughput / that of one rank with a batch of data.batch
    efficiency   speed-up / ranks

so that with strong scaling the efficiency is T(1) / (p T(p)). A node with fewer cores than ranks takes at least as long
as all their work on its cores (Brent 1974).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from mpinn.array.precision import activations
from mpinn.config import Config, Deal
from mpinn.consensus.registry import CONSENSUSES
from mpinn.datasets.deal import epoch_steps
from mpinn.models.model import Model
from mpinn.scaling.cluster import Cluster
from mpinn.scaling.depth import Depth, Depths
from mpinn.scaling.exchange import SCORED, Scene, exchange, held, validated
from mpinn.scaling.ownership import itemsize
from mpinn.scaling.statistics import changes
from mpinn.scaling.traffic import Course, Seat, Sent, bytes_of, period_of, replica_sent, stage_sent
from mpinn.scaling.work import Work
from mpinn.schedules.registry import SCHEDULES

Scaling: TypeAlias = Literal["strong", "weak"]
MOST_STAGES = 64


@dataclass(frozen=True)
class Samples:
    """How many there are to learn from, and to validate with."""

    train: int
    validation: int


@dataclass(frozen=True)
class Prediction:
    """One schedule and consensus on a grid: all of one step, seconds and bytes, those of the rank with most.

    ``computing``: of ``seconds``, what a rank computes on average; ``exchanging``: for other replicas; the rest are
    bubbles, uneven stages, their messages, and cores that are shared. ``changes``: in training, nothing if exact.
    """

    ranks: int
    replicas: int
    stages: int
    schedule: str
    consensus: str
    batch: int
    """Global."""
    local: int
    """Of the largest share."""
    seconds: float
    computing: float
    exchanging: float
    speedup: float
    memory: int
    sent: float
    changes: str
    shards: int = 1
    """Of a population."""

    @property
    def throughput(self) -> float:
        """Samples a second."""
        return self.batch / self.seconds

    @property
    def efficiency(self) -> float:
        """Of all ranks."""
        return self.speedup / self.ranks

    @property
    def joined(self) -> bool:
        """Whether the ranks train one model, of the network that is configured."""
        return self.schedule != "parareal" and (self.replicas == 1 or self.consensus != "none")


class Planner:
    """Predicts; see the module. What is found once for a depth is kept, so that 100,000 ranks are no more work."""

    def __init__(self, config: Config, model: Model, work: Work, cluster: Cluster, samples: Samples,
                 scaling: Scaling = "strong"):  # fmt: skip
        self.config, self.cluster, self.samples, self.scaling = config, cluster, samples, scaling
        self.depths = Depths(config, model, work, cluster)
        self.consensuses = {name: self._consensus(name) for name in CONSENSUSES}
        self._item, self._slots = itemsize(config), len(config.optimizer.slots)
        self._activation = activations(config.run.dtype, config.run.bf16).itemsize
        sizes = work.sizes
        whole = work.units(sizes[-1])
        self._forward = sum(cost.forward for cost in whole) / sizes[-1]
        self._single = sum(cost.forward + cost.backward for cost in work.units(1))
        self.alone = self._alone()

    def _consensus(self, name: str) -> Any:
        configured = self.config.names["consensus"] == name
        return self.config.consensus if configured else CONSENSUSES[name]()

    def _alone(self) -> float:
        """Samples a second of one rank."""
        batch = self.config.data.batch
        return batch / self.depths.depth("serial", 1, batch).seconds((), (0.0,))

    def refusal(self, stages: int, replicas: int) -> str:
        """Why there is no such grid; nothing if there is one."""
        batch = self.config.data.batch
        if self.scaling == "strong" and replicas > batch:
            return f"{replicas:,} replicas can't share a batch of {batch:,} samples"
        if self.scaling == "weak" and replicas * batch > self.samples.train:
            return f"{replicas:,} batches of {batch:,} are more than the {self.samples.train:,} training samples"
        if stages > self.depths.most:
            return f"the model can be cut into {self.depths.most} stages"
        if self.config.data.deal == "same" and batch % replicas:
            return f"{batch:,} samples cannot be divided by {replicas:,} replicas, as data.deal = 'same' needs"
        return ""

    def grids(self, ranks: int) -> Iterator[tuple[int, int]]:
        """(stages, replicas) that make so many ranks."""
        for stages in range(1, min(ranks, self.depths.most, MOST_STAGES) + 1):
            if ranks % stages == 0 and not self.refusal(stages, ranks // stages):
                yield stages, ranks // stages

    def why_not(self, ranks: int) -> str:
        """Why there is no grid of so many ranks; nothing if there is one."""
        if next(self.grids(ranks), None) is not None:
            return ""
        most = max(stages for stages in range(1, min(self.depths.most, MOST_STAGES) + 1) if ranks % stages == 0)
        return self.refusal(most, ranks // most) + (f", even with {most} stages" if most > 1 else "")

    def predictions(self, ranks: int) -> list[Prediction]:
        """Every schedule and consensus on every grid of so many ranks."""
        return [
            self.predict(schedule, consensus, stages, replicas)
            for stages, replicas in self.grids(ranks)
            for schedule in SCHEDULES
            if not self.depths.refusal(schedule, stages)
            for consensus in self.consensuses
        ]

    def shares(self, replicas: int) -> tuple[int, int]:
        """The global batch, and the largest share of a replica."""
        batch = self.config.data.batch
        return (batch, -(-batch // replicas)) if self.scaling == "strong" else (batch * replicas, batch)

    def predict(self, schedule: str, consensus: str, stages: int, replicas: int) -> Prediction:
        """One of them, on a grid that is none of those that are refused."""
        batch, local = self.shares(replicas)
        depth = self.depths.depth(schedule, stages, local)
        options, period = self.consensuses[consensus], self.period(consensus, batch, replicas)
        found = exchange(consensus, options, self._scene(depth, replicas, period, batch))
        links, none = self.cluster.links(stages, replicas), (0.0,) * stages
        alone, step = depth.seconds(links, none), depth.seconds(links, found.added)
        step = max(step, self._crowded(depth, stages * replicas))
        meeting = found.meeting
        if replicas > 1 and getattr(options, "in_flight", "") == "drain":
            meeting += depth.options.held(stages) * step
        seconds = step + meeting / period
        return Prediction(
            ranks=stages * replicas, replicas=replicas, stages=stages, schedule=schedule, consensus=consensus,
            batch=batch, local=local, seconds=seconds, computing=depth.busy / stages,
            exchanging=max(0.0, seconds - max(alone, self._crowded(depth, stages * replicas))),
            speedup=batch / seconds / self.alone, memory=self.memory(depth, consensus, replicas, batch),
            sent=self.sent(depth, consensus, replicas, batch, local),
            changes=changes(schedule, depth.options, stages, consensus, options, replicas, period),
        )  # fmt: skip

    def deal(self, consensus: str) -> Deal:
        """How samples are dealt to the replicas: as configured, or as the consensus prefers."""
        found = self.config.data.deal
        return self.consensuses[consensus].deal if found == "auto" else found

    def steps_per_epoch(self, consensus: str, batch: int, replicas: int) -> int:
        """See `mpinn.datasets.deal.epoch_steps`."""
        return epoch_steps(self.samples.train, batch, self.deal(consensus), replicas)

    def period(self, consensus: str, batch: int, replicas: int) -> int:
        """Steps from one meeting to the next."""
        return period_of(self.consensuses[consensus], self.steps_per_epoch(consensus, batch, replicas))

    def _scene(self, depth: Depth, replicas: int, period: int, batch: int) -> Scene:
        return Scene(
            self.cluster, depth, replicas, period, self._slots, self._item, self._forward, self._single,
            self.samples.validation, -(-self.samples.train // replicas),
        )  # fmt: skip

    def _crowded(self, depth: Depth, ranks: int) -> float:
        """Seconds of a step by the work of a node and its cores."""
        here = min(ranks, self.cluster.ranks)
        return here * depth.busy / len(depth.pieces) / min(here, self.cluster.cores)

    def memory(self, depth: Depth, consensus: str, replicas: int, batch: int) -> int:
        """Bytes of the rank that holds most: vectors, the buffers of its passes, and what its consensus keeps.

        Batches of another size have buffers of their own: a smaller one at the end of an epoch, shares that are not
        even, which a replica has in turn, and the validation split where a score is measured with it. Not counted:
        samples, and what a library keeps for itself.
        """
        options, found = self.consensuses[consensus], []
        rest = self.samples.train % batch / batch + (batch % replicas > 0)
        scored = replicas > 1 and SCORED.get(getattr(options, "score", "")) is validated
        evaluation = self.depths.work.rest.evaluation * scored / max(1.0, sum(depth.once))
        for piece, flying, once in zip(depth.pieces, depth.held, depth.once, strict=True):
            vectors = sum((2 + self._slots) * part.weights + part.state for part in piece.parts)
            kept = held(consensus, options, piece.parts, replicas, self._slots)
            found.append((vectors + kept) * self._item + flying + (rest + evaluation) * once)
        return int(max(found))

    def sent(self, depth: Depth, consensus: str, replicas: int, batch: int, local: int) -> float:
        """Bytes that the rank which sends most sends in a step, over a round of its consensus."""
        period, accumulate = self.period(consensus, batch, replicas), getattr(depth.options, "accumulate", 1)
        steps = period * accumulate
        course = Course(steps, replicas, period, accumulate)
        found = []
        for number in range(len(depth.pieces)):
            on, beside = self.to_stages(depth, number, [local]), self.to_replicas(depth, number, consensus, course)
            found.append(bytes_of(on) + bytes_of(beside) / steps)
        return max(found)

    def to_stages(self, depth: Depth, number: int, counts: Sequence[int]) -> Sent:
        """What a stage sends to the others of its replica, for batches of so many samples."""
        layers = max(piece.layers for piece in depth.pieces)
        seat = Seat(depth.pieces[number], number, len(depth.pieces))
        clip = self.config.train.clip > 0
        return stage_sent(depth.schedule, depth.options, seat, counts, self._activation, clip, layers)

    def to_replicas(self, depth: Depth, number: int, consensus: str, course: Course) -> Sent:
        """What a stage sends to the same stage of other replicas."""
        parts, options = depth.pieces[number].parts, self.consensuses[consensus]
        return replica_sent(consensus, options, parts, course, self._item, self._slots)
