"""Weighted model averaging against the oracle, its degenerate cases, and what it does with bad replicas."""

from dataclasses import replace
from math import fsum

import numpy as np
import pytest
from oracles import Average, Disturb, Problem, Replica, averaging, clusters, fisher, judge, serial, synchronous
from replicated import Trained, everywhere, train
from replicated import averaging as build

from mpinn.comm.channel import Channel
from mpinn.comm.grid import World
from mpinn.consensus.consensus import Meeting
from mpinn.consensus.registry import CONSENSUSES
from mpinn.consensus.scores import SCORES
from mpinn.measure import ReplicaMeasure
from mpinn.models.mlp import MLP
from mpinn.nn.optimizer import SGD, Adam
from mpinn.nn.part import Part
from mpinn.schedules.serial import Serial
from mpinn.update import OptimizerUpdate

pytestmark = pytest.mark.mpi

CLOSE = {"rtol": 1e-11, "atol": 1e-12}
ULPS = {"rtol": 8 * np.finfo(float).eps, "atol": 8 * np.finfo(float).eps}
SHARDS = Problem(deal="fixed")
"""Uneven shards: 50 samples, over 3 and 4 replicas too."""
NORMED = Problem(deal="fixed", model=MLP(widths=(9, 7), norm="batch"))
STEPS = 8
"""Not a multiple of the period: the replicas meet once more at the end."""


@pytest.fixture
def channel(world: World) -> Channel:
    return world.channel("replicas")


def train_like_the_oracle(problem: Problem, channel: Channel, average: Average, **options: Disturb) -> Trained:
    consensus = build(channel, average)
    trained = train(problem, channel, consensus, STEPS, **options)
    parts, rounds = averaging(problem, channel.size, average, STEPS, **options)
    own = parts[channel.rank]
    assert len(trained.meetings) == len(rounds)
    for meeting, wanted in zip(trained.meetings, rounds, strict=True):
        np.testing.assert_allclose(meeting.scores, wanted.scores, **CLOSE)
        np.testing.assert_allclose(meeting.weights, wanted.weights, **CLOSE)
        assert abs(fsum(meeting.weights) - 1) <= np.finfo(float).eps
    np.testing.assert_allclose(trained.part.weights, own.weights, **CLOSE)
    np.testing.assert_allclose(trained.part.state, own.state, **CLOSE)
    for name, slot in trained.part.slots.items():
        np.testing.assert_allclose(slot, own.slots[name], **CLOSE)
    assert trained.part.counters[0] == own.counters[0]
    if rounds:
        np.testing.assert_allclose(consensus.merge, rounds[-1].weights, **CLOSE)
    return trained


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
    np.testing.assert_allclose(trained.part.weights, synchronous(problem, channel.size, STEPS).weights, **CLOSE)


def test_meeting_every_step_with_own_momentum_is_gradient_averaging(channel: Channel) -> None:
    # the mean of the replicas' momenta is the momentum of their mean gradient, even if each keeps its own
    problem = Problem(source=clusters(48))
    trained = train(problem, channel, build(channel, Average(period=1, slots="keep")), STEPS)
    np.testing.assert_allclose(trained.part.weights, synchronous(problem, channel.size, STEPS).weights, **CLOSE)


def test_meeting_less_often_is_something_else(channel: Channel) -> None:
    problem = Problem(source=clusters(48))
    trained = train(problem, channel, build(channel, Average(period=2)), STEPS)
    apart = np.abs(trained.part.weights - synchronous(problem, channel.size, STEPS).weights).max()
    assert (apart > 1e-4) == (channel.size > 1)


# What the mean is


def one_meeting(problem: Problem, channel: Channel, average: Average, part: Part) -> Meeting | None:
    """The replicas meet with what ``part`` is now: the mean is left in it."""
    schedule = Serial(part, problem.loss, problem.seed)
    batches = problem.batches(channel.size, channel.rank)
    measure = ReplicaMeasure(schedule, problem.loss, batches, average.period, problem.seed, channel.rank)
    return build(channel, average).weights(schedule.parts, average.period, measure, last=False)


def apart(problem: Problem, channel: Channel, steps: int = 4) -> Part:
    """A replica that has trained alone."""
    return serial(problem, steps, channel.size, channel.rank)


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
    np.testing.assert_allclose(straight.part.weights, turned.part.weights, **CLOSE)
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
