"""The second thread: where what runs, and what of it reaches the main one."""

import threading

import numpy as np
import pytest

from mpinn.schedules.beside import Beside


def test_the_work_runs_in_a_thread_and_its_result_is_seen_to_in_the_main_one() -> None:
    beside, go, seen = Beside(), threading.Event(), []

    def work() -> threading.Thread:
        go.wait(10)
        return threading.current_thread()

    beside.begin(work, lambda thread: seen.append((thread, threading.current_thread())))
    beside.poll()
    assert seen == []
    go.set()
    polls = []
    beside.finish(lambda: (polls.append(1), beside.poll()))
    ((thread, asked),) = seen
    assert thread is not threading.main_thread()
    assert asked is threading.main_thread()
    assert polls
    beside.finish(lambda: pytest.fail("nothing is running"))


def test_what_the_work_raises_is_raised_in_the_main_thread() -> None:
    beside = Beside()
    beside.begin(lambda: 1 / 0, lambda result: pytest.fail("there is no result"))
    with pytest.raises(ZeroDivisionError):
        beside.finish(beside.poll)
    beside.finish(lambda: pytest.fail("nothing is running"))


def test_numpy_treats_overflow_as_in_the_main_thread() -> None:
    found = []
    for how in ("ignore", "raise"):
        beside = Beside()
        with np.errstate(all=how):  # type: ignore[call-overload]
            beside.begin(np.geterr, found.append)
        beside.finish(beside.poll)
    assert [state["over"] for state in found] == ["ignore", "raise"]
