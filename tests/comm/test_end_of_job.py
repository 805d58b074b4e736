"""Jobs end at once when a rank fails, and with the agreed code when all leave together."""

import os
import signal
import subprocess
import time

import pytest
from launch import alone, descendants, finish, gone, mpirun, ranks_of, start

CONNECT = """
import os, signal, sys, threading, time
import numpy as np
from mpinn.comm.abort import install_abort_hook, leave
from mpinn.comm.launch import silence_other_ranks
silence_other_ranks()
install_abort_hook()
from mpinn.comm.grid import connect
world = connect()
"""
FAILURES = {
    "exception": "if world.rank == 1: raise ValueError('boom')\n",
    "thread": "if world.rank == 1: threading.Thread(target=lambda: [][0]).start(); time.sleep(60)\n",
    "in a collective": "if world.rank == 1: world.control.all_sum(np.zeros(4)[::2])\n",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_an_exception_on_one_rank_ends_the_job(failure: str) -> None:
    start = time.monotonic()
    job = mpirun(3, "-c", f"{CONNECT}{FAILURES[failure]}world.channel('others').barrier()")
    assert time.monotonic() - start < 15
    assert job.returncode not in (0, 75)
    assert job.stderr.count("rank 1 of 3 on ") == 1
    assert job.stderr.count("Traceback (most recent call last)") == 1
    assert "rank 0 of 3" not in job.stderr


def test_what_fails_while_the_job_is_ended_is_no_news() -> None:
    """As the main thread may, once another one has given up what it waited for."""
    both = """
from mpinn.comm import mpi
from mpinn.comm.abort import end_job
abort = mpi.abort
mpi.abort = lambda code: [time.sleep(1), abort(code)]
if world.rank == 1:
    threading.Thread(target=end_job, args=("the first\\n", 1), daemon=True).start()
    time.sleep(0.3)
    raise ValueError("the second")
world.control.barrier()
"""
    job = mpirun(2, "-c", CONNECT + both)
    assert job.returncode not in (0, 75)
    assert job.stderr.count("the first") == 1
    assert "the second" not in job.stderr


def test_an_exception_before_mpi_is_started_ends_the_job() -> None:
    fail = "from mpinn.comm.launch import read_launch\nif read_launch().rank == 1: raise ValueError('boom')\n"
    job = mpirun(3, "-c", CONNECT.replace("from mpinn.comm.grid", f"{fail}from mpinn.comm.grid"), timeout=30)
    assert job.returncode not in (0, 75)
    assert "ValueError: boom" in job.stderr


def test_the_keyboard_ends_the_job() -> None:
    job = mpirun(3, "-c", f"{CONNECT}if world.rank == 1: raise KeyboardInterrupt\nworld.control.barrier()")
    assert job.returncode == 130
    assert job.stderr.count("KeyboardInterrupt") == 1


def test_a_killed_rank_ends_the_job() -> None:
    job = start(
        3,
        "-u",
        "-c",
        f"{CONNECT}world.control.barrier()\nprint('here')\nworld.channel('c').split(0, 0, 'd')\n"
        "if world.rank == 1: time.sleep(60)\nworld.control.barrier()",
    )
    assert job.stdout is not None
    assert job.stdout.readline().strip() == "here"
    ranks = ranks_of(job)
    assert sorted(ranks) == [0, 1, 2]
    killed = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    ended = finish(job, timeout=30)
    assert time.monotonic() - killed < 15
    assert ended.returncode not in (0, 75)
    assert gone(ranks.values())


def test_a_rank_that_leaves_alone_ends_the_job() -> None:
    impatient = "import atexit\nfrom mpinn.comm import mpi\natexit.register(mpi.end_together, 0.5)\n"
    job = mpirun(3, "-c", f"{CONNECT}{impatient}if world.rank == 1: sys.exit(3)\nworld.control.barrier()", timeout=40)
    assert job.returncode not in (0, 75)
    assert "rank 1 has ended while others have not" in job.stderr


@pytest.mark.parametrize("code", [0, 2, 75])
def test_all_leave_with_the_agreed_code(code: int) -> None:
    job = mpirun(3, "-c", f"{CONNECT}print('result')\ntime.sleep(0.1 * world.rank)\nleave({code})")
    assert job.returncode == code
    assert job.stdout == "result\n"
    assert alone("-c", f"{CONNECT}leave({code})").returncode == code


def test_a_mistake_found_by_rank_0_is_told_once_and_all_leave_with_2() -> None:
    program = f"""{CONNECT}
from mpinn.config import InputError
def check():
    raise InputError("data.batch", "-1 is too small")
try:
    world.verdict(check)
except InputError as error:
    print(error, file=sys.stderr)
    leave(2)
"""
    job = mpirun(3, "-c", program)
    assert job.returncode == 2
    assert job.stderr.count("data.batch: -1 is too small") == 1


def test_a_job_that_hangs_is_killed_whole() -> None:
    job = start(2, "-u", "-c", f"{CONNECT}print('here')\ntime.sleep(60)")
    assert job.stdout is not None
    assert job.stdout.readline() == "here\n"
    ranks = descendants(job.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        finish(job, timeout=0.5)
    time.sleep(0.2)
    assert gone(ranks)
