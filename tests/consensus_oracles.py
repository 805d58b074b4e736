"""Serial oracles of gossip and of the outer optimizer, beside those of `oracles`."""

from dataclasses import dataclass
from functools import reduce

import numpy as np
from oracles import Average, Disturb, Problem, Replica, Round, _local_step, apply, meet, write_gradient

from mpinn.array.typing import Array
from mpinn.nn.part import Part

TABLES = {1: (1, 1), 2: (1, 2), 3: (1, 3), 4: (2, 2)}
"""Replicas -> rows and columns of the torus."""


def mixing(graph: str, replicas: int) -> Array:
    """The matrix of mixing, (R, R). All replicas have equally many neighbours, so all its entries are alike."""
    rows, columns = TABLES[replicas]
    near = np.eye(replicas, dtype=bool)
    for s in range(replicas):
        match graph:
            case "ring":
                near[s, [(s + 1) % replicas, s - 1]] = True
            case "torus":
                row, column = s // columns, s % columns
                for down, right in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                    near[s, (row + down) % rows * columns + (column + right) % columns] = True
            case "complete":
                near[s] = True
    return near / near.sum(axis=1)


def mixed(matrix: Array, vectors: list[Array], replica: int) -> Array:
    """The sum of a replica's own vector and those of its neighbours, in the order of the replicas."""
    return reduce(np.add, [matrix[replica, r] * v for r, v in enumerate(vectors) if matrix[replica, r]])


def gossip(problem: Problem, replicas: int, graph: str, form: str, period: int, steps: int) -> list[Part]:
    """All replicas take steps of their own; with every ``period``-th they mix, after it or with the old weights."""
    matrix = mixing(graph, replicas)
    parts = [problem.part() for _ in range(replicas)]
    shares = [problem.batches(replicas, r) for r in range(replicas)]
    for step in range(steps):
        due = replicas > 1 and (step + 1) % period == 0
        old = [part.weights.copy() for part in parts]
        for r, part in enumerate(parts):
            batch = shares[r].batch(step)
            write_gradient(problem, part, batch)
            if due and form == "combine_then_adapt":
                part.weights[:] = mixed(matrix, old, r)
            if batch.count:
                apply(problem, part, step, batch.count)
        if due and form == "adapt_then_combine":
            new = [part.weights.copy() for part in parts]
            for r, part in enumerate(parts):
                part.weights[:] = mixed(matrix, new, r)
    return parts


@dataclass(frozen=True, kw_only=True)
class OuterStep:
    """The options of the outer optimizer."""

    rate: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True


def outer(
    problem: Problem, replicas: int, average: Average, step_by: OuterStep, steps: int, disturb: Disturb | None = None
) -> tuple[list[Part], list[Round]]:
    """Local training; at a meeting the mean of theta_start - theta_local is a gradient for the outer optimizer."""
    group = [Replica(r, problem.part(), problem.batches(replicas, r)) for r in range(replicas)]
    start, velocity = group[0].part.weights.copy(), np.zeros_like(group[0].part.weights)
    rounds = []
    for step in range(steps):
        for one in group:
            if disturb:
                disturb(step, one.number, one.part)
            _local_step(problem, one, step)
        if replicas > 1 and ((step + 1) % average.period == 0 or step + 1 == steps):
            moved = [start - one.part.weights for one in group]
            rounds.append(meet(problem, group, average, step + 1))
            weights = rounds[-1].weights
            if weights is None:
                break
            gradient = sum(w * d for w, d in zip(weights, moved, strict=True) if w)
            if average.score == "fisher":
                gradient = start - group[0].part.weights  # weighed for each element apart, as `meet` has done
            velocity = step_by.momentum * velocity + gradient
            ahead = gradient + step_by.momentum * velocity if step_by.nesterov else velocity
            start = start - step_by.rate * ahead
            for one in group:
                one.part.weights[:] = start
    return [one.part for one in group], rounds
