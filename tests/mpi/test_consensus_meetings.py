"""What weighted averaging does with bad replicas, and which messages it sends."""

from dataclasses import replace

import numpy as np
import pytest
from oracles import Average, Problem, Replica, clusters, fisher, judge
from replicated import (
    NORMED,
    SHARDS,
    apart,
    everywhere,
    one_meeting,
    train,
    train_like_the_oracle,
)
from replicated import averaging_of as build

from mpinn.comm.channel import Channel
from mpinn.comm.grid import World
from mpinn.consensus.scores import SCORES
from mpinn.models.mlp import MLP
from mpinn.nn.optimizer import SGD, Adam
from mpinn.nn.part import Part
from mpinn.schedules.serial import Serial
from mpinn.training.measure import ReplicaMeasure
from mpinn.training.update import OptimizerUpdate

pytestmark = pytest.mark.mpi


@pytest.fixture
def channel(world: World) -> Channel:
    return world.channel("replicas")


# Bad replicas

TASK = Problem(
    source=clusters(240, noise=0.8), batch=48, deal="fixed", model=MLP(widths=(16,)), optimizer=SGD(rate=0.1)
)


@pytest.mark.parametrize("score", ["accuracy", "inverse_loss", "boltzmann", "inverse_error", "best"])
def test_a_poisoned_replica_weighs_least(channel: Channel, score: str) -> None:
    bad = channel.size - 1
    problem = replace(TASK, poisoned=frozenset({bad}))
    part = apart(problem, channel, 30)
    one = everywhere(channel, part.weights)
    meeting = one_meeting(problem, channel, Average(score=score), part)
    if meeting is None:
        assert channel.size == 1
        return
    assert meeting.scores.shape == (channel.size,)
    others = np.delete(meeting.weights, bad)
    assert (meeting.weights[bad] < others).all() if score != "best" else meeting.weights[bad] == 0
    if score == "best":
        assert part.weights.tobytes() == one[int(meeting.weights.argmax())].tobytes()


def test_accuracy_beats_uniform_with_a_poisoned_replica(channel: Channel) -> None:
    problem = replace(TASK, poisoned=frozenset({channel.size - 1}) if channel.size > 1 else frozenset())
    validation = problem.source.splits["validation"]
    losses = {}
    for score in ("accuracy", "uniform"):
        trained = train(problem, channel, build(channel, Average(score=score, period=5)), 30)
        losses[score] = judge(problem, trained.part, validation.x, validation.target)[0]
    assert losses["accuracy"] < losses["uniform"] or channel.size == 1


@pytest.mark.parametrize(
    ("score", "slots"), [*((score, "keep") for score in SCORES), ("samples", "reset"), ("accuracy", "average")]
)
def test_a_replica_that_is_not_finite_goes_on_from_the_mean(channel: Channel, score: str, slots: str) -> None:
    if channel.size == 1:
        assert not build(channel, Average()).masks
        return

    def break_one(step: int, replica: int, part: Part) -> None:
        if step == 1 and replica == 1:
            part.weights[3] = np.nan

    problem = replace(NORMED, optimizer=Adam(rate=1e-2, epsilon=1e-3))
    average = Average(score=score, slots=slots, mix=0.6)
    trained = train_like_the_oracle(problem, channel, average, disturb=break_one)
    assert [meeting.reseeded for meeting in trained.meetings] == [(1,), (), ()]
    assert trained.meetings[0].weights[1] == 0
    assert np.isnan(trained.meetings[0].scores[1])
    for vector in (trained.part.weights, trained.part.state, *trained.part.slots.values()):
        assert np.isfinite(vector).all()


@pytest.mark.parametrize("score", ["uniform", "samples", "fisher"])
def test_a_masked_replica_changes_no_bit_of_the_others(world: World, score: str) -> None:
    # what the last replica had before it became NaN must not show
    channel = world.channel("replicas", ordered=True)
    means = []
    for poison in (np.nan, np.inf):
        part = apart(NORMED, channel)
        if channel.rank == channel.size - 1:
            part.weights[:] = part.state[:] = poison
        one_meeting(NORMED, channel, Average(score=score), part)
        means.append(part.weights.tobytes())
    assert means[0] == means[1] or channel.size == 1


def test_slots_that_are_not_finite_are_not_averaged(channel: Channel) -> None:
    part = apart(SHARDS, channel)
    if channel.rank == 0:
        part.slots["momentum"][2] = np.inf
    meeting = one_meeting(SHARDS, channel, Average(slots="average"), part)
    if meeting is not None:
        assert meeting.reseeded == (0,)
        assert np.isfinite(part.slots["momentum"]).all()


def test_outputs_that_overflow_are_masked(channel: Channel) -> None:
    problem = replace(SHARDS, model=MLP(widths=(9, 7)))
    part = apart(problem, channel)
    if channel.rank == 0:
        part.weights *= 1e120
    with np.errstate(all="ignore"):
        meeting = one_meeting(problem, channel, Average(score="accuracy"), part)
    if meeting is not None:
        assert meeting.reseeded == (0,)
        assert np.abs(part.weights).max() < 1e3


def test_no_finite_replica_ends_the_averaging(channel: Channel) -> None:
    part = SHARDS.part()
    part.weights[0] = np.nan
    meeting = one_meeting(SHARDS, channel, Average(score="accuracy"), part)
    if meeting is not None:
        assert meeting.weights is None
        assert np.isnan(meeting.scores).all()


# Fisher


def test_constant_information_gives_the_uniform_mean(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReplicaMeasure, "fisher", lambda self, part, out, samples: out.fill(0.7))
    means = []
    for score in ("fisher", "uniform"):
        part = apart(NORMED, channel)
        one_meeting(NORMED, channel, Average(score=score), part)
        means.append((part.weights, part.state))
    np.testing.assert_allclose(means[0][0], means[1][0], rtol=1e-14, atol=1e-15)
    np.testing.assert_array_equal(means[0][1], means[1][1])


def test_information_that_overflows_counts_as_none(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    value = np.inf if channel.rank == 0 else 1.0
    monkeypatch.setattr(ReplicaMeasure, "fisher", lambda self, part, out, samples: out.fill(value))
    part = apart(SHARDS, channel)
    own = everywhere(channel, part.weights)
    one_meeting(SHARDS, channel, Average(score="fisher"), part)
    expected = own[1:].mean(axis=0) if channel.size > 1 else own[0]
    np.testing.assert_allclose(part.weights, expected, rtol=1e-4, atol=1e-4)


def test_fisher_estimate_is_the_mean_of_squared_sample_gradients(channel: Channel) -> None:
    part = apart(NORMED, channel)
    schedule = Serial(part, NORMED.loss, NORMED.seed)
    batches = NORMED.batches(channel.size, channel.rank)
    one = Replica(channel.rank, part, batches)
    for step, most in ((2, 1), (5, 7), (7, 1000)):
        measure = ReplicaMeasure(schedule, NORMED.loss, batches, step, NORMED.seed, channel.rank)
        out = np.full_like(part.weights, np.nan)
        measure.fisher(part, out, most)
        np.testing.assert_allclose(out, fisher(NORMED, one, most, step), rtol=1e-12, atol=1e-15)
        assert out.max() > 0


# Messages


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("problem", "slots"), [(SHARDS, "average"), (NORMED, "keep")], ids=["plain", "batch norm"])
def test_messages_are_exactly_those_stated(channel: Channel, score: str, slots: str, problem: Problem) -> None:
    consensus = build(channel, Average(score=score, slots=slots, period=4))
    part, batches = problem.part(), problem.batches(channel.size, channel.rank)
    schedule = Serial(part, problem.loss, problem.seed)
    update = OptimizerUpdate(consensus, problem.optimizer, problem.rate, 0.0, schedule.parts)
    # a mean travels with its tail, and with head and tail of its square
    channels = 9 + 7 if problem is NORMED else 0
    elements = part.weights.size + part.state.size + 3 * channels + part.weights.size * (slots == "average")
    expected: dict[str, tuple[int, int]] = {}
    vector = 8 * elements
    for step in range(8):
        schedule.step(batches.batch(step), update)
        assert channel.meter.counts == expected, "a message between meetings"
        measure = ReplicaMeasure(schedule, problem.loss, batches, step + 1, problem.seed, channel.rank)
        consensus.weights(schedule.parts, step + 1, measure, last=step == 7)
        if channel.size > 1 and step % 4 == 3:
            rounds = (step + 1) // 4
            expected = {"all_gather": (rounds, rounds * 8)}
            if score == "best":
                expected["broadcast"] = (rounds, rounds * vector)
            elif score == "fisher":
                expected["all_sum"] = (2 * rounds, rounds * (vector + 8 * part.weights.size))
            else:
                expected["all_sum"] = (rounds, rounds * vector)
        assert channel.meter.counts == expected
