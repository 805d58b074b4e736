"""Training on replicas with the program's own schedule, update, consensus and measure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from oracles import Average, Disturb, Problem

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel
from mpinn.config import Period
from mpinn.consensus.averaging import Averaging, AveragingOptions
from mpinn.consensus.consensus import Consensus, Meeting
from mpinn.measure import ReplicaMeasure
from mpinn.nn.part import Part
from mpinn.schedules.serial import Serial
from mpinn.update import OptimizerUpdate


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
    return Trained(part, meetings)


def averaging(channel: Channel, average: Average) -> Averaging:
    """The program's averaging with the oracle's options."""
    options = AveragingOptions(
        score=average.score,
        period=Period(f"{average.period} steps"),
        mix=average.mix,
        slots=average.slots,
        sharpness=average.sharpness,
        epsilon=average.epsilon,
        fisher_samples=average.fisher_samples,
    )
    return options.build(channel, steps_per_epoch=1)


def everywhere(channel: Channel, vector: Array) -> Array:
    """The vector of every rank: (R, size)."""
    rows = np.empty((channel.size, *vector.shape), vector.dtype)
    channel.all_gather(vector, rows).wait()
    return rows
