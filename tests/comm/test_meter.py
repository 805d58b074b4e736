"""Counting and the division of time."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from mpinn.comm.channel import DONE, MessageError, NullChannel
from mpinn.comm.meter import DeviceMeter, Meter, split_time


def test_counts_by_operation() -> None:
    meter = Meter()
    meter.count("send", 8)
    meter.count("send", 16)
    meter.count("all_sum", 4)
    assert meter.counts == {"send": (2, 24), "all_sum": (1, 4)}


def test_waits_stand_in_the_order_of_operations_whatever_the_order_of_waiting() -> None:
    meter = Meter()
    first, second = meter.begin(), meter.begin()
    meter.waited(second, 2.0)
    meter.waited(first, 1.0)
    meter.waited(second, 0.5)
    meter.waited(None, 7.0)
    collectives, messages = meter.drain()
    assert collectives.tolist() == [1.0, 2.5]
    assert messages.tolist() == [7.0]


def test_draining_forgets_operations_that_are_under_way() -> None:
    meter = Meter()
    old = meter.begin()
    meter.drain()
    new = meter.begin()
    meter.waited(old, 1.0)
    meter.waited(new, 2.0)
    assert meter.drain()[0].tolist() == [2.0]


class Wait:
    """A wait of a device's; reading it before it is over means to wait for it."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self.done = self.read = False

    def seconds(self) -> float:
        self.read = True
        return self._seconds


def test_what_a_device_waits_is_counted_when_it_has_waited() -> None:
    meter, waits = DeviceMeter(), [Wait(2.0**k) for k in range(6)]
    for k, index in ((1, meter.begin()), (0, meter.begin())):
        meter.waits(index, waits[k])
    # what has just been asked for is not waited for
    assert_array_equal(meter.drain()[0], [])
    assert not any(wait.read for wait in waits)
    meter.waited(meter.begin(), 0.25)
    waits[1].done = True
    meter.waits(meter.begin(), waits[2])
    assert [wait.read for wait in waits[:3]] == [False, True, False]
    waits[0].done = True
    meter.waits(meter.begin(), waits[3])
    assert [wait.read for wait in waits[:4]] == [True, True, False, False]
    # what was begun before the last call is due, whatever the device is at
    collectives, messages = meter.drain()
    assert_array_equal(collectives, [2, 1])
    assert not messages.size
    assert not waits[2].read
    meter.waits(meter.begin(), waits[4])
    assert_array_equal(meter.drain()[0], [0.25, 4, 8])
    assert not waits[4].read
    meter.waits(meter.begin(), waits[5])
    assert_array_equal(meter.drain(last=True)[0], [16, 32])
    assert_array_equal(meter.drain(last=True)[0], [])


def test_the_last_rank_to_arrive_waits_for_nobody() -> None:
    everywhere = np.array([[0.5, 0.1], [0.1, 0.4], [0.2, 0.1]])
    times = [split_time(own, everywhere) for own in everywhere]
    np.testing.assert_allclose(times, [(0.2, 0.4), (0.2, 0.3), (0.2, 0.1)])
    with pytest.raises(ValueError, match="do not match"):
        split_time(np.zeros(3), everywhere)


def test_one_rank_alone_sends_nothing() -> None:
    channel = NullChannel("alone")
    array, into = np.arange(3), np.zeros((1, 3), int)
    assert channel.all_sum(array) is channel.all_max(array) is channel.broadcast(array, 0) is DONE
    assert channel.all_gather(array, into).test()
    channel.barrier()
    assert into.tolist() == [[0, 1, 2]]
    assert array.tolist() == [0, 1, 2]
    assert channel.split(0, 0, "part").name == "part"
    assert channel.meter.counts == {}


def test_one_rank_alone_refuses_what_several_would() -> None:
    channel = NullChannel("alone")
    with pytest.raises(MessageError, match="one rank is alone"):
        channel.send(np.zeros(1), 0)
    with pytest.raises(MessageError, match="one rank is alone"):
        channel.receive(np.zeros(1), 0)
    with pytest.raises(MessageError, match="not contiguous"):
        channel.all_sum(np.zeros((4, 4))[:, 1])
    with pytest.raises(MessageError, match=r"needs int64 \(1, 3\)"):
        channel.all_gather(np.arange(3), np.zeros((1, 4), int))
    with pytest.raises(MessageError, match="the ranks are 0 to 0"):
        channel.broadcast(np.zeros(1), 1)
