"""Oracle of schedules over the depth: all stages of all replicas in one process, with explicit versions and messages.

It computes with the program's layers, losses and optimizers, but states anew which batch a stage runs when, with which
weights, and what it is sent. A message says in which iteration it was sent, and who reads it says how old it must be.
"""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from oracles import Problem, apply

from mpinn.array.typing import Array
from mpinn.datasets.batches import Batch, Batches
from mpinn.nn.layer import Pass
from mpinn.nn.part import Part, build_part
from mpinn.schedules.pipeline import pieces_of


@dataclass(frozen=True, kw_only=True)
class Depth:
    """How the depth is cut, and what the stages do."""

    kind: Literal["fdg", "ddg"] = "fdg"
    order: str = "backward_first"
    versions: str = "stash"
    recompute: bool = False
    shrink: float = 1.0
    accumulate: int = 1


def cut(problem: Problem, bounds: tuple[int, ...]) -> list[Part]:
    """The stages of the model, each with the weights that it has in the whole one."""
    model = problem.model.build(problem.source.sample_shape, problem.source.classes)
    parts, shape = [], model.shape
    for first, last in pairwise(bounds):
        network = model.network[first:last]
        part = build_part("network", network, shape, np.dtype(problem.dtype), problem.optimizer.slots)
        part.initialize(problem.seed)
        parts.append(part)
        shape = network.output_shape(shape)
    return parts


def shapes(problem: Problem, bounds: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shape of a sample before every stage, and after the last one."""
    model = problem.model.build(problem.source.sample_shape, problem.source.classes)
    return [model.network[:bound].output_shape(model.shape) for bound in bounds]


@dataclass
class Applied:
    """One gradient that was applied: by which stage, in which iteration, of which batch, how old, and its values."""

    stage: int
    iteration: int
    batch: int
    age: int
    gradient: Array


@dataclass
class Stages:
    """The stages of one replica, numbered from 1, with their queues."""

    parts: list[Part]
    batches: list[Batch]
    works: dict[int, dict[int, Any]] = field(default_factory=lambda: defaultdict(dict))
    updates: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    most: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    activations: dict[tuple[int, int], tuple[int, Array]] = field(default_factory=dict)
    gradients: dict[tuple[int, int], tuple[int, Array]] = field(default_factory=dict)
    losses: list[tuple[int, float]] = field(default_factory=list)


def copied(batch: Batch) -> Batch:
    """A batch whose arrays are its own."""
    return replace(batch, x=batch.x.copy(), target=batch.target.copy())


class Staged:
    """Replicas x stages, iteration by iteration; all replicas apply the mean of their gradients, or each its own."""

    def __init__(self, problem: Problem, bounds: tuple[int, ...], depth: Depth, replicas: int = 1, alone: bool = False):
        self.alone, self.before = alone, 0
        self.problem, self.depth, self.count = problem, depth, len(bounds) - 1
        self.replicas = [Stages(cut(problem, bounds), []) for _ in range(replicas)]
        self._shares = [problem.batches(replicas, replica) for replica in range(replicas)]
        self._summed: dict[int, list[list[tuple[Batch, Array]]]] = defaultdict(list)
        self.applied: list[Applied] = []
        self.clipped: dict[int, set[bool]] = defaultdict(set)
        """Whether updates of a stage were clipped."""
        self.iteration = 0
        self.given = 0

    def lags(self, k: int) -> tuple[int, int]:
        """By how many iterations stage k is behind in its forward and its backward pass."""
        if self.depth.kind == "fdg":
            return k - 1, (2 * self.count - k - 1)
        return 0, self.count - k

    def step(self) -> None:
        """An iteration with a new batch."""
        for stages, share in zip(self.replicas, self._shares, strict=True):
            stages.batches.append(copied(share.batch(self.before + self.given)))
        self.given += 1
        self._iterate()

    def drain(self) -> None:
        """Iterations without one until nothing is in flight, and an update with what has been added up."""
        for _ in range(2 * (self.count - 1) if self.depth.kind == "fdg" else self.count - 1):
            self._iterate()
        for k in range(1, self.count + 1):
            self._update(k)
        self.before, self.iteration, self.given = self.before + self.given, 0, 0
        for stages in self.replicas:
            stages.batches.clear()

    def forget(self, replica: int) -> None:
        """What is in flight in a replica has no samples any more."""
        stages = self.replicas[replica]
        stages.batches = [replace(batch, count=0) for batch in stages.batches]
        for groups in self._summed.values():
            for found in groups:
                found[replica] = replace(found[replica][0], count=0), np.zeros_like(found[replica][1])

    def _iterate(self) -> None:
        self.iteration += 1
        for k in range(1, self.count + 1):
            forward, backward = (self.iteration - lag for lag in self.lags(k))
            turns = [("forward", forward), ("backward", backward)]
            if self.depth.order == "backward_first" and k < self.count:
                turns.reverse()
            for way, b in turns:
                if 1 <= b <= self.given:
                    self._forward(k, b) if way == "forward" else self._backward(k, b)

    def _context(self, stages: Stages, k: int, b: int, **switches: Any) -> Pass:
        batch = stages.batches[b - 1]
        return Pass(
            stages.parts[k - 1].pool, seed=self.problem.seed, batch=batch.index, rows=batch.rows, wants_dx=k > 1,
            **switches,
        )  # fmt: skip

    def _forward(self, k: int, b: int) -> None:
        for stages in self.replicas:
            part, batch = stages.parts[k - 1], stages.batches[b - 1]
            x = batch.x
            if k > 1 and batch.count:
                sent, x = stages.activations.pop((k, b))
                assert sent == (self.iteration - 1 if self.depth.kind == "fdg" else self.iteration)
            weights = part.weights.copy()
            saved = None
            if batch.count:
                y, saved = part.network.forward(
                    part.layout.views(weights), part.state_views, x, self._context(stages, k, b)
                )
                stages.activations[k + 1, b] = self.iteration, y
            stages.works[k][b] = x, saved, weights, stages.updates[k]
            stages.most[k] = max(stages.most[k], len(stages.works[k]))

    def _backward(self, k: int, b: int) -> None:
        found = []
        for stages in self.replicas:
            batch = stages.batches[b - 1]
            part = stages.parts[k - 1]
            x, saved, weights, number = stages.works[k].pop(b)
            part.grads.fill(0)
            if batch.count:
                self._gradient(stages, k, b, x, saved, weights)
            age = stages.updates[k] - number
            found.append((batch, part.grads.copy()))
        self.applied.append(Applied(k, self.iteration, b, age, found[0][1]))
        self._summed[k].append(found)
        if len(self._summed[k]) == self.depth.accumulate:
            self._update(k)

    def _gradient(self, stages: Stages, k: int, b: int, x: Array, saved: Any, weights: Array) -> None:
        part, batch = stages.parts[k - 1], stages.batches[b - 1]
        views = part.layout.views(weights if self.depth.versions == "stash" else part.weights.copy())
        if k == self.count:
            _, y = stages.activations.pop((k + 1, b))
            loss, dy = self.problem.loss(y, batch.target, self._context(stages, k, b))
            stages.losses.append((batch.index, float(loss)))
        else:
            sent, dy = stages.gradients.pop((k, b))
            assert sent == self.iteration - 1
            dy = dy * self.depth.shrink
            if self.depth.recompute:
                _, saved = part.network.forward(
                    views, part.state_views, x, self._context(stages, k, b, update_state=False)
                )
        dx, finish = part.network.backward(views, saved, dy, self._context(stages, k, b))
        finish(part.grad_views)
        if k > 1:
            stages.gradients[k - 1, b] = self.iteration, dx.copy()

    def _update(self, k: int) -> None:
        groups = self._summed.pop(k, [])
        if not groups:
            return
        own = [sum((found[replica][1] for found in groups[1:]), groups[0][replica][1])
               for replica in range(len(self.replicas))]  # fmt: skip
        for replica, stages in enumerate(self.replicas):
            part = stages.parts[k - 1]
            batches = [found[replica][0] for found in groups]
            part.grads[:] = own[replica] if self.alone else sum(own[1:], own[0])
            samples = sum(batch.count if self.alone else batch.total for batch in batches)
            if samples:
                self.clipped[k].add(apply(self.problem, part, batches[-1].index, samples))
            stages.updates[k] += 1


@dataclass
class Whole:
    """One replica that is not cut: its running statistics are its own, its weights are those of all replicas."""

    part: Part
    batches: Batches
    losses: list[tuple[int, float]] = field(default_factory=list)


def pipelined(problem: Problem, micro_batches: int, steps: int, replicas: int = 1) -> list[Whole]:
    """Every batch in pieces, one after the other forward and backward, and an update with the sum of all gradients."""
    group = [Whole(problem.part(), problem.batches(replicas, replica)) for replica in range(replicas)]
    for step in range(steps):
        batches = [one.batches.batch(step) for one in group]
        own = [_in_pieces(problem, one, batch, micro_batches) for one, batch in zip(group, batches, strict=True)]
        for one in group:
            one.part.grads[:] = sum(own[1:], own[0])
            apply(problem, one.part, step, batches[0].total)
    return group


def _in_pieces(problem: Problem, one: Whole, batch: Batch, micro_batches: int) -> Array:
    """The gradient of the replica's share, summed in the order of the pieces."""
    part, found, losses = one.part, [], []
    for piece in pieces_of(batch, micro_batches):
        context = Pass(part.pool, seed=problem.seed, batch=piece.index, rows=piece.rows)
        y, saved = part.network.forward(part.weight_views, part.state_views, piece.x, context)
        loss, dy = problem.loss(y, piece.target, context)
        _, finish = part.network.backward(part.weight_views, saved, dy, context)
        part.grads.fill(0)
        finish(part.grad_views)
        found.append(part.grads.copy())
        losses.append(float(loss))
    if losses:
        one.losses.append((batch.index, sum(losses[1:], losses[0])))
    return sum(found[1:], found[0]) if found else np.zeros_like(part.grads)
