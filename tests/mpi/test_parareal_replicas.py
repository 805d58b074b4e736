"""Parareal networks times replicas that meet or gossip: as replicas that have a whole network each."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from consensus_oracles import gossip
from oracles import Average
from oracles import averaging as oracle
from replicated import ROUNDED, averaging_of
from staged import grids
from test_parareal import CASES, build, problem_of, values

from mpinn.comm.grid import Grid, World
from mpinn.config import Period
from mpinn.consensus.consensus import Meeting
from mpinn.consensus.gossip import GossipOptions
from mpinn.models.mlp import MLP
from mpinn.nn.part import Part
from mpinn.training.measure import ReplicaMeasure
from mpinn.training.update import OptimizerUpdate

pytestmark = pytest.mark.mpi

STEPS = 8
PLAIN, NORMED = MLP(widths=(9, 8, 7, 6)), MLP(widths=(9, 8, 7, 6), norm="batch")
KINDS = ("residual", "difference", "gathered")


def train(problem: Any, grid: Grid, consensus: Any) -> tuple[Part, list[Meeting]]:
    """Train and meet as the trainer does."""
    schedule = build(problem, grid)
    (part,) = schedule.parts.values()
    batches = problem.batches(grid.replicas.size, grid.replica)
    consensus.prepare(schedule.parts)
    update = OptimizerUpdate(consensus, problem.optimizer, problem.rate, 0.0, schedule.parts, schedule.chained)
    meetings = []
    for step in range(STEPS):
        schedule.step(batches.batch(step), update)
        measure = ReplicaMeasure(schedule, problem.loss, batches, step + 1, problem.seed, grid.replica)
        meeting = consensus.weights(schedule.parts, step + 1, measure, last=step + 1 == STEPS)
        if meeting is not None:
            meetings.append(meeting)
    return part, meetings


@pytest.mark.parametrize("score", ["uniform", "accuracy", "inverse_gradient_norm", "fisher", "best"])
@pytest.mark.parametrize("kind", KINDS)
def test_weighted_averaging_of_parareal_networks(world: World, kind: str, score: str) -> None:
    for grid in grids(world):
        problem = problem_of(grid.stages.size, CASES[kind], NORMED, deal="fixed")
        part, meetings = train(problem, grid, averaging_of(grid.replicas, Average(score=score)))
        parts, rounds = oracle(problem, grid.replicas.size, Average(score=score), STEPS)
        np.testing.assert_allclose(values(part), values(parts[grid.replica], part), **ROUNDED)
        assert len(meetings) == len(rounds) == (3 if grid.replicas.size > 1 else 0)
        for meeting, wanted in zip(meetings, rounds, strict=True):
            np.testing.assert_allclose(meeting.weights, wanted.weights, **ROUNDED)


@pytest.mark.parametrize("form", ["adapt_then_combine", "combine_then_adapt"])
@pytest.mark.parametrize("kind", KINDS)
def test_gossip_of_parareal_networks_bit_for_bit(world: World, kind: str, form: str) -> None:
    for grid in grids(world):
        problem = problem_of(grid.stages.size, CASES[kind], PLAIN, deal="fixed")
        consensus = GossipOptions(form=form, period=Period("2 steps")).build(grid.replicas, 1)
        part, _ = train(problem, grid, consensus)
        consensus.close()
        own = gossip(problem, grid.replicas.size, "ring", form, 2, STEPS)[grid.replica]
        assert values(part).tobytes() == values(own, part).tobytes()
        if grid.replicas.size > 1:
            never = gossip(replace(problem), grid.replicas.size, "ring", form, 100, STEPS)[grid.replica]
            assert not np.allclose(values(never, part), values(part), rtol=1e-3)
