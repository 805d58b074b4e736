"""Training on replicas with the program's own schedule, update, consensus and measure."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np
from oracles import Average, Disturb, Problem, serial
from oracles import averaging as oracle

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel
from mpinn.config import Period
from mpinn.consensus.averaging import Averaging, AveragingOptions
from mpinn.consensus.consensus import Consensus, Meeting
from mpinn.models.mlp import MLP
from mpinn.nn.part import Part
from mpinn.schedules.serial import Serial
from mpinn.training.measure import ReplicaMeasure
from mpinn.training.update import OptimizerUpdate

ROUNDED = {"rtol": 1e-14, "atol": 1e-15}
"""A few units in the last place, which the order of a sum over replicas may change."""
MAGNIFIED = {"rtol": 1e-13, "atol": 5e-13}
"""What becomes of them where batch norms divide by the deviation of two or three samples, in every step again."""
SHARDS = Problem(deal="fixed")
"""Uneven shards: 50 samples, over 3 and 4 replicas too."""
NORMED = Problem(deal="fixed", model=MLP(widths=(9, 7), norm="batch"))
STEPS = 8
"""Not a multiple of the period: the replicas meet once more at the end."""


@dataclass(frozen=True)
class Trained:
    """What one rank has after a run."""

    part: Part
    meetings: Sequence[Meeting]


def train(
    problem: Problem,
    channel: Channel,
    consensus: Consensus,
    steps: int,
    disturb: Disturb | None = None,
    shard: int | None = None,
) -> Trained:
    """Train this rank's replica, with the data of ``shard`` if not its own; stops when no replica is finite."""
    shard = channel.rank if shard is None else shard
    part, batches = problem.part(), problem.batches(channel.size, shard)
    schedule = Serial(part, problem.loss, problem.seed)
    consensus.prepare(schedule.parts)
    update = OptimizerUpdate(consensus, problem.optimizer, problem.rate, problem.clip, schedule.parts)
    meetings: list[Meeting] = []
    for step in range(steps):
        if disturb:
            disturb(step, channel.rank, part)
        schedule.step(batches.batch(step), update)
        measure = ReplicaMeasure(schedule, problem.loss, batches, step + 1, problem.seed, channel.rank)
        meeting = consensus.weights(schedule.parts, step + 1, measure, last=step + 1 == steps)
        if meeting is not None:
            meetings.append(meeting)
            if meeting.weights is None:
                break
            schedule.met(channel.rank in meeting.reseeded)
    return Trained(part, meetings)


def averaging_of(channel: Channel, average: Average) -> Averaging:
    """The program's averaging with the oracle's options."""
    options = AveragingOptions(
        score=average.score,
        period=Period(f"{average.period} steps"),
        mix=average.mix,
        slots=average.slots,
        sharpness=average.sharpness,
        epsilon=average.epsilon,
        fisher_samples=average.fisher_samples,
        in_flight=average.in_flight,
    )
    return options.build(channel, steps_per_epoch=1)


def everywhere(channel: Channel, vector: Array) -> Array:
    """The vector of every rank: (R, size)."""
    rows = np.empty((channel.size, *vector.shape), vector.dtype)
    channel.all_gather(vector, rows).wait()
    return rows


def tolerance(problem: Problem) -> dict[str, float]:
    """How closely a trained model is that of the oracle."""
    return MAGNIFIED if problem.model.norm == "batch" else ROUNDED


def train_like_the_oracle(problem: Problem, channel: Channel, average: Average, **options: Disturb) -> Trained:
    consensus = averaging_of(channel, average)
    trained = train(problem, channel, consensus, STEPS, **options)
    parts, rounds = oracle(problem, channel.size, average, STEPS, **options)
    own, close = parts[channel.rank], tolerance(problem)
    assert len(trained.meetings) == len(rounds)
    for meeting, wanted in zip(trained.meetings, rounds, strict=True):
        np.testing.assert_allclose(meeting.scores, wanted.scores, **close)
        np.testing.assert_allclose(meeting.weights, wanted.weights, **close)
        assert abs(fsum(meeting.weights) - 1) <= np.finfo(float).eps
    np.testing.assert_allclose(trained.part.weights, own.weights, **close)
    np.testing.assert_allclose(trained.part.state, own.state, **close)
    for name, slot in trained.part.slots.items():
        np.testing.assert_allclose(slot, own.slots[name], **close)
    assert trained.part.counters[0] == own.counters[0]
    if rounds:
        np.testing.assert_allclose(consensus.merge, rounds[-1].weights, **close)
    return trained


def one_meeting(problem: Problem, channel: Channel, average: Average, part: Part) -> Meeting | None:
    """The replicas meet with what ``part`` is now: the mean is left in it."""
    schedule = Serial(part, problem.loss, problem.seed)
    batches = problem.batches(channel.size, channel.rank)
    measure = ReplicaMeasure(schedule, problem.loss, batches, average.period, problem.seed, channel.rank)
    return averaging_of(channel, average).weights(schedule.parts, average.period, measure, last=False)


def apart(problem: Problem, channel: Channel, steps: int = 4) -> Part:
    """A replica that has trained alone."""
    return serial(problem, steps, channel.size, channel.rank)
