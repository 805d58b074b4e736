"""Weighted model averaging against the oracle, its degenerate cases, and what the mean is."""

from dataclasses import replace

import numpy as np
import pytest
from oracles import Average, Problem, clusters, serial, synchronous
from replicated import (
    NORMED,
    ROUNDED,
    SHARDS,
    STEPS,
    apart,
    everywhere,
    one_meeting,
    train,
    train_like_the_oracle,
)
from replicated import averaging_of as build

from mpinn.comm.channel import Channel
from mpinn.comm.grid import World
from mpinn.consensus.registry import CONSENSUSES
from mpinn.consensus.scores import SCORES
from mpinn.nn.optimizer import SGD, Adam
from mpinn.nn.part import Part

pytestmark = pytest.mark.mpi

ULPS = {"rtol": 8 * np.finfo(float).eps, "atol": 8 * np.finfo(float).eps}


@pytest.fixture
def channel(world: World) -> Channel:
    return world.channel("replicas")


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("model", [SHARDS, NORMED], ids=["plain", "batch norm"])
def test_every_score_like_the_oracle(channel: Channel, score: str, model: Problem) -> None:
    train_like_the_oracle(model, channel, Average(score=score))


@pytest.mark.parametrize("slots", ["keep", "reset", "average"])
@pytest.mark.parametrize("mix", [1.0, 0.3])
@pytest.mark.parametrize(
    "optimizer", [SGD(rate=0.1, nesterov=True), Adam(rate=1e-2, epsilon=1e-3)], ids=["sgd", "adam"]
)
def test_slots_and_mix_like_the_oracle(channel: Channel, slots: str, mix: float, optimizer: SGD | Adam) -> None:
    problem = replace(NORMED, optimizer=optimizer)
    train_like_the_oracle(problem, channel, Average(score="inverse_loss", slots=slots, mix=mix, period=2))


@pytest.mark.parametrize("period", [1, 5, 100])
def test_period(channel: Channel, period: int) -> None:
    train_like_the_oracle(SHARDS, channel, Average(score="boltzmann", sharpness=5.0, period=period))


def test_samples_weigh_uneven_shards(channel: Channel) -> None:
    problem = Problem(source=clusters(10), batch=5, deal="fixed")
    trained = train(problem, channel, build(channel, Average(score="samples", period=2)), 2)
    seen = np.array([len(range(r, 10, channel.size)) for r in range(channel.size)])
    for meeting in trained.meetings:
        np.testing.assert_allclose(meeting.weights, seen / 10, rtol=1e-15)
    assert len(trained.meetings) == (channel.size > 1)


def test_an_auxiliary_head_does_not_count(channel: Channel) -> None:
    """A score is that of the model."""
    known = []
    for auxiliary in (False, True):
        part, batch = SHARDS.part(), SHARDS.batches(channel.size, channel.rank).batch(0)
        part.grads.fill(1)
        consensus = build(channel, Average(score="inverse_gradient_norm"))
        consensus.gradients(part, batch)
        if auxiliary:
            consensus.gradients(replace(part, name="head", auxiliary=True), batch)
        known.append({name: vector.tobytes() for name, (_, vector) in consensus.memory.items()})
    assert known[0] == known[1]


def test_a_replica_without_samples_brings_no_gradient_norm(channel: Channel) -> None:
    problem = Problem(source=clusters(channel.size * 2 - 1), batch=channel.size, deal="fixed")
    average = Average(score="inverse_gradient_norm", period=1)
    trained = train(problem, channel, build(channel, average), 2)
    if channel.size > 1:
        assert trained.meetings[1].weights[-1] == 0
        assert trained.meetings[1].reseeded == ()


# Degenerate cases


@pytest.mark.parametrize("name", CONSENSUSES)
def test_one_replica_is_serial_bit_for_bit(world: World, name: str) -> None:
    alone = world.channel("alone", color=world.rank)
    trained = train(NORMED, alone, CONSENSUSES[name]().build(alone, 2), STEPS)
    wanted = serial(NORMED, STEPS)
    assert trained.part.weights.tobytes() == wanted.weights.tobytes()
    assert trained.part.state.tobytes() == wanted.state.tobytes()
    assert trained.meetings == []
    assert alone.meter.counts == {}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("period", [1, 3])
def test_one_averaging_replica_is_serial_bit_for_bit(world: World, score: str, period: int) -> None:
    alone = world.channel("alone", color=world.rank)
    average = Average(score=score, period=period, mix=0.5, slots="reset")
    trained = train(SHARDS, alone, build(alone, average), STEPS)
    assert trained.part.weights.tobytes() == serial(SHARDS, STEPS).weights.tobytes()


@pytest.mark.parametrize("slots", ["keep", "average"])
def test_identical_shards_stay_serial(world: World, slots: str) -> None:
    channel = world.channel("replicas", ordered=True)
    problem = replace(NORMED, deal="same", batch=12 * channel.size)
    trained = train(problem, channel, build(channel, Average(slots=slots, period=2)), STEPS)
    wanted = serial(replace(problem, batch=12), STEPS)
    if channel.size <= 2:
        # halves add up without rounding
        assert trained.part.weights.tobytes() == wanted.weights.tobytes()
        assert trained.part.state.tobytes() == wanted.state.tobytes()
    np.testing.assert_allclose(trained.part.weights, wanted.weights, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(trained.part.state, wanted.state, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_meeting_every_step_is_gradient_averaging(channel: Channel, momentum: float) -> None:
    # with equal counts of samples, since each replica divides by its own
    problem = Problem(source=clusters(48), optimizer=SGD(rate=0.1, momentum=momentum))
    slots = "average" if momentum else "keep"
    trained = train(problem, channel, build(channel, Average(period=1, slots=slots)), STEPS)
    np.testing.assert_allclose(trained.part.weights, synchronous(problem, channel.size, STEPS).weights, **ROUNDED)


def test_meeting_every_step_with_own_momentum_is_gradient_averaging(channel: Channel) -> None:
    # the mean of the replicas' momenta is the momentum of their mean gradient, even if each keeps its own
    problem = Problem(source=clusters(48))
    trained = train(problem, channel, build(channel, Average(period=1, slots="keep")), STEPS)
    np.testing.assert_allclose(trained.part.weights, synchronous(problem, channel.size, STEPS).weights, **ROUNDED)


def test_meeting_less_often_is_something_else(channel: Channel) -> None:
    problem = Problem(source=clusters(48))
    trained = train(problem, channel, build(channel, Average(period=2)), STEPS)
    apart = np.abs(trained.part.weights - synchronous(problem, channel.size, STEPS).weights).max()
    assert (apart > 1e-4) == (channel.size > 1)


# What the mean is


@pytest.mark.parametrize("score", SCORES)
def test_the_mean_is_convex(channel: Channel, score: str) -> None:
    part = apart(SHARDS, channel)
    own = everywhere(channel, part.weights)
    one_meeting(SHARDS, channel, Average(score=score), part)
    slack = 8 * np.finfo(float).eps * np.abs(own).max(axis=0)
    assert (part.weights >= own.min(axis=0) - slack).all()
    assert (part.weights <= own.max(axis=0) + slack).all()
    if channel.size > 1:
        assert np.ptp(own, axis=0).max() > 1e-3
    rows = everywhere(channel, part.weights)
    assert all(row.tobytes() == rows[0].tobytes() for row in rows)


def test_the_best_is_copied(channel: Channel) -> None:
    part = apart(NORMED, channel)
    weights, state = everywhere(channel, part.weights), everywhere(channel, part.state)
    meeting = one_meeting(NORMED, channel, Average(score="best"), part)
    if meeting is None:
        assert channel.size == 1
        return
    best = int(np.argmax(meeting.scores))
    assert meeting.weights.tolist() == np.eye(channel.size)[best].tolist()
    assert part.weights.tobytes() == weights[best].tobytes()
    assert part.state.tobytes() == state[best].tobytes()


@pytest.mark.parametrize("score", ["uniform", "accuracy", "samples", "inverse_loss", "boltzmann"])
def test_permuted_replicas_have_permuted_weights(channel: Channel, score: str) -> None:
    average = Average(score=score, period=STEPS)
    straight, turned = (
        train(SHARDS, channel, build(channel, average), STEPS, shard=(channel.rank + shift) % channel.size)
        for shift in (0, 1)
    )
    np.testing.assert_allclose(straight.part.weights, turned.part.weights, **ROUNDED)
    for before, after in zip(straight.meetings, turned.meetings, strict=True):
        np.testing.assert_allclose(np.roll(before.weights, -1), after.weights, **ULPS)
    assert len(turned.meetings) == (channel.size > 1)


def test_every_replica_moves_the_mean_by_its_weight(channel: Channel) -> None:
    for moved in range(channel.size):
        means = []
        for distance in (0.0, 0.25):
            part = apart(SHARDS, channel)
            part.weights[5] += distance * (channel.rank == moved)
            # a score that the move does not change
            meeting = one_meeting(SHARDS, channel, Average(score="uniform"), part)
            means.append(part.weights.copy())
        share = 1.0 if meeting is None else meeting.weights[moved]
        expected = np.where(np.arange(part.weights.size) == 5, share * 0.25, 0.0)
        np.testing.assert_allclose(means[1] - means[0], expected, rtol=0, atol=1e-15)


def test_elastic_mix(channel: Channel) -> None:
    part = apart(SHARDS, channel)
    own = part.weights.copy()
    mean = everywhere(channel, own).mean(axis=0)
    one_meeting(SHARDS, channel, Average(mix=0.25), part)
    np.testing.assert_allclose(part.weights, own + 0.25 * (mean - own), **ULPS)


# Running statistics


def statistics(part: Part, mean: np.ndarray, variance: np.ndarray) -> None:
    views = part.state_views["hidden1"]["norm"]
    views["mean"][...], views["variance"][...] = mean, variance


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-5), ("float64", 1e-8)])
@pytest.mark.parametrize("offset", [0.0, 30.0, 3000.0])
def test_merged_statistics_are_those_of_all_samples(channel: Channel, dtype: str, limit: float, offset: float) -> None:
    problem = replace(NORMED, dtype=dtype)
    rng = np.random.default_rng(5)
    data = offset + np.linspace(0, 0.5, channel.size)[:, None, None] + rng.normal(size=(channel.size, 400, 9))
    part = problem.part()
    statistics(part, data[channel.rank].mean(axis=0), data[channel.rank].var(axis=0))
    one_meeting(problem, channel, Average(), part)
    views = part.state_views["hidden1"]["norm"]
    pooled = data.reshape(-1, 9)
    np.testing.assert_allclose(views["mean"], pooled.mean(axis=0), rtol=max(limit / 10, 2e-7), atol=2e-7)
    # means are stored in float32: their own rounding, of 1e-4 at 3000, shows in how far they are apart
    rounding = offset * np.finfo(dtype).eps
    np.testing.assert_allclose(views["variance"], pooled.var(axis=0), rtol=limit + rounding)


def test_equal_statistics_with_large_means_stay(channel: Channel) -> None:
    problem = replace(NORMED, dtype="float32")
    part = problem.part()
    rng = np.random.default_rng(6)
    mean, variance = (1e4 * rng.normal(size=9)).astype("f4"), rng.uniform(0.1, 1, 9).astype("f4")
    statistics(part, mean, variance)
    one_meeting(problem, channel, Average(), part)
    views = part.state_views["hidden1"]["norm"]
    np.testing.assert_allclose(views["mean"], mean, rtol=2e-7)
    # squares of means travel with 36 bits; rounding never makes a variance smaller than those that are merged
    assert (views["variance"] >= variance * (1 - 2e-7)).all()
    assert (views["variance"] <= variance * (1 + 2e-7) + np.square(mean, dtype="f8") * 2**-35).all()
