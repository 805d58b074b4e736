"""Serial oracles: parallel methods restated as plain loops over all replicas in one process.

They use layers, losses, batches and optimizers of the program, but state anew what replicas do with one another.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import isfinite, nan, sqrt

import numpy as np

from mpinn.array.typing import Array
from mpinn.config import Deal
from mpinn.datasets.batches import Batch, Batches
from mpinn.datasets.samples import Source, Split
from mpinn.models.mlp import MLP
from mpinn.nn.layer import Pass
from mpinn.nn.loss import CrossEntropy, Loss
from mpinn.nn.optimizer import SGD, Optimizer
from mpinn.nn.part import Part, build_part

Disturb = Callable[[int, int, Part], None]
"""Called before a step with (step, replica, part): what a test does to a replica."""


def clusters(n: int = 50, features: int = 6, classes: int = 3, noise: float = 1.0) -> Source:
    """Classes around random centres: n samples to train on, 60 to validate with."""
    rng = np.random.default_rng(n)
    centres = rng.normal(size=(classes, features))

    def split(size: int) -> Split:
        target = rng.integers(0, classes, size)
        return Split(centres[target] + noise * rng.normal(size=(size, features)), target)

    return Source({"train": split(n), "validation": split(60), "test": split(10)}, np.zeros(1), np.ones(1), classes)


TWO_LAYERS = MLP(widths=(9, 7), activation="tanh")
HEAVY_BALL = SGD(rate=0.1)
CROSS_ENTROPY = CrossEntropy()


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is trained, on which data, and how. The labels of ``poisoned`` replicas are drawn at random."""

    source: Source = field(default_factory=clusters)
    model: MLP = TWO_LAYERS
    optimizer: Optimizer = HEAVY_BALL
    loss: Loss = CROSS_ENTROPY
    batch: int = 12
    deal: Deal = "redealt"
    seed: int = 3
    clip: float = 0.0
    dtype: str = "float64"
    poisoned: frozenset[int] = frozenset()

    def part(self) -> Part:
        """The model with its initial weights."""
        model = self.model.build(self.source.sample_shape, self.source.classes)
        part = build_part("network", model.network, model.shape, np.dtype(self.dtype), self.optimizer.slots)
        part.initialize(self.seed)
        return part

    def batches(self, replicas: int, replica: int, held: int = 0) -> Batches:
        """The samples that a replica sees, batches that stay valid for ``held`` more than the program needs."""
        source = self.source
        if replica in self.poisoned:
            train = source.splits["train"]
            labels = np.random.default_rng(replica).integers(0, source.classes, train.size)
            source = replace(source, splits={**source.splits, "train": Split(train.x, labels)})
        return Batches(source, self.seed, self.batch, replicas, replica, self.deal, self.dtype, held=held)

    def rate(self, step: int) -> float:
        """The learning rate, which depends on the step so that a wrong step shows."""
        return self.optimizer.rate * 0.98**step


# One replica


def write_gradient(problem: Problem, part: Part, batch: Batch) -> None:
    """The gradient of the loss summed over the batch, into ``part.grads``."""
    part.grads.fill(0)
    if batch.count:
        context = Pass(part.pool, seed=problem.seed, batch=batch.index, rows=batch.rows)
        _backpropagate(problem, part, batch.x, batch.target, context)


def _backpropagate(problem: Problem, part: Part, x: Array, target: Array, context: Pass) -> None:
    y, saved = part.network.forward(part.weight_views, part.state_views, x, context)
    _, dy = problem.loss(y, target, context)
    _, finish = part.network.backward(part.weight_views, saved, dy, context)
    finish(part.grad_views)


def apply(problem: Problem, part: Part, step: int, samples: int) -> bool:
    """Divide, clip, and step the optimizer; whether the gradient was clipped.

    The norm is that of all that ``part`` has: squares are added up in each layer, and then in the order of the layers.
    """
    scale = 1 / samples
    layers = [part.grads[part.layout.span((name,))] for name in part.weight_views]
    norm = sqrt(sum(float(np.dot(layer, layer)) for layer in layers)) * scale
    clipped = 0 < problem.clip < norm
    if clipped:
        scale *= problem.clip / norm
    segments = problem.optimizer.segments(part.layout)
    problem.optimizer.apply(part, segments, problem.rate(step), scale)
    return clipped


def serial(problem: Problem, steps: int, replicas: int = 1, replica: int = 0) -> Part:
    """One replica that trains alone on its share; the only one: plain SGD on whole batches."""
    part, batches = problem.part(), problem.batches(replicas, replica)
    for step in range(steps):
        batch = batches.batch(step)
        write_gradient(problem, part, batch)
        if batch.count:
            apply(problem, part, step, batch.count)
    return part


def predict(part: Part, x: Array) -> Array:
    """The model's output for x, with running statistics."""
    return part.network.forward(part.weight_views, part.state_views, x, Pass(part.pool, training=False))[0]


def judge(problem: Problem, part: Part, x: Array, target: Array) -> tuple[float, float]:
    """Mean loss and share of right predictions."""
    y = predict(part, x.astype(problem.dtype))
    loss = float(problem.loss(y, target, Pass())[0]) / len(x)
    return loss, float(np.mean(y.argmax(axis=1) == target))


# Synchronous data parallelism


def synchronous(problem: Problem, replicas: int, steps: int) -> Part:
    """Every step: the replicas' summed gradients added up, divided by all samples, applied once."""
    part = problem.part()
    shares = [problem.batches(replicas, replica) for replica in range(replicas)]
    for step in range(steps):
        total, samples = np.zeros_like(part.grads), 0
        for batches in shares:
            batch = batches.batch(step)
            write_gradient(problem, part, batch)
            total += part.grads
            samples += batch.count
        part.grads[:] = total
        apply(problem, part, step, samples)
    return part


# Weighted model averaging


@dataclass(frozen=True, kw_only=True)
class Average:
    """The options of weighted averaging; ``period`` in steps. Schedules over the depth know ``in_flight``."""

    score: str = "uniform"
    period: int = 3
    mix: float = 1.0
    slots: str = "keep"
    sharpness: float = 1.0
    epsilon: float = 1e-6
    fisher_samples: int = 5
    in_flight: str = "drain"


@dataclass
class Replica:
    """One replica and what it has counted since the last meeting."""

    number: int
    part: Part
    batches: Batches
    samples: int = 0
    norms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Round:
    """Scores and weights of one meeting; no weights when no replica was finite."""

    scores: Array
    weights: Array | None


def averaging(
    problem: Problem, replicas: int, average: Average, steps: int, disturb: Disturb | None = None
) -> tuple[list[Part], list[Round]]:
    """All replicas train alone and meet every ``period`` steps and at the end; a single one never meets."""
    group = [Replica(r, problem.part(), problem.batches(replicas, r)) for r in range(replicas)]
    rounds = []
    for step in range(steps):
        for one in group:
            if disturb:
                disturb(step, one.number, one.part)
            _local_step(problem, one, step)
        if replicas > 1 and ((step + 1) % average.period == 0 or step + 1 == steps):
            rounds.append(meet(problem, group, average, step + 1))
            if rounds[-1].weights is None:
                break
    return [one.part for one in group], rounds


def _local_step(problem: Problem, one: Replica, step: int) -> None:
    batch = one.batches.batch(step)
    write_gradient(problem, one.part, batch)
    if batch.count:
        one.samples += batch.count
        one.norms.append(float(np.linalg.norm(one.part.grads)) / batch.count)
        apply(problem, one.part, step, batch.count)


def meet(problem: Problem, group: list[Replica], average: Average, step: int) -> Round:
    """Score, weigh, merge, go on from the mean."""
    scores = np.array([_score(problem, one, average, step) for one in group])
    left = [p for p in range(len(group)) if np.isfinite(scores[p])]
    if not left:
        return Round(scores, None)
    weights = np.zeros(len(group))
    weights[left] = shares(scores[left], average)
    info = _information(problem, group, average, step, weights)
    vectors = {
        "weights": _mean([one.part.weights for one in group], weights, info),
        "state": _mean_state([one.part for one in group], weights),
    }
    if average.slots == "average":
        for slot in group[0].part.slots:
            vectors[slot] = _mean([one.part.slots[slot] for one in group], weights)
    for one in group:
        mask = one.number not in left
        for name, mean in vectors.items():
            own = one.part.slots.get(name, getattr(one.part, name, None))
            if mask or average.mix == 1:
                own[:] = mean
            else:
                own += average.mix * (mean - own)
        if average.slots == "reset" or (mask and average.slots == "keep"):
            for slot in one.part.slots.values():
                slot[:] = 0
            one.part.counters[:] = 0
        one.samples = 0
        one.norms.clear()
    return Round(scores, weights)


def _score(problem: Problem, one: Replica, average: Average, step: int) -> float:
    part = one.part
    vectors = [part.weights, part.state, *(part.slots.values() if average.slots == "average" else ())]
    if not all(np.isfinite(vector).all() for vector in vectors):
        return nan
    validation = problem.source.splits["validation"]
    match average.score:
        case "uniform" | "fisher":
            return 1.0
        case "samples":
            return float(one.samples)
        case "inverse_gradient_norm":
            return sqrt(sum(norm**2 for norm in one.norms) / max(1, len(one.norms)))
        case "accuracy_shard":
            loss, accuracy = judge(problem, part, *_epoch(one, step))
        case _:
            loss, accuracy = judge(problem, part, validation.x, validation.target)
    if not isfinite(loss):
        return nan
    return loss if average.score in ("inverse_loss", "boltzmann") else accuracy


def _epoch(one: Replica, step: int) -> tuple[Array, Array]:
    # the samples of the epoch that the last step belongs to, in the replica's order
    length = one.batches.steps_per_epoch
    first = (step - 1) // length * length
    pieces = []
    for index in range(first, first + length):
        batch = one.batches.batch(index)
        pieces.append((batch.x.copy(), batch.target.copy()))
    return np.concatenate([x for x, _ in pieces]), np.concatenate([target for _, target in pieces])


def shares(scores: Array, average: Average) -> Array:
    """The weights of finite scores, by rule."""
    match average.score:
        case "inverse_loss":
            raw = [1 / (loss + average.epsilon) for loss in scores]
        case "inverse_gradient_norm":
            raw = [1 / (norm + average.epsilon) if norm > 0 else 0.0 for norm in scores]
        case "inverse_error":
            raw = [1 / (1 - accuracy + average.epsilon) for accuracy in scores]
        case "boltzmann":
            raw = [np.exp(-average.sharpness * loss / (sum(scores) + average.epsilon)) for loss in scores]
        case "best":
            raw = [0.0] * len(scores)
            raw[list(scores).index(max(scores))] = 1.0
        case _:
            raw = list(scores)
    if sum(raw) == 0:
        raw = [1.0] * len(raw)
    return np.array([share / sum(raw) for share in raw])


def _mean(vectors: list[Array], weights: Array, info: list[Array] | None = None) -> Array:
    if 1 in weights:
        return vectors[list(weights).index(1)].copy()
    if info is None:
        return sum(w * v for w, v in zip(weights, vectors, strict=True) if w)
    top = sum(w * f * v for w, f, v in zip(weights, info, vectors, strict=True) if w)
    return top / sum(w * f for w, f in zip(weights, info, strict=True) if w)


def _mean_state(parts: list[Part], weights: Array) -> Array:
    merged = _mean([part.state for part in parts], weights)
    if 1 in weights:
        return merged
    views = parts[0].state_layout.views(merged)
    for one, weight in zip(parts, weights, strict=True):
        if weight:
            _add_spread(views, one.state_views, weight)
    return merged


def _add_spread(merged: dict, own: dict, weight: float) -> None:
    for name, value in own.items():
        if name == "variance":
            merged["variance"] += weight * (own["mean"] - merged["mean"]) ** 2
        elif isinstance(value, dict):
            _add_spread(merged[name], value, weight)


def _information(
    problem: Problem, group: list[Replica], average: Average, step: int, weights: Array
) -> list[Array] | None:
    if average.score != "fisher":
        return None
    return [
        np.maximum(fisher(problem, one, average.fisher_samples, step), 1e-6) if weight else np.zeros(0)
        for one, weight in zip(group, weights, strict=True)
    ]


def fisher(problem: Problem, one: Replica, most: int, step: int) -> Array:
    """Squared gradients of single samples with labels drawn from the model, averaged."""
    rng = np.random.default_rng((int.from_bytes(b"FISH"), problem.seed, step, one.number))
    rows = _epoch(one, step)[0][:most]
    squares = np.zeros_like(one.part.weights)
    for row in rows:
        label = problem.loss.draw(predict(one.part, row[None]), rng)
        one.part.grads.fill(0)
        _backpropagate(problem, one.part, row[None], label, Pass(training=False, gradients=True))
        squares += one.part.grads**2
    return squares / len(rows)
