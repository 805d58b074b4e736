"""What is counted between two lines of the log, and how the time of training is divided."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from mpinn.comm.channel import NullChannel
from mpinn.training import tally as module
from mpinn.training.tally import NEVER, Stopwatch, Tally


def gathered(tally: Tally) -> list[float]:
    """Summed loss, samples, and first bad step."""
    return list(tally.gather(NullChannel("control"))[0])


def test_losses_and_samples_add_up() -> None:
    tally = Tally()
    for step, loss, samples in ((3, 1.5, 10), (4, 2.25, 7), (5, 0.0, 0)):
        tally.add(step, np.array(loss), samples)
    tally.add(6, None, 9)  # this rank computes no loss
    assert gathered(tally) == [3.75, 17, NEVER]
    tally.clear()
    assert gathered(tally) == [0, 0, NEVER]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_loss_that_is_not_finite_is_remembered(bad: float) -> None:
    tally = Tally()
    for step, loss in ((7, 1.0), (8, bad), (9, 1.0), (10, bad)):
        tally.add(step, np.array(loss), 1)
    assert gathered(tally)[2] == 8
    tally.add(11, np.array(bad), 1)
    assert gathered(tally)[2] == 8


def test_a_loss_is_not_read_before_it_is_asked_for() -> None:
    class Unread(np.ndarray):
        reads = 0

        def __float__(self) -> float:
            Unread.reads += 1
            return float(self.item())

    tally = Tally()
    for step in range(5):
        tally.add(step, np.array(1.0).view(Unread), 1)
    assert Unread.reads == 0
    tally.settle()
    assert Unread.reads == 5


def test_a_vector_that_is_copied_goes_on_where_the_other_stopped() -> None:
    """A run that stops between two lines sums in the same order as one that does not: equal to the last bit."""
    losses = np.random.default_rng(0).normal(size=20)
    whole, first, second = Tally(), Tally(), Tally()
    for step, loss in enumerate(losses):
        whole.add(step, np.array(loss), 3)
        (first if step < 9 else second).add(step, np.array(loss), 3)
    first.settle()
    second.vector[:] = first.vector
    assert gathered(second) == gathered(whole)
    assert_array_equal(second.vector, whole.vector)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands at its only element."""
    now = [100.0]
    monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    return now


def test_time_is_training_or_other_or_before_the_start(clock: list[float]) -> None:
    channel = NullChannel("replicas")
    stopwatch = Stopwatch(channel, NullChannel("stages"), NullChannel("column"))
    for passed, mark in ((5, "start"), (2, "training"), (1, "other"), (4, "training"), (3, "other")):
        clock[0] += passed
        getattr(stopwatch, mark)()
    assert (stopwatch.times.training, stopwatch.times.other) == (6, 4)
    assert stopwatch.pace(5) == 2
    assert stopwatch.pace(0) == 10


def test_waits_of_one_rank_are_all_communicating(clock: list[float]) -> None:
    channel = NullChannel("replicas")
    stopwatch = Stopwatch(channel, NullChannel("stages"), NullChannel("column"))
    channel.meter.waited(channel.meter.begin(), 0.5)
    channel.meter.waited(channel.meter.begin(), 0.25)
    channel.meter.waited(None, 2)
    stopwatch.settle()
    stopwatch.settle()  # what is settled is not counted again
    assert stopwatch.times.communicating == 2.75
    assert stopwatch.times.waiting == 0
