"""The outer optimizer against the oracle, what it becomes in limiting cases, and what it remembers."""

from dataclasses import replace

import numpy as np
import pytest
from consensus_oracles import OuterStep
from consensus_oracles import outer as oracle
from oracles import Average, Disturb, Problem, clusters, serial, synchronous
from replicated import NORMED, SHARDS, STEPS, Trained, averaging_of, everywhere, tolerance, train

from mpinn.comm.channel import Channel
from mpinn.comm.grid import World
from mpinn.config import Period
from mpinn.consensus.outer import Outer, OuterOptions
from mpinn.consensus.scores import SCORES
from mpinn.nn.optimizer import SGD, Adam, AdamW
from mpinn.nn.part import Part
from mpinn.schedules.serial import Serial
from mpinn.training.measure import ReplicaMeasure

pytestmark = pytest.mark.mpi

PLAIN = OuterStep(rate=1.0, momentum=0.0)


@pytest.fixture
def channel(world: World) -> Channel:
    return world.channel("replicas")


def build(channel: Channel, average: Average = Average(), step_by: OuterStep = OuterStep()) -> Outer:  # noqa: B008
    """The program's outer optimizer with the options of the oracle."""
    options = OuterOptions(
        period=Period(f"{average.period} steps"),
        rate=step_by.rate,
        momentum=step_by.momentum,
        nesterov=step_by.nesterov,
        score=average.score,
        sharpness=average.sharpness,
        epsilon=average.epsilon,
        fisher_samples=average.fisher_samples,
    )
    return options.build(channel, steps_per_epoch=1)


def train_like_the_oracle(
    problem: Problem, channel: Channel, average: Average, step_by: OuterStep, **options: Disturb
) -> Trained:
    trained = train(problem, channel, build(channel, average, step_by), STEPS, **options)
    parts, rounds = oracle(problem, channel.size, average, step_by, STEPS, **options)
    own, close = parts[channel.rank], tolerance(problem)
    assert len(trained.meetings) == len(rounds)
    for meeting, wanted in zip(trained.meetings, rounds, strict=True):
        np.testing.assert_allclose(meeting.scores, wanted.scores, **close)
        np.testing.assert_allclose(meeting.weights, wanted.weights, **close)
    np.testing.assert_allclose(trained.part.weights, own.weights, **close)
    np.testing.assert_allclose(trained.part.state, own.state, **close)
    for name, slot in trained.part.slots.items():
        np.testing.assert_allclose(slot, own.slots[name], **close)
    assert trained.part.counters[0] == own.counters[0]
    rows = everywhere(channel, trained.part.weights)
    assert all(row.tobytes() == rows[0].tobytes() for row in rows)
    return trained


# The oracle


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("rate", "momentum"), [(0.7, 0.9), (1.3, 0.0), (0.5, 0.4)])
@pytest.mark.parametrize("period", [1, 3])
def test_the_outer_step_is_the_oracle_s(
    channel: Channel, rate: float, momentum: float, nesterov: bool, period: int
) -> None:
    step_by = OuterStep(rate=rate, momentum=momentum, nesterov=nesterov)
    train_like_the_oracle(NORMED, channel, Average(period=period), step_by)


@pytest.mark.parametrize("score", SCORES)
def test_every_score_weighs_the_pseudo_gradients(channel: Channel, score: str) -> None:
    train_like_the_oracle(NORMED, channel, Average(score=score), OuterStep())


@pytest.mark.parametrize(
    "optimizer", [SGD(rate=0.1, nesterov=True), Adam(rate=1e-2, epsilon=1e-3), AdamW(rate=1e-2, epsilon=1e-3)]
)
def test_the_inner_optimizer_s_memory_stays_with_each_replica(channel: Channel, optimizer: SGD | Adam | AdamW) -> None:
    trained = train_like_the_oracle(replace(SHARDS, optimizer=optimizer), channel, Average(period=4), OuterStep())
    for slot in trained.part.slots.values():
        rows = everywhere(channel, slot)
        assert (np.ptp(rows, axis=0).max() > 0) == (channel.size > 1)


# What it becomes


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("nesterov", [True, False])
def test_a_rate_of_one_without_momentum_is_averaging_bit_for_bit(world: World, score: str, nesterov: bool) -> None:
    channel = world.channel("replicas", ordered=True)
    average = Average(score=score)
    ours = train(NORMED, channel, build(channel, average, replace(PLAIN, nesterov=nesterov)), STEPS)
    theirs = train(NORMED, channel, averaging_of(channel, average), STEPS)
    assert ours.part.weights.tobytes() == theirs.part.weights.tobytes()
    assert ours.part.state.tobytes() == theirs.part.state.tobytes()
    assert ours.part.slots["momentum"].tobytes() == theirs.part.slots["momentum"].tobytes()


@pytest.mark.parametrize("step_by", [OuterStep(), replace(PLAIN, rate=0.99), replace(PLAIN, momentum=0.01)])
def test_anything_else_is_not(channel: Channel, step_by: OuterStep) -> None:
    ours = train(NORMED, channel, build(channel, step_by=step_by), STEPS)
    theirs = train(NORMED, channel, averaging_of(channel, Average()), STEPS)
    assert (np.abs(ours.part.weights - theirs.part.weights).max() > 1e-5) == (channel.size > 1)


def test_meeting_every_step_with_plain_sgd_is_the_mean_gradient(channel: Channel) -> None:
    # with equal counts of samples, since each replica divides by its own
    problem = Problem(source=clusters(48), optimizer=SGD(rate=0.1, momentum=0.0))
    trained = train(problem, channel, build(channel, Average(period=1), PLAIN), STEPS)
    np.testing.assert_allclose(
        trained.part.weights, synchronous(problem, channel.size, STEPS).weights, rtol=1e-14, atol=1e-15
    )


@pytest.mark.parametrize("step_by", [OuterStep(), OuterStep(rate=0.3)])
@pytest.mark.parametrize("period", [1, 3])
def test_one_replica_never_takes_an_outer_step(world: World, step_by: OuterStep, period: int) -> None:
    alone = world.channel("alone", color=world.rank)
    consensus = build(alone, Average(period=period), step_by)
    trained = train(NORMED, alone, consensus, STEPS)
    assert trained.part.weights.tobytes() == serial(NORMED, STEPS).weights.tobytes()
    assert trained.meetings == []
    assert not [name for name in consensus.memory if "outer" in name]


def test_the_outer_momentum_is_nesterov_s_by_hand(world: World) -> None:
    channel = world.channel("replicas", ordered=True)
    if channel.size == 1:
        return
    part = SHARDS.part()
    consensus = build(channel, Average(period=1), OuterStep(rate=0.5, momentum=0.5))
    consensus.prepare({part.name: part})
    batches = SHARDS.batches(1, 0)
    measure = ReplicaMeasure(Serial(part, SHARDS.loss, SHARDS.seed), SHARDS.loss, batches, 1, SHARDS.seed, 0)
    part.weights.fill(8.0)
    # all replicas move by -1 at every step: d is 1; v = 1, then 1.5; the steps are 0.5 (1 + 0.5), 0.5 (1 + 0.75)
    seen = []
    for step in range(2):
        consensus.gradients(part, batches.batch(step))
        part.weights -= 1
        consensus.weights({part.name: part}, step + 1, measure, last=False)
        seen.append(part.weights[0])
    np.testing.assert_allclose(seen, [7.25, 6.375], rtol=1e-15)


# What it remembers


def test_start_and_momentum_are_equal_on_all_replicas(channel: Channel) -> None:
    consensus = build(channel, Average(period=4))
    part = train(SHARDS, channel, consensus, STEPS).part
    if channel.size == 1:
        return
    layout, start = consensus.memory["outer/start/network"]
    _, momentum = consensus.memory["outer/momentum/network"]
    assert layout is part.layout
    assert start.tobytes() == part.weights.tobytes()
    assert np.abs(momentum).max() > 1e-3
    for vector in (start, momentum):
        rows = everywhere(channel, vector)
        assert all(row.tobytes() == rows[0].tobytes() for row in rows)


def test_without_a_start_the_first_update_begins_from_the_weights_that_are_there(channel: Channel) -> None:
    # as after a resume on another grid, where weights were merged and the memory was not restored
    part, consensus = SHARDS.part(), build(channel)
    consensus.prepare({part.name: part})
    part.weights += 0.25
    consensus.gradients(part, SHARDS.batches(1, 0).batch(0))
    if channel.size > 1:
        assert consensus.memory["outer/start/network"][1].tobytes() == part.weights.tobytes()


# Bad replicas


@pytest.mark.parametrize("problem", [SHARDS, NORMED], ids=["plain", "batch norm"])
def test_a_replica_that_is_not_finite_is_left_out_and_goes_on(channel: Channel, problem: Problem) -> None:
    def poison(step: int, replica: int, part: Part) -> None:
        if step == 4 and replica == 0 and channel.size > 1:
            part.weights[5] = np.nan

    with np.errstate(all="ignore"):
        trained = train_like_the_oracle(problem, channel, Average(score="accuracy"), OuterStep(), disturb=poison)
    assert np.isfinite(trained.part.weights).all()
    if channel.size > 1:
        assert [meeting.reseeded for meeting in trained.meetings] == [(), (0,), ()]


def test_no_finite_replica_ends_it(channel: Channel) -> None:
    def poison(step: int, replica: int, part: Part) -> None:
        if step == 1:
            part.weights[5] = np.nan

    consensus = build(channel)
    with np.errstate(all="ignore"):
        trained = train(SHARDS, channel, consensus, STEPS, disturb=poison)
    if channel.size > 1:
        assert [meeting.weights for meeting in trained.meetings] == [None]
        assert np.isfinite(consensus.memory["outer/start/network"][1]).all()
    assert consensus.masks == (channel.size > 1)


# Messages


@pytest.mark.parametrize("score", SCORES)
def test_messages_are_those_of_averaging(world: World, score: str) -> None:
    counts = []
    for make in (build, averaging_of):
        channel = world.channel("replicas")
        train(SHARDS, channel, make(channel, Average(score=score)), STEPS)
        counts.append(channel.meter.counts)
    assert counts[0] == counts[1]
    assert counts[0].get("all_gather", (0, 0))[0] == (3 if world.size > 1 else 0)
