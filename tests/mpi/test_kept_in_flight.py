"""Meetings that leave in flight what is there: it goes on with other weights, or ends if it came of none."""

from dataclasses import replace

import numpy as np
import pytest
from depth import Depth, Staged
from oracles import Average, Problem, clusters
from replicated import ROUNDED
from staged import grids, options_of
from test_depth_replicas import DEEP, STEPS, to_mean, train

from mpinn.comm.grid import Grid, World
from mpinn.schedules.local import LocalOptions

pytestmark = pytest.mark.mpi

KEPT = Average(score="uniform", period=2, in_flight="keep")
DEPTHS = [
    Depth(),
    Depth(versions="mixed"),
    Depth(accumulate=2),
    Depth(accumulate=2, recompute=True),
    Depth(kind="ddg", order="forward_first", accumulate=2),
]


@pytest.mark.parametrize("depth", DEPTHS, ids=str)
def test_a_delayed_gradient_is_that_of_the_weights_before_the_meeting(world: World, depth: Depth) -> None:
    """Also where no update lies between two forward passes, but a meeting."""
    for grid in grids(world):
        run, _ = train(DEEP, grid, options_of(depth), KEPT)
        simulated = Staged(DEEP, run.bounds, depth, grid.replicas.size, alone=True)
        for step in range(1, STEPS + 1):
            simulated.step()
            if step % KEPT.period == 0 or step == STEPS:
                to_mean(simulated)
        own = simulated.replicas[grid.replica].parts[grid.stage]
        np.testing.assert_allclose(run.part.weights, own.weights, **ROUNDED)


@pytest.mark.parametrize("depth", DEPTHS, ids=str)
def test_nothing_counts_that_came_of_weights_which_were_not_finite(world: World, depth: Depth) -> None:
    if world.size % 2:
        assert not train(DEEP, Grid(world, 1, world.size), options_of(depth), KEPT)[1]
        return
    grid = Grid(world, 2, world.size // 2)
    kept = replace(KEPT, period=3)
    run, meetings = train(DEEP, grid, options_of(depth), kept, poison=1, stopped=3)
    assert [meeting.reseeded for meeting in meetings] == [(0,), (), ()]
    simulated = Staged(DEEP, run.bounds, depth, 2, alone=True)
    with np.errstate(all="ignore"):
        for step in range(1, STEPS + 1):
            if step == 2:
                simulated.replicas[0].parts[-1].weights[0] = np.nan
            simulated.step()
            if step == kept.period:
                begin_anew(simulated)
            elif step % kept.period == 0 or step == STEPS:
                to_mean(simulated)
    own = simulated.replicas[grid.replica].parts[grid.stage]
    np.testing.assert_allclose(run.part.weights, own.weights, **ROUNDED)


def begin_anew(simulated: Staged) -> None:
    """The first of two replicas goes on from the second, and forgets what is in flight and in its optimizer."""
    for spoilt, whole in zip(*(stages.parts for stages in simulated.replicas), strict=True):
        spoilt.weights[:] = whole.weights
        spoilt.reset_slots()
    simulated.forget(0)


@pytest.mark.parametrize("stopped", [-1, 2])
def test_a_stage_with_a_loss_of_its_own_forgets_too(world: World, stopped: int) -> None:
    if world.size % 2:
        assert not train(DEEP, Grid(world, 1, world.size), LocalOptions(), KEPT)[1]
        return
    grid = Grid(world, 2, world.size // 2)
    run, meetings = train(DEEP, grid, LocalOptions(), KEPT, poison=1, spoilt=0, stopped=stopped)
    assert [meeting.reseeded for meeting in meetings] == [(0,), (), (), ()]
    # of the replica that begins anew the last batch before the meeting moves no stage that has not had it yet
    assert run.part.counters[0] == (STEPS - 2 if grid.replica == 0 else STEPS) - grid.stage
    assert all(np.isfinite(part.weights).all() for part in run.schedule.parts.values())


@pytest.mark.parametrize("score", ["samples", "inverse_gradient_norm"])
def test_all_stages_have_the_weight_of_their_replica_though_they_are_not_equally_far(world: World, score: str) -> None:
    uneven = Problem(source=clusters(25), batch=8, model=DEEP.model, deal="fixed")
    for grid in grids(world):
        _, meetings = train(uneven, grid, options_of(Depth()), Average(score=score, period=5, in_flight="keep"))
        for meeting in meetings:
            told = np.empty((world.size, len(meeting.weights)))
            world.control.all_gather(np.asarray(meeting.weights), told).wait()
            assert (told == told[0]).all()
