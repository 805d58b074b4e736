"""Synchronous data parallelism against plain SGD on the whole batch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from oracles import Problem, clusters, serial, synchronous
from replicated import everywhere, train

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel, Pending
from mpinn.comm.grid import World
from mpinn.consensus.gradients import Gradients, GradientsOptions
from mpinn.datasets.batches import Batch
from mpinn.models.mlp import MLP
from mpinn.nn.optimizer import SGD, Adam, AdamW, Optimizer
from mpinn.nn.part import Part
from mpinn.schedules.serial import Serial
from mpinn.training.update import OptimizerUpdate

pytestmark = pytest.mark.mpi

WHOLE = 2**22
CLOSE = {"rtol": 1e-12, "atol": 1e-13}
STEPS = 11
"""Two epochs of the default problem and more: with 50 samples in batches of 12, two batches are ragged."""

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(rate=0.2, momentum=0.0),
    "momentum": SGD(rate=0.1),
    "nesterov": SGD(rate=0.1, nesterov=True, weight_decay=1e-2),
    "adam": Adam(rate=1e-2, weight_decay=1e-2, decay_all=True, epsilon=1e-3),
    "adamw": AdamW(rate=1e-2, weight_decay=0.1, epsilon=1e-3),
}


@pytest.fixture
def channel(world: World) -> Channel:
    return world.channel("replicas")


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_equals_sgd_on_the_whole_batch(channel: Channel, name: str, clip: float) -> None:
    problem = Problem(optimizer=OPTIMIZERS[name], clip=clip)
    trained = train(problem, channel, Gradients(channel, WHOLE), STEPS)
    alone = serial(problem, STEPS)
    np.testing.assert_allclose(trained.part.weights, alone.weights, **CLOSE)
    for slot, vector in trained.part.slots.items():
        np.testing.assert_allclose(vector, alone.slots[slot], **CLOSE)
    rows = everywhere(channel, trained.part.weights)
    assert all(row.tobytes() == rows[0].tobytes() for row in rows)
    if channel.size == 1:
        assert trained.part.weights.tobytes() == alone.weights.tobytes()


def test_clipping_clips(channel: Channel) -> None:
    clipped, free = (train(Problem(clip=c), channel, Gradients(channel, WHOLE), 3).part.weights for c in (0.3, 0.0))
    assert not np.allclose(clipped, free, rtol=1e-3)


def test_dropout_masks_follow_the_global_batch(channel: Channel) -> None:
    problem = Problem(model=MLP(widths=(9, 7), dropout=0.4))
    trained = train(problem, channel, Gradients(channel, WHOLE), STEPS)
    np.testing.assert_allclose(trained.part.weights, serial(problem, STEPS).weights, **CLOSE)


@pytest.mark.parametrize(
    ("samples", "batch", "what"),
    [
        (300, 128, "128 samples over 3 replicas, then a ragged 44"),
        (25, 8, "a last batch of one sample: all ranks but one have none"),
        (9, 2, "batches smaller than the number of replicas"),
    ],
)
def test_uneven_shares(channel: Channel, samples: int, batch: int, what: str) -> None:
    problem = Problem(source=clusters(samples), batch=batch, optimizer=OPTIMIZERS["momentum"])
    trained = train(problem, channel, GradientsOptions(bucket=1e-4).build(channel, 1), STEPS)
    np.testing.assert_allclose(trained.part.weights, serial(problem, STEPS).weights, **CLOSE)


def test_sums_in_the_order_of_ranks_equal_the_oracle_bit_for_bit(world: World) -> None:
    channel = world.channel("ordered", ordered=True)
    problem = Problem(optimizer=OPTIMIZERS["adam"])
    trained = train(problem, channel, Gradients(channel, WHOLE), STEPS)
    # the oracle's loop adds to zeros, which changes no bit
    assert trained.part.weights.tobytes() == synchronous(problem, channel.size, STEPS).weights.tobytes()


@pytest.mark.parametrize("bucket", [8, 100, 1000, 3000])
def test_buckets_change_nothing_and_are_as_many_as_stated(channel: Channel, bucket: int) -> None:
    problem = Problem(source=clusters(40), batch=3)
    trained = train(problem, channel, Gradients(channel, bucket), 4)
    counts = dict(channel.meter.counts)
    whole = train(problem, channel, Gradients(channel, WHOLE), 4)
    np.testing.assert_allclose(trained.part.weights, whole.part.weights, **CLOSE)
    size = trained.part.grads.size
    if channel.size > 1:
        assert counts == {"all_sum": (4 * -(-size // (bucket // 8)), 4 * size * 8)}
    else:
        assert counts == {}


class Traced:
    """A channel that notes when a sum starts, and where in the vector it lies."""

    def __init__(self, channel: Channel, events: list[tuple[str, int]]):
        self._channel, self._events = channel, events
        self.rank, self.size = channel.rank, channel.size
        self.base = 0

    def all_sum(self, array: Array) -> Pending:
        self._events.append(("sum", (array.__array_interface__["data"][0] - self.base) // array.itemsize))
        return self._channel.all_sum(array)


class TracedUpdate(OptimizerUpdate):
    """An update that notes when a layer's gradient is complete."""

    def __init__(self, events: list[tuple[str, int]], *args: Any):
        super().__init__(*args)
        self._events = events

    def ready(self, part: Part, span: slice) -> None:
        self._events.append(("finish", span.start))
        super().ready(part, span)

    def __call__(self, part: Part, batch: Batch) -> None:
        self._events.append(("backward ends", 0))
        super().__call__(part, batch)


def test_buckets_leave_while_the_backward_pass_runs(channel: Channel) -> None:
    problem = Problem()
    part = problem.part()
    events: list[tuple[str, int]] = []
    traced = Traced(channel, events)
    traced.base = part.grads.__array_interface__["data"][0]
    schedule = Serial(part, problem.loss, problem.seed)
    largest_layer = 64 * 8
    consensus = Gradients(traced, largest_layer)
    update = TracedUpdate(events, consensus, problem.optimizer, problem.rate, 0.0, schedule.parts)
    schedule.step(problem.batches(channel.size, channel.rank).batch(0), update)
    finished = [place for kind, place in events if kind == "finish"]
    assert finished == sorted(finished, reverse=True)
    assert len(finished) == 3
    sums = [i for i, (kind, _) in enumerate(events) if kind == "sum"]
    if channel.size == 1:
        assert not sums
        return
    assert sums[0] < events.index(("finish", finished[1])), "the last layer's gradient waits for the one below it"
    for i in sums:
        complete = min((place for kind, place in events[:i] if kind == "finish"))
        assert events[i][1] >= complete, "a bucket left before all of it was complete"
    assert events[-1][0] != "finish"


def test_a_replica_of_less_than_all_ranks(world: World) -> None:
    channel = world.channel("pairs", color=world.rank // 2)
    problem = replace(Problem(), batch=7)
    trained = train(problem, channel, Gradients(channel, 256), STEPS)
    np.testing.assert_allclose(trained.part.weights, serial(problem, STEPS).weights, **CLOSE)


def test_a_gradient_is_completed_from_its_end_and_wholly(channel: Channel) -> None:
    problem, consensus = Problem(), Gradients(channel, WHOLE)
    part, batch = problem.part(), problem.batches(channel.size, channel.rank).batch(0)
    size = part.grads.size
    if channel.size == 1:
        assert consensus.gradients(part, batch) == batch.total
        return
    consensus.ready(part, slice(64, size))
    with pytest.raises(ValueError, match="from its end"):
        consensus.ready(part, slice(0, 32))
    with pytest.raises(ValueError, match="incomplete below element 64"):
        consensus.gradients(part, batch)
