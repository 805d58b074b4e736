"""Ranks of different speeds that stop and save at the same step, though none waits for another within an interval."""

import os
import signal
import time

import numpy as np
import pytest

from mpinn.comm.grid import World
from mpinn.signals import Signals
from mpinn.training import agreement
from mpinn.training.agreement import Agreement

pytestmark = pytest.mark.mpi
HORIZON = 0.03


def everyone(world: World, number: float) -> list[float]:
    """The numbers of all ranks."""
    found = np.empty((world.size, 1))
    world.control.all_gather(np.array([float(number)]), found).wait()
    return found[:, 0].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_all_act_at_the_same_step(seed: int, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank sleeps as it likes and asks when it likes: what is done is done by all at the same steps."""
    monkeypatch.setattr(agreement, "HORIZON", HORIZON)
    rng = np.random.default_rng([seed, world.rank])
    pace = float(rng.uniform(1e-4, 3e-3))
    asks_to_save = set(rng.integers(1, 60, 2).tolist())
    asker, asked_at = np.random.default_rng(seed).integers([0, 40], [world.size, 60])
    rolling, saves, due = Agreement(world.channel("agreement"), 0), [], False
    for step in range(1, 100_000):
        time.sleep(float(rng.exponential(pace)))
        due = due or step in asks_to_save
        stop, save = rolling.at(step, world.rank == asker and step >= asked_at, due, pace)
        if save:
            saves.append(step)
            due = False
        if stop:
            break
    rolling.close()
    assert step < 5000
    assert step >= asked_at or world.rank != asker
    assert len(set(everyone(world, step))) == 1
    assert len(set(everyone(world, float(hash(tuple(saves)))))) == 1
    most = sum(everyone(world, len(asks_to_save)))
    assert 1 <= len(saves) <= most


def test_one_request_is_one_save(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank whose time for a save has come asks at each step until it is done, and is answered once."""
    monkeypatch.setattr(agreement, "HORIZON", 0.0)
    rolling, saves = Agreement(world.channel("agreement"), 0), []
    due = world.rank == world.size - 1
    for step in range(1, 30):
        _, save = rolling.at(step, False, due, 1.0)
        if save:
            saves.append(step)
            due = False
    rolling.close()
    assert len(saves) == 1


def test_no_rank_waits_within_an_interval(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last rank enters an interval only when the others have told it that they are through: no deadlock."""
    monkeypatch.setattr(agreement, "HORIZON", 0.2)
    rolling = Agreement(world.channel("agreement"), 0)
    for step in range(1, 33):  # the boundaries are 1, 2, 4, 8, 16, 32, and then 52
        rolling.at(step, False, False, 0.01)
    last, word = world.size - 1, np.zeros(1)
    if world.rank == last:
        for rank in range(last):
            world.control.receive(word, rank).wait()
            assert word[0] == 51
    for step in range(33, 52):
        assert rolling.at(step, False, False, 0.01) == (False, False)
    if world.rank != last:
        world.control.send(np.array([float(step)]), last).wait()
    rolling.close()


def test_a_stop_is_acted_on_within_two_horizons(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "HORIZON", HORIZON)
    rolling, pace = Agreement(world.channel("agreement"), 0), 0.002
    asked = 50
    for step in range(1, 1000):
        stop, _ = rolling.at(step, world.rank == 0 and step >= asked, False, pace)
        if stop:
            break
    rolling.close()
    interval = int(HORIZON / pace)
    assert asked <= step <= asked + 2 * interval


@pytest.mark.parametrize(
    ("pace", "boundaries"),
    [
        (0.1, [1, 2, 4, 8, 16, 26, 36, 46, 56, 66, 76, 86, 96]),
        (0.4, [1, *range(2, 101, 2)]),
        (5.0, list(range(1, 101))),
        (0.0, list(range(1, 101))),
        (1e-9, [1, 2, 4, 8, 16, 32, 64]),
    ],
)
def test_the_slowest_rank_sets_the_length_of_an_interval(
    pace: float, boundaries: list[int], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interval takes the slowest rank HORIZON seconds; it is at least a step, and at most twice the one before."""
    monkeypatch.setattr(agreement, "HORIZON", 1.0)
    channel = world.channel("agreement")
    rolling, found = Agreement(channel, 0), []
    mine = pace if world.rank == world.size - 1 else pace / 10
    for step in range(1, 101):
        before = channel.meter.counts.get("all_max")
        rolling.at(step, False, False, mine)
        if channel.meter.counts.get("all_max") != before:
            found.append(step)
    rolling.close()
    assert found == (boundaries if world.size > 1 else [])


def test_signals_set_the_flag_and_go_on_doing_so() -> None:
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        for number in numbers:
            signals = Signals()
            signals.listen()
            assert signals.received is None
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            assert signals.received == number
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
