"""Pipelines under mpirun: equal to training on one rank, and to each other bit for bit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from depth import cut, pipelined
from oracles import Problem, clusters, serial, synchronous
from staged import grids, train

from mpinn.array.typing import Array
from mpinn.comm.grid import Grid, World
from mpinn.models.mlp import MLP
from mpinn.nn.part import Part
from mpinn.schedules.pipeline import GPipeOptions, NaiveOptions, OneFOneBOptions, Turn, turns

pytestmark = pytest.mark.mpi

PLAIN = Problem(model=MLP(widths=(9, 8, 7, 6), dropout=0.3))
NORMED = Problem(model=MLP(widths=(9, 8, 7, 6), norm="batch", dropout=0.3))
CLIPPED = replace(PLAIN, clip=0.2)
PROBLEMS = {"plain": PLAIN, "clipped": CLIPPED, "a batch of one": replace(PLAIN, source=clusters(25), batch=8)}
NORMS = {
    "normed": NORMED,
    "clipped": replace(NORMED, clip=0.5),
    "a batch of one": replace(NORMED, source=clusters(25), batch=8),
}
CLOSE = {"rtol": 1e-12, "atol": 1e-13}
STEPS = 11
PIPELINES: dict[str, Any] = {
    "naive": NaiveOptions(),
    "gpipe 1": GPipeOptions(micro_batches=1),
    "gpipe 3": GPipeOptions(micro_batches=3),
    "gpipe 50": GPipeOptions(micro_batches=50),
    "1f1b 2": OneFOneBOptions(micro_batches=2),
    "1f1b 5": OneFOneBOptions(micro_batches=5),
}


def slice_of(whole: Part, problem: Problem, bounds: Sequence[int], stage: int) -> Array:
    """The values that the whole model has for one stage's parameters, without padding."""
    names = {entry.name for entry in cut(problem, tuple(bounds))[stage].layout}
    return values(whole, names)


def state_of(part: Part, like: Part | None = None) -> Array:
    """The running statistics of a part without padding, or those that another part has too."""
    names = {entry.name for entry in (like or part).state_layout}
    return np.concatenate(
        [part.state[entry.slice] for entry in part.state_layout if entry.name in names] or [np.empty(0)]
    )


def values(part: Part, names: set[str] | None = None) -> Array:
    """The parameters of a part, or the named ones, without padding."""
    return np.concatenate([part.weights[e.slice] for e in part.layout if names is None or e.name in names])


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_equals_training_on_one_rank(world: World, name: str, problem: Problem) -> None:
    for grid in grids(world):
        run = train(problem, grid, PIPELINES[name], STEPS)
        alone = synchronous(problem, 1, STEPS)
        np.testing.assert_allclose(values(run.part), slice_of(alone, problem, run.bounds, grid.stage), **CLOSE)
        assert run.losses or not run.last


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("problem", NORMS.values(), ids=NORMS)
def test_equals_the_simulator_bit_for_bit(world: World, name: str, problem: Problem) -> None:
    """Batch norms see micro-batches, and follow each of them."""
    for grid in grids(world):
        run = train(problem, grid, PIPELINES[name], STEPS)
        whole = pipelined(problem, PIPELINES[name].micro_batches, STEPS, grid.replicas.size)[grid.replica]
        assert values(run.part).tobytes() == slice_of(whole.part, problem, run.bounds, grid.stage).tobytes()
        assert state_of(run.part).tobytes() == state_of(whole.part, run.part).tobytes()
        assert run.losses == (whole.losses if run.last else [])


@pytest.mark.parametrize("name", ["naive", "gpipe 1"])
def test_one_piece_on_one_replica_is_serial_training_bit_for_bit(world: World, name: str) -> None:
    grid = Grid(world, 1, world.size)
    run = train(NORMED, grid, PIPELINES[name], STEPS, alone=True)
    alone = serial(NORMED, STEPS)
    assert values(run.part).tobytes() == slice_of(alone, NORMED, run.bounds, grid.stage).tobytes()


def test_gpipe_and_1f1b_agree_bit_for_bit(world: World) -> None:
    for grid in grids(world):
        runs = [train(NORMED, grid, options(micro_batches=4), STEPS) for options in (GPipeOptions, OneFOneBOptions)]
        first, second = (run.part for run in runs)
        assert first.weights.tobytes() == second.weights.tobytes()
        assert first.state.tobytes() == second.state.tobytes()
        ahead = grid.stages.size - grid.stage
        # a share of 12 / R samples, and the ragged batch of an epoch has 2
        assert [run.schedule.most_in_flight for run in runs] == [4, min(4, ahead)]


def test_messages_are_one_activation_and_one_gradient_for_a_micro_batch(world: World) -> None:
    grid = Grid(world, 1, world.size)
    run = train(PLAIN, grid, GPipeOptions(micro_batches=3), 4)
    counts = grid.stages.meter.counts
    sends = 12 * ((not run.first) + (not run.last))
    assert counts.get("send", (0, 0))[0] == counts.get("receive", (0, 0))[0] == sends
    assert set(counts) <= {"send", "receive"}


def held(plan: Sequence[Turn]) -> int:
    """The most micro-batches that are forward and not yet backward."""
    count = most = 0
    for way, _ in plan:
        count += 1 if way == "forward" else -1
        most = max(most, count)
    return most


@pytest.mark.parametrize("pieces", [1, 2, 3, 8])
def test_every_piece_goes_forward_and_then_backward_once(world: World, pieces: int) -> None:
    stages = 4
    for stage in range(stages):
        for order in ("gpipe", "1f1b"):
            plan = list(turns(order, stage, stages, pieces))  # type: ignore[arg-type]
            assert sorted(plan) == sorted((way, p) for way in ("forward", "backward") for p in range(pieces))
            assert all(plan.index(("forward", p)) < plan.index(("backward", p)) for p in range(pieces))
            assert held(plan) == (pieces if order == "gpipe" else min(stages - stage, pieces))
