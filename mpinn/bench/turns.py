"""Training on several ranks in turns: programs that are compared meet the same machine, whatever else it does."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter, process_time

import numpy as np

from mpinn.array.typing import Array, Dtype, Shape
from mpinn.bench.timing import Operation
from mpinn.comm.channel import NullChannel
from mpinn.comm.grid import World
from mpinn.consensus.consensus import Consensus, Qualities
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.nn.optimizer import Optimizer
from mpinn.nn.part import Part
from mpinn.schedules.schedule import Schedule
from mpinn.training.update import OptimizerUpdate


@dataclass(frozen=True)
class Contestant:
    """What one rank does in a turn, if anything, the processor time it has waited in all, and how it ends."""

    step: Operation | None = None
    waited: Callable[[], float] = lambda: 0.0
    end: Operation = lambda: None


@dataclass(frozen=True)
class Unscored:
    """The measure of replicas that meet without being scored."""

    schedule: Schedule

    def validation(self) -> Qualities:
        """Raises NotImplementedError."""
        raise NotImplementedError

    def shard(self) -> Qualities:
        """Raises NotImplementedError."""
        raise NotImplementedError

    def fisher(self, part: Part, out: Array, samples: int) -> None:
        """Raises NotImplementedError."""
        raise NotImplementedError

    def across(self, values: Array) -> Array:
        """The sum over the ranks of a replica."""
        return self.schedule.across(values)


def training(schedule: Schedule, optimizer: Optimizer, batch: Batch, consensus: Consensus | None = None) -> Contestant:
    """Steps of a schedule with the same samples over and over; its replica is alone if there is no consensus.

    Replicas that meet are not scored: how good they are must be of no consequence to them.
    """
    agreement: Consensus = consensus or Independent(NullChannel("alone"))
    agreement.prepare(schedule.parts)
    update = OptimizerUpdate(agreement, optimizer, lambda step: optimizer.rate, 0.0, schedule.parts)
    batches = _again(batch)

    def step() -> None:
        batch = next(batches)
        schedule.step(batch, update)
        agreement.weights(schedule.parts, batch.index + 1, Unscored(schedule), last=False)

    def end() -> None:
        schedule.drain(update)
        agreement.close()

    return Contestant(step, end=end)


def _again(batch: Batch) -> Iterator[Batch]:
    index = 0
    while True:
        yield replace(batch, index=index)
        index += 1


def random_batch(shape: Shape, classes: int, count: int, dtype: Dtype) -> Batch:
    """Random samples and classes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, *shape)).astype(dtype)
    return Batch(0, 0, x, rng.integers(0, classes, count), count, count, (0, 1), np.arange(count))


def in_turns(world: World, contestants: Sequence[Contestant], rounds: int, sample: float) -> Array:
    """(rounds, contestants, ranks, 2): wall and processor seconds of a step; called by all ranks.

    A turn of the first contestant lasts about ``sample`` seconds, and the others have as many steps.
    """
    for contestant in contestants:  # first steps compile, allocate and fill
        _turn(world, contestant, 2 * world.size - 1)
    steps = np.array([sample / max(_turn(world, contestants[0], 2)[0], 1e-6)])
    world.control.broadcast(steps, 0).wait()
    count = max(2, round(steps[0]))
    own = np.array([[_turn(world, contestant, count) for contestant in contestants] for _ in range(rounds)])
    every = np.empty((world.size, *own.shape))
    world.control.all_gather(own, every).wait()
    return every.transpose(1, 2, 0, 3)


def _turn(world: World, contestant: Contestant, steps: int) -> tuple[float, float]:
    """Wall and processor seconds of one step on this rank; a rank without work sleeps until the others are done."""
    world.control.barrier()
    if contestant.step is None:
        return 0.0, 0.0
    for _ in range(world.size - 1):  # until stages that wait for each other have found their distance
        contestant.step()
    wall, processor, waited = perf_counter(), process_time(), contestant.waited()
    for _ in range(steps):
        contestant.step()
    processor = process_time() - processor - (contestant.waited() - waited)
    return (perf_counter() - wall) / steps, processor / steps
