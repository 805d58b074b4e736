"""Preparing ahead: the same items in any order, one at a time, with errors where they belong, and an end."""

import signal
import subprocess
import sys
import threading
import time
from threading import Event

import pytest

from mpinn.datasets.ahead import Ahead


def test_any_order_gives_the_same():
    made = []
    ahead = Ahead(lambda step: made.append(step) or f"item {step}")
    for step in (0, 1, 2, 7, 8, 3, 3, 0):
        assert ahead(step) == f"item {step}"
    assert made[:5] == [0, 1, 2, 3, 7]


def test_the_next_is_made_while_this_one_is_in_use():
    made = {step: Event() for step in range(5)}
    ahead = Ahead(lambda step: made[step].set() or threading.current_thread())
    assert ahead(0) is threading.main_thread()
    assert made[1].wait(10)
    assert not made[2].is_set()
    assert ahead(1) is not threading.main_thread()


def test_never_two_at_the_same_time():
    busy = threading.Lock()

    def make(step: int) -> int:
        assert busy.acquire(blocking=False)
        time.sleep(0.002)
        busy.release()
        return step

    ahead = Ahead(make)
    for step in (0, 1, 5, 2, 3, 3, 9, 9, 10):
        assert ahead(step) == step


def test_an_error_is_raised_by_the_call_that_asks_for_the_step():
    def make(step: int) -> int:
        if step == 2:
            raise OSError("the file is gone")
        return step

    ahead = Ahead(make)
    assert [ahead(0), ahead(1)] == [0, 1]
    with pytest.raises(OSError, match="the file is gone"):
        ahead(2)
    assert ahead(1) == 1
    assert ahead(5) == 5
    with pytest.raises(OSError, match="the file is gone"):
        ahead(2)


def test_the_thread_ends_with_the_object():
    others = set(threading.enumerate())
    ahead = Ahead(lambda step: step)
    ahead(0)
    (thread,) = set(threading.enumerate()) - others
    del ahead
    thread.join(10)
    assert not thread.is_alive()


def test_the_thread_takes_no_signals():
    ahead = Ahead(lambda step: signal.pthread_sigmask(signal.SIG_BLOCK, []))
    assert signal.SIGUSR1 not in ahead(0)
    assert {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT} <= ahead(1)


def test_the_program_ends_whatever_is_being_made():
    code = "from mpinn.datasets.ahead import Ahead; import time; a = Ahead(lambda s: time.sleep(0.3 * s)); a(0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
