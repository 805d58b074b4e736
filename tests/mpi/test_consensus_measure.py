"""The run's one model: replicas that differ are merged, and all ranks share the samples."""

from dataclasses import replace

import numpy as np
import pytest
from oracles import Average, Problem, averaging, judge, serial
from replicated import averaging_of as build
from replicated import train

from mpinn.comm.channel import Channel
from mpinn.comm.grid import World
from mpinn.consensus.consensus import Consensus
from mpinn.consensus.gradients import Gradients
from mpinn.consensus.independent import Independent
from mpinn.models.mlp import MLP
from mpinn.nn.part import Part
from mpinn.schedules.serial import Serial
from mpinn.training.measure import RunMeasure

pytestmark = pytest.mark.mpi

PLAIN = Problem(deal="fixed")
NORMED = Problem(deal="fixed", model=MLP(widths=(9, 7), norm="batch"))


@pytest.fixture
def channel(world: World) -> Channel:
    return world.channel("control")


def run_measure(problem: Problem, channel: Channel, consensus: Consensus, part: Part) -> RunMeasure:
    schedule = Serial(part, problem.loss, problem.seed)
    return RunMeasure(schedule, problem.loss, problem.batches(channel.size, channel.rank), channel, consensus)


def assert_quality(problem: Problem, measure: RunMeasure, part: Part) -> None:
    for split in ("validation", "test"):
        samples = problem.source.splits[split]
        loss, accuracy = judge(problem, part, samples.x, samples.target)
        found = measure.quality(split)
        assert found.loss == pytest.approx(loss, rel=1e-10)
        assert found.accuracy == pytest.approx(accuracy, abs=1e-12)


def merged(problem: Problem, parts: list[Part], weights: np.ndarray) -> Part:
    part = problem.part()
    part.weights[:] = sum(w * p.weights for w, p in zip(weights, parts, strict=True) if w)
    views = part.state_layout.views(part.state)
    own = [p.state_layout.views(p.state) for p in parts]
    for block, tree in views.items():
        mean = sum(w * o[block]["norm"]["mean"] for w, o in zip(weights, own, strict=True) if w)
        tree["norm"]["mean"][:] = mean
        tree["norm"]["variance"][:] = sum(
            w * (o[block]["norm"]["variance"] + (o[block]["norm"]["mean"] - mean) ** 2)
            for w, o in zip(weights, own, strict=True)
            if w
        )
    return part


@pytest.mark.parametrize("problem", [PLAIN, NORMED], ids=["plain", "batch norm"])
def test_replicas_that_differ_are_merged_with_the_weights_of_the_last_meeting(
    channel: Channel, problem: Problem
) -> None:
    consensus = build(channel, Average(score="inverse_loss", period=3))
    trained = train(problem, channel, consensus, 3)
    measure = run_measure(problem, channel, consensus, trained.part)
    assert consensus.agreed
    assert_quality(problem, measure, averaging(problem, channel.size, Average(score="inverse_loss"), 3)[0][0])
    # now they train on alone
    group = [serial(problem, 5, channel.size, r) for r in range(channel.size)]
    own = group[channel.rank]
    consensus.gradients(own, problem.batches(channel.size, channel.rank).batch(0))
    measure = run_measure(problem, channel, consensus, own)
    weights = measure.merge_weights()
    np.testing.assert_allclose(weights, consensus.merge, rtol=1e-14)
    before = own.weights.tobytes(), own.state.tobytes()
    assert_quality(problem, measure, merged(problem, group, weights))
    assert (own.weights.tobytes(), own.state.tobytes()) == before


def test_replicas_that_moved_half_way_to_the_mean_still_differ(channel: Channel) -> None:
    average = Average(mix=0.5, period=3)
    consensus = build(channel, average)
    trained = train(PLAIN, channel, consensus, 3)
    assert consensus.agreed == (channel.size == 1)
    measure = run_measure(PLAIN, channel, consensus, trained.part)
    parts, _ = averaging(PLAIN, channel.size, average, 3)
    assert_quality(PLAIN, measure, merged(PLAIN, parts, measure.merge_weights()))


def test_a_replica_that_is_not_finite_is_left_out(channel: Channel) -> None:
    consensus = build(channel, Average())
    group = [serial(NORMED, 5, channel.size, r) for r in range(channel.size)]
    own = group[channel.rank]
    consensus.gradients(own, NORMED.batches(channel.size, channel.rank).batch(0))
    if channel.size == 1:
        return
    if channel.rank == 0:
        own.weights[:] = np.nan
    measure = run_measure(NORMED, channel, consensus, own)
    weights = np.array([0, *[1 / (channel.size - 1)] * (channel.size - 1)])
    np.testing.assert_allclose(measure.merge_weights(), weights, rtol=1e-15)
    assert_quality(NORMED, measure, merged(NORMED, group, weights))


def test_no_finite_replica_is_measured_as_it_is(channel: Channel) -> None:
    part = PLAIN.part()
    part.weights.fill(np.nan)
    consensus = build(channel, Average())
    consensus.gradients(part, PLAIN.batches(channel.size, channel.rank).batch(0))
    assert np.isnan(run_measure(PLAIN, channel, consensus, part).quality("validation").loss)


def test_statistics_alone_are_merged_under_gradients(channel: Channel) -> None:
    problem = replace(NORMED, deal="redealt")
    consensus = Gradients(channel, 2**20)
    trained = train(problem, channel, consensus, 5)
    states = np.empty((channel.size, trained.part.state.size))
    channel.all_gather(trained.part.state, states).wait()
    group = [problem.part() for _ in states]
    for part, state in zip(group, states, strict=True):
        part.weights[:], part.state[:] = trained.part.weights, state
    if channel.size > 1:
        assert np.ptp(states, axis=0).max() > 1e-3
    measure = run_measure(problem, channel, consensus, trained.part)
    uniform = np.full(channel.size, 1 / channel.size)
    assert_quality(problem, measure, merged(problem, group, uniform))
    before = channel.meter.counts.get("all_sum", (0, 0))
    measure.quality("validation")
    after = channel.meter.counts.get("all_sum", (0, 0))
    vector = 8 * (trained.part.state.size + 3 * (9 + 7))
    if channel.size > 1:
        # the statistics, and the sums of loss, right predictions and samples
        assert (after[0] - before[0], after[1] - before[1]) == (2, vector + 24)


def test_without_consensus_the_run_is_its_first_replica(channel: Channel) -> None:
    consensus = Independent(channel)
    trained = train(NORMED, channel, consensus, 4)
    measure = run_measure(NORMED, channel, consensus, trained.part)
    assert_quality(NORMED, measure, serial(NORMED, 4, channel.size, 0))
