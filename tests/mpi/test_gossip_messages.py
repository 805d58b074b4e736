"""Which messages gossip sends, when they leave, and when they are waited for."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from consensus_oracles import mixing
from replicated import SHARDS, STEPS, train
from test_gossip import FORMS, build, degree

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel, Pending
from mpinn.comm.grid import World
from mpinn.consensus.graphs import GRAPHS
from mpinn.nn.optimizer import SGD
from mpinn.schedules.serial import Serial
from mpinn.training.update import OptimizerUpdate

pytestmark = pytest.mark.mpi


@pytest.fixture
def channel(world: World) -> Channel:
    return world.channel("replicas")


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("period", [1, 3])
def test_messages_are_exactly_those_stated(channel: Channel, graph: str, form: str, period: int) -> None:
    part = train(SHARDS, channel, build(channel, graph, form, period), STEPS).part
    count = STEPS // period * degree(channel, graph)
    expected = dict.fromkeys(("receive", "send"), (count, count * part.weights.nbytes)) if count else {}
    assert channel.meter.counts == expected


@dataclass
class Noted:
    """A message that notes when it is waited for."""

    pending: Pending
    events: list[str]
    what: str

    def wait(self) -> None:
        self.events.append(f"wait {self.what}")
        self.pending.wait()

    def test(self) -> bool:
        return self.pending.test()


@dataclass
class Watched:
    """A channel that notes what is asked of it, with no operation but messages between two ranks."""

    channel: Channel
    events: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rank, self.size = self.channel.rank, self.channel.size

    def send(self, array: Array, to: int) -> Noted:
        self.events.append(f"send {to}")
        return Noted(self.channel.send(array, to), self.events, f"send {to}")

    def receive(self, into: Array, source: int) -> Noted:
        self.events.append(f"receive {source}")
        return Noted(self.channel.receive(into, source), self.events, f"receive {source}")


@pytest.mark.parametrize("form", FORMS)
def test_messages_leave_early_and_are_waited_for_late(channel: Channel, form: str) -> None:
    watched = Watched(channel)
    consensus = build(watched, "ring", form)
    part, batches = SHARDS.part(), SHARDS.batches(channel.size, channel.rank)
    schedule = Serial(part, SHARDS.loss, SHARDS.seed)
    consensus.prepare(schedule.parts)

    class Told(SGD):
        def apply(self, *arguments: Any) -> None:
            watched.events.append("apply")
            super().apply(*arguments)

    update = OptimizerUpdate(consensus, Told(), SHARDS.rate, 0.0, schedule.parts)
    around = GRAPHS["ring"](channel.size, channel.rank)
    leave = [f"{what} {r}" for what in ("receive", "send") for r in around]
    wait = [f"wait {event}" for event in leave]
    for step in range(3):
        watched.events.append("forward")
        schedule.step(batches.batch(step), update)
        consensus.weights(schedule.parts, step + 1, None, last=step == 2)
    if form == "adapt_then_combine":
        expected = ["forward", "apply", *leave, *wait] * 3
    else:
        step = ["forward", *wait, "apply"]
        expected = ["forward", *leave, *wait, "apply", *leave, *step, *leave, *step]
    assert watched.events == expected
    assert watched.channel.meter.counts.keys() <= {"send", "receive"}


def test_a_mix_is_foreseen_and_comes_with_the_next_update_whatever_its_batches(channel: Channel) -> None:
    consensus = build(channel, "ring", "combine_then_adapt", period=3)
    part, batches = SHARDS.part(), SHARDS.batches(channel.size, channel.rank)
    part.weights[:] = channel.rank
    parts = {part.name: part}
    consensus.prepare(parts)
    update = OptimizerUpdate(consensus, SHARDS.optimizer, SHARDS.rate, 0.0, parts)
    joined = channel.size > 1
    update(part, batches.batch(1))  # its gradients are zero
    assert (part.weights == channel.rank).all()
    consensus.weights(parts, 2, None, last=False)
    assert not joined or channel.under_way
    update(part, batches.batch(3))
    assert not joined or not channel.under_way
    np.testing.assert_allclose(part.weights, mixing("ring", channel.size)[channel.rank] @ np.arange(channel.size))
    consensus.weights(parts, 4, None, last=False)
    assert not joined or not channel.under_way
    consensus.close()


def test_nothing_is_under_way_any_more_when_other_members_take_the_place_of_some(channel: Channel) -> None:
    consensus = build(channel, "ring", "combine_then_adapt")
    part = SHARDS.part()
    consensus.prepare({part.name: part})
    consensus.weights({part.name: part}, 1, None, last=False)
    assert channel.size == 1 or channel.under_way
    other = SHARDS.part()
    consensus.prepare({other.name: other})
    assert channel.size == 1 or not channel.under_way
    consensus.close()
