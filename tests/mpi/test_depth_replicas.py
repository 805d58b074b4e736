"""Stages times replicas that meet: a replica has one weight, wherever its stages lie."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from depth import Depth, Staged
from oracles import Average, Problem, serial
from oracles import averaging as oracle
from replicated import ROUNDED, averaging_of
from staged import Run, grids, options_of, place_of
from staged import train as train_alone
from test_consensus_measure import merged
from test_pipeline import slice_of, values

from mpinn.array.typing import Array
from mpinn.comm.grid import Grid, World
from mpinn.config import Period
from mpinn.consensus.averaging import AveragingOptions
from mpinn.consensus.consensus import Meeting
from mpinn.models.mlp import MLP
from mpinn.schedules.local import LocalOptions
from mpinn.schedules.pipeline import GPipeOptions, NaiveOptions
from mpinn.training.measure import ReplicaMeasure, RunMeasure
from mpinn.training.update import OptimizerUpdate

pytestmark = pytest.mark.mpi

DEEP = Problem(model=MLP(widths=(9, 8, 7, 6)), deal="fixed")
NORMED = Problem(model=MLP(widths=(9, 8, 7, 6), norm="batch"), deal="fixed")
CLIPPED = replace(DEEP, clip=0.5)
STEPS = 8
SCORES = ("uniform", "accuracy", "inverse_loss", "inverse_gradient_norm", "samples", "fisher", "best")


def train(
    problem: Problem, grid: Grid, options: Any, average: Average, poison: int = -1, spoilt: int = -1, stopped: int = -1
) -> tuple[Run, list[Meeting]]:
    """Train and meet as the trainer does; before the step ``poison`` a stage of replica 0 is spoilt, the last one.

    After so many steps as ``stopped`` says the schedule is built anew, and goes on with what is in flight.
    """
    part, place, bounds = place_of(problem, grid)
    schedule = options.build(part, problem.loss, problem.seed, place)
    batches = problem.batches(grid.replicas.size, grid.replica, held=options.held(grid.stages.size))
    consensus = averaging_of(grid.replicas, average)
    update = OptimizerUpdate(consensus, problem.optimizer, problem.rate, problem.clip, schedule.parts, schedule.chained)
    last = grid.stage == grid.stages.size - 1
    run, meetings = Run(part, schedule, bounds, grid.stage == 0, last), []
    for step in range(STEPS):
        if step == stopped and (flight := schedule.flight()):
            schedule = options.build(part, problem.loss, problem.seed, place)
            batches = problem.batches(grid.replicas.size, grid.replica, held=options.held(grid.stages.size))
            schedule.resume(flight, batches.batch)
        if step == poison and grid.replica == 0 and grid.stage == spoilt % grid.stages.size:
            part.weights[0] = np.nan
        schedule.step(batches.batch(step), update)
        if consensus.drains(step + 1, step + 1 == STEPS):
            schedule.drain(update)
        measure = ReplicaMeasure(schedule, problem.loss, batches, step + 1, problem.seed, grid.replica)
        meeting = consensus.weights(schedule.parts, step + 1, measure, last=step + 1 == STEPS)
        if meeting is not None:
            meetings.append(meeting)
            schedule.met(grid.replica in meeting.reseeded)
    return run, meetings


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("problem", "options"),
    [(DEEP, NaiveOptions()), (NORMED, NaiveOptions()), (CLIPPED, GPipeOptions(micro_batches=3))],
    ids=["plain", "normed", "clipped, in pieces"],
)
def test_averaging_over_stages_is_averaging_of_whole_replicas(
    world: World, score: str, problem: Problem, options: NaiveOptions
) -> None:
    for grid in grids(world):
        run, meetings = train(problem, grid, options, Average(score=score))
        parts, rounds = oracle(problem, grid.replicas.size, Average(score=score), STEPS)
        whole = parts[grid.replica]
        np.testing.assert_allclose(values(run.part), slice_of(whole, problem, run.bounds, grid.stage), **ROUNDED)
        assert len(meetings) == len(rounds)
        for meeting, wanted in zip(meetings, rounds, strict=True):
            np.testing.assert_allclose(meeting.weights, wanted.weights, **ROUNDED)
            told = np.empty((world.size, len(meeting.weights)))
            world.control.all_gather(np.asarray(meeting.weights), told).wait()
            assert (told == told[0]).all()


@pytest.mark.parametrize("depth", [Depth(), Depth(kind="ddg", order="forward_first"), Depth(accumulate=2)], ids=str)
@pytest.mark.parametrize("problem", [DEEP, CLIPPED], ids=["plain", "clipped"])
def test_a_meeting_drains_what_is_in_flight(world: World, problem: Problem, depth: Depth) -> None:
    for grid in grids(world):
        average = Average(score="uniform", period=4)
        run, _ = train(problem, grid, options_of(depth), average)
        simulated = Staged(problem, run.bounds, depth, grid.replicas.size, alone=True)
        for step in range(STEPS):
            simulated.step()
            # one replica never meets, and drains at the end only
            if (step + 1) % average.period == 0 and grid.replicas.size > 1:
                simulated.drain()
                to_mean(simulated)
        own = simulated.replicas[grid.replica].parts[grid.stage]
        # a mean of two does not depend on their order
        assert run.part.weights.tobytes() == own.weights.tobytes()


def to_mean(simulated: Staged) -> None:
    """Every stage of every replica goes on from the mean of its replicas."""
    for k in range(simulated.count):
        vectors = [stages.parts[k].weights for stages in simulated.replicas]
        mean = sum(vector / len(vectors) for vector in vectors)
        for vector in vectors:
            vector[:] = mean


@pytest.mark.parametrize(("options", "score"), [(NaiveOptions(), "accuracy"), (LocalOptions(), "uniform")], ids=str)
def test_a_replica_that_is_spoilt_in_one_stage_is_masked_in_all(world: World, options: Any, score: str) -> None:
    """Also where nothing tells the others: no gradient that is sent back, and no score that is measured."""
    if world.size % 2:
        grid = Grid(world, 1, world.size)
        assert not np.isnan(train(DEEP, grid, options, Average())[0].part.weights).any()
        return
    grid = Grid(world, 2, world.size // 2)
    run, meetings = train(DEEP, grid, options, Average(score=score, period=4), poison=2)
    assert meetings[0].reseeded == (0,)
    assert meetings[0].weights is not None
    assert meetings[0].weights.tolist() == [0, 1]
    assert np.isfinite(run.part.weights).all()


def test_the_merged_model_is_measured_through_the_stages(world: World) -> None:
    for grid in grids(world):
        run = train_alone(NORMED, grid, NaiveOptions(), STEPS, alone=True)
        consensus = AveragingOptions(period=Period("100 steps"), score="uniform").build(grid.replicas, 1)
        column = grid.replicas.split(0, grid.replica, "column")
        batches = NORMED.batches(grid.replicas.size, grid.replica)
        consensus.gradients(run.part, batches.batch(0))
        measure = RunMeasure(run.schedule, NORMED.loss, batches, grid.control, consensus, column)
        found = measure.quality("validation")
        group = [serial(NORMED, STEPS, grid.replicas.size, replica) for replica in range(grid.replicas.size)]
        alone = judged(merged(NORMED, group, np.full(len(group), 1 / len(group))))
        assert found.loss == pytest.approx(alone[0], rel=1e-9)
        assert found.accuracy == pytest.approx(alone[1])


def judged(part: Any) -> tuple[float, Array]:
    """Loss and accuracy of a whole model on the validation split."""
    from oracles import judge

    split = NORMED.source.splits["validation"]
    return judge(NORMED, part, split.x, split.target)
