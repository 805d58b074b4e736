"""Oracle of stages with losses of their own: all stages of all replicas in one process, with dated messages.

It computes with the program's layers, losses and optimizers, but states anew what an auxiliary head is, which batch a
stage runs when, and what it is sent.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from depth import copied, cut
from oracles import Problem, apply

from mpinn.array.typing import Array
from mpinn.datasets.batches import Batch
from mpinn.nn.dense import Dense
from mpinn.nn.layer import Pass
from mpinn.nn.network import Network
from mpinn.nn.part import Part, build_part
from mpinn.nn.pool import GlobalAveragePool


def head(problem: Problem, stage: int, shape: tuple[int, ...], width: int) -> Part:
    """The auxiliary head of a stage, numbered from 0, with the weights drawn from its own stream."""
    dense = [("hidden", Dense(width, "relu"))] if width else []
    pool = [("pool", GlobalAveragePool())] if len(shape) == 3 else []
    network = Network([*pool, *dense, ("output", Dense(problem.source.classes, initial="lecun"))])
    part = build_part(f"auxiliary{stage}", network, shape, np.dtype(problem.dtype), problem.optimizer.slots)
    key = int.from_bytes(b"AUXI"), problem.seed, stage
    network.initialize(part.weight_views, part.state_views, lambda path: np.random.default_rng((*key, *path)))
    return part


@dataclass
class Column:
    """The stages of one replica with their heads, numbered from 1, and the activations under way, with their dates."""

    parts: list[Part]
    heads: list[Part]
    batches: list[Batch] = field(default_factory=list)
    sent: dict[tuple[int, int], tuple[int, Array]] = field(default_factory=dict)
    losses: list[tuple[int, float]] = field(default_factory=list)


class Locals:
    """Replicas x stages, iteration by iteration; all replicas apply the mean of their gradients."""

    def __init__(self, problem: Problem, bounds: tuple[int, ...], width: int, replicas: int = 1):
        self.problem, self.count = problem, len(bounds) - 1
        self.columns = []
        for _ in range(replicas):
            parts = cut(problem, bounds)
            shapes, shape = [], problem.source.sample_shape
            for part in parts:
                shape = part.network.output_shape(shape)
                shapes.append(shape)
            heads = [head(problem, stage, shape, width) for stage, shape in enumerate(shapes[:-1])]
            self.columns.append(Column(parts, heads))
        self._shares = [problem.batches(replicas, replica) for replica in range(replicas)]
        self.clipped: dict[tuple[int, str], set[bool]] = defaultdict(set)
        """Whether updates were clipped, of a stage by its number, and of its part or its head by the name."""
        self.iteration = self.given = 0

    def step(self) -> None:
        """An iteration with a new batch."""
        for column, share in zip(self.columns, self._shares, strict=True):
            column.batches.append(copied(share.batch(self.given)))
        self.given += 1
        self._iterate()

    def drain(self) -> None:
        """Iterations without one until nothing is in flight."""
        for _ in range(self.count - 1):
            self._iterate()

    def _iterate(self) -> None:
        self.iteration += 1
        for k in range(1, self.count + 1):
            b = self.iteration - k + 1
            if 1 <= b <= self.given:
                for column in self.columns:
                    self._learn(column, k, b)
                self._update(k, self.columns[0].batches[b - 1])

    def _learn(self, column: Column, k: int, b: int) -> None:
        """Forward, loss and gradient of one stage."""
        part, batch, last = column.parts[k - 1], column.batches[b - 1], k == self.count
        part.grads.fill(0)
        if not last:
            column.heads[k - 1].grads.fill(0)
        if not batch.count:
            return
        x = batch.x
        if k > 1:
            sent, x = column.sent.pop((k, b))
            assert sent == self.iteration - 1
        y, saved = part.network.forward(part.weight_views, part.state_views, x, self._context(part, batch))
        if last:
            loss, dy = self.problem.loss(y, batch.target, self._context(part, batch))
            column.losses.append((batch.index, float(loss)))
        else:
            column.sent[k + 1, b] = self.iteration, y.copy()
            dy = self._auxiliary(column.heads[k - 1], y, batch)
        _, finish = part.network.backward(part.weight_views, saved, dy, self._context(part, batch))
        finish(part.grad_views)

    def _auxiliary(self, part: Part, y: Array, batch: Batch) -> Array:
        z, saved = part.network.forward(part.weight_views, part.state_views, y, self._context(part, batch))
        _, dz = self.problem.loss(z, batch.target, self._context(part, batch))
        dy, finish = part.network.backward(part.weight_views, saved, dz, self._context(part, batch, wants_dx=True))
        finish(part.grad_views)
        return dy

    def _context(self, part: Part, batch: Batch, **switches: Any) -> Pass:
        return Pass(part.pool, seed=self.problem.seed, batch=batch.index, rows=batch.rows, **switches)

    def _update(self, k: int, batch: Batch) -> None:
        for group in ([c.parts[k - 1] for c in self.columns], [c.heads[k - 1] for c in self.columns if k < self.count]):
            total: Array | int = 0
            for replica, part in enumerate(group):
                total = part.grads.copy() if replica == 0 else total + part.grads
            for part in group:
                part.grads[:] = total
                self.clipped[k, part.name].add(apply(self.problem, part, batch.index, batch.total))
