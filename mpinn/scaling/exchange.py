"""What it takes replicas to agree: seconds in a step, bytes that are held, and what it changes in training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpinn.scaling.cluster import Cluster
from mpinn.scaling.collectives import Group
from mpinn.scaling.depth import Depth
from mpinn.scaling.ownership import Vectors
from mpinn.scaling.traffic import NUMBER, degree, packed


@dataclass(frozen=True)
class Scene:
    """R replicas of a depth on a cluster.

    ``forward``: seconds of a sample's forward pass on one rank in large batches, ``single`` those of both passes of one
    sample alone; ``validation`` and ``shard``: samples that a score may be measured with; ``item``: bytes of a number.
    """

    cluster: Cluster
    depth: Depth
    replicas: int
    period: int
    slots: int
    item: int
    forward: float
    single: float
    validation: int
    shard: int

    @property
    def stages(self) -> int:
        """K."""
        return len(self.depth.pieces)

    @property
    def group(self) -> Group:
        """The ranks with the same stage."""
        cluster = self.cluster
        together, nodes = cluster.local(self.stages, self.replicas)
        return Group(cluster.inside, cluster.between, together, nodes, cluster.reduction)

    @property
    def share(self) -> float:
        """Of a forward pass that goes through all stages at once, what the slowest one takes."""
        passes = self.depth.passes
        return max(passes) / max(sum(passes), 1e-300)


@dataclass(frozen=True)
class Seconds:
    """In every step, on each stage; and at a meeting, on all of them."""

    added: tuple[float, ...]
    meeting: float = 0.0


def _gradients(options: Any, scene: Scene) -> Seconds:
    """Sums of buckets; with overlap the last one is left, and what the backward pass was too short for."""
    group, found = scene.group, []
    bucket = max(1, int(options.bucket * 2**20) // scene.item)
    for piece, busy in zip(scene.depth.pieces, scene.depth.passes, strict=True):
        seconds = rest = 0.0
        for part in piece.parts:
            calls = max(1, -(-part.weights // bucket))
            each = group.all_reduce(part.weights * scene.item / calls)
            seconds, rest = seconds + calls * each, each
        if scene.cluster.overlap:
            # two thirds of both passes are the backward one, which the last bucket has to wait for
            seconds = max(rest, seconds - busy * 2 / 3)
        found.append(seconds / getattr(scene.depth.options, "accumulate", 1))
    return Seconds(tuple(found))


def _mixes(options: Any, scene: Scene) -> Seconds:
    """The weights to every neighbour, and their sum, with every update or with every one that ends a period."""
    count, link = degree(options, scene.replicas), scene.group.neighbour
    often = max(scene.period, getattr(scene.depth.options, "accumulate", 1))
    found = []
    for piece in scene.depth.pieces:
        sizes = [part.weights * scene.item for part in piece.parts]
        seconds = sum(count * link.seconds(size) + (count + 1) * size / scene.cluster.reduction for size in sizes)
        found.append(seconds / often)
    return Seconds(tuple(found))


def _meetings(options: Any, scene: Scene) -> Seconds:
    """The score, the gather, the sum; a pipeline that is emptied before takes as many steps as it has in flight."""
    group, reduction = scene.group, scene.cluster.reduction
    averaged = scene.slots if getattr(options, "slots", "keep") == "average" else 0
    longest = 0.0
    for piece in scene.depth.pieces:
        seconds = group.all_gather(NUMBER)
        for part in piece.parts:
            size = packed(part, averaged) * scene.item
            seconds += group.broadcast(size) if options.score == "best" else group.all_reduce(size)
            seconds += 2 * size / reduction
            if options.score == "fisher":
                seconds += group.all_reduce(part.weights * scene.item)
        longest = max(longest, seconds)
    return Seconds((0.0,) * scene.stages, longest + SCORED[options.score](options, scene))


def _none(options: Any, scene: Scene) -> Seconds:
    return Seconds((0.0,) * scene.stages)


EXCHANGES: Mapping[str, Callable[[Any, Scene], Seconds]] = {
    "averaging": _meetings,
    "gossip": _mixes,
    "gradients": _gradients,
    "none": _none,
    "outer": _meetings,
}
"""By consensus: see `Seconds`."""


def _free(options: Any, scene: Scene) -> float:
    return 0.0


def validated(options: Any, scene: Scene) -> float:
    """All of the validation split, by every replica."""
    return scene.validation * scene.forward * scene.share


def _shard(options: Any, scene: Scene) -> float:
    return scene.shard * scene.forward * scene.share


def _fisher(options: Any, scene: Scene) -> float:
    """Sample by sample through all stages: a prediction, and a gradient."""
    return float(options.fisher_samples * (scene.single + scene.forward))


SCORED: Mapping[str, Callable[[Any, Scene], float]] = {
    "uniform": _free,
    "accuracy": validated,
    "accuracy_shard": _shard,
    "inverse_loss": validated,
    "boltzmann": validated,
    "inverse_error": validated,
    "inverse_gradient_norm": _free,
    "samples": _free,
    "fisher": _fisher,
    "best": validated,
}
"""Seconds that a score takes to measure."""


def exchange(consensus: str, options: Any, scene: Scene) -> Seconds:
    """What a consensus takes; one replica has nobody to agree with."""
    return EXCHANGES[consensus](options, scene) if scene.replicas > 1 else _none(options, scene)


def _packing(options: Any, parts: Sequence[Vectors], replicas: int, slots: int) -> int:
    averaged = slots if getattr(options, "slots", "keep") == "average" else 0
    fisher = options.score == "fisher"
    return sum(packed(part, averaged) + fisher * part.weights for part in parts)


def _outer(options: Any, parts: Sequence[Vectors], replicas: int, slots: int) -> int:
    return _packing(options, parts, replicas, slots) + 2 * sum(part.weights for part in parts)


def _received(options: Any, parts: Sequence[Vectors], replicas: int, slots: int) -> int:
    return degree(options, replicas) * sum(part.weights for part in parts)


def _nothing(options: Any, parts: Sequence[Vectors], replicas: int, slots: int) -> int:
    return 0


HELD: Mapping[str, Callable[[Any, Sequence[Vectors], int, int], int]] = {
    "averaging": _packing,
    "gossip": _received,
    "gradients": _nothing,
    "none": _nothing,
    "outer": _outer,
}
"""(options, parts, replicas, slots) -> numbers that a rank holds for a consensus."""


def held(consensus: str, options: Any, parts: Sequence[Vectors], replicas: int, slots: int) -> int:
    """Numbers that a rank holds besides what it trains."""
    return HELD[consensus](options, parts, replicas, slots) if replicas > 1 else 0
