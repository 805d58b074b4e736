"""Ranks that are stopped or hang: they are found and named, the others say where they are, and the job ends."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launch import finish, gone, open_mpi, open_mpi_library, ranks_of, start
from train_jobs import arguments, here, records, train, wait_for, world

from mpinn.run.watchdog import Watchdog
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import newest

STOPPED = 75
PATIENCE = 3
LONG = (
    *("model.widths=[12,12]", "train.epochs=100000", "optimizer.decay=constant", "train.log=7 steps"),
    *("checkpoint.every=15 steps", f"run.patience={PATIENCE}"),
)
DEADLOCK = (
    "lock, mutex = ctypes.PyDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64); lock(mutex); lock(mutex)"
)
STUCK = """
import ctypes, os, signal, sys, time
from mpinn.cli.main import main
from mpinn.comm.launch import read_launch
from mpinn.schedules.pipeline import Pipeline
from mpinn.schedules.serial import Serial
for schedule in (Serial, Pipeline):
    def stuck(self, batch, update, step=schedule.step):
        if batch.index == 32 and read_launch().rank == RANK:
            HANG
        return step(self, batch, update)
    schedule.step = stuck
main(sys.argv[1:])
"""


def ended(job: subprocess.Popen[str], ranks: dict[int, int]) -> str:
    """What a job says that the watchdog ends; no process of it is left."""
    begun = time.monotonic()
    done = finish(job, timeout=60)
    assert time.monotonic() - begun < 10 * PATIENCE
    assert done.returncode not in (0, 2, STOPPED)
    assert gone(ranks.values())
    report = re.search(rf"^no progress for {PATIENCE} s: the job is ended$(.*)", done.stderr, re.M | re.S)
    assert report, done.stderr
    assert done.stderr.count("no progress") == 1
    return report[1]


def by_rank(said: str) -> dict[int, str]:
    """What a report tells of each rank."""
    found = {}
    for spans, told in re.findall(r"^ranks? ([\d, -]+): (.*)$", said, re.M):
        for span in spans.split(", "):
            first, _, last = span.partition("-")
            found.update(dict.fromkeys(range(int(first), int(last or first) + 1), told))
    return found


def goes_on(ranks: int, run: Path, *settings: str) -> None:
    """The next start goes on from the newest checkpoint, in which nothing is wrong."""
    found = newest(run, pytest.fail)
    assert found is not None
    with Checkpoint(found) as checkpoint:
        checkpoint.verify()
        step = checkpoint.step
    again = train(ranks, run, *LONG, *settings, "--stop-after", str(step + 5))
    assert again.returncode == STOPPED, again.stderr
    assert f"at step {step}\n" in again.stdout
    steps = [line["step"] for line in records(run) if "loss" in line]
    assert steps == list(range(7, steps[-1] + 1, 7))


def halt(run: Path, ranks: int, which: int, *settings: str) -> str:
    """Stop a rank of a job that trains; what the watchdog of the others says of it."""
    job = start(ranks, *arguments(run, *LONG, *settings))
    wait_for(run / "checkpoint-00000045.h5", job)
    processes = ranks_of(job)
    os.kill(processes[which], signal.SIGSTOP)
    return ended(job, processes)


@pytest.mark.parametrize("which", [0, 2])
def test_a_stopped_rank_is_named_and_the_others_say_where_they_are(which: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = halt(run, 4, which, "consensus.name=gradients")
    told = by_rank(said)
    assert told.pop(which) == "no answer, dead or stopped"
    assert sorted(told) == sorted({0, 1, 2, 3} - {which})
    for what in told.values():
        assert re.fullmatch(r"after step \d+ waits in \w+: (all_\w+|broadcast|(receive from|send to) rank \d)", what)
    assert f"\nthe stacks are in {run}/stacks-1\n" in said
    assert {path.name for path in (run / "stacks-1").iterdir()} == {f"rank-{r}.txt" for r in {0, 1, 2, 3} - {which}}
    for path in (run / "stacks-1").iterdir():
        assert re.search(r'File ".*mpinn/training/trainer\.py", line \d+ in run\n', path.read_text())
    goes_on(4, run, "consensus.name=gradients")


def stick(run: Path, ranks: int, which: int, hang: str, *settings: str) -> subprocess.CompletedProcess[str]:
    """Run a job in which a rank does not come beyond step 32, to its end."""
    program = STUCK.replace("HANG", hang).replace("RANK", str(which))
    job = start(ranks, "-c", program, *arguments(run, *LONG, *settings)[2:])
    wait_for(run / "checkpoint-00000030.h5", job)
    processes = ranks_of(job)
    done = finish(job, timeout=60)
    assert done.returncode not in (0, 2, STOPPED)
    assert gone(processes.values())
    return done


def test_a_stopped_stage_is_the_peer_for_which_its_neighbour_waits(tmp_path: Path) -> None:
    run, settings = tmp_path / "run", ("schedule.name=naive", "grid.stages=2", "consensus.name=gradients")
    said = stick(run, 4, 3, "os.kill(os.getpid(), signal.SIGSTOP)", *settings).stderr
    assert "\nrank 3: no answer, dead or stopped\n" in said
    assert "\nrank 2: after step 32 waits in stages: receive from rank 3\n" in said
    assert "\nranks 0-1: after step 32 waits in replicas: all_sum\n" in said
    goes_on(4, run, *settings)


@pytest.mark.parametrize(
    ("hang", "found", "answers"),
    [
        ("time.sleep(1000)", "rank 1: after step 32 does not wait for a message", True),
        (DEADLOCK, "rank 1: no answer, dead or stopped", False),
    ],
    ids=["in Python", "holding its lock"],
)
def test_a_rank_that_hangs_writes_its_stack(hang: str, found: str, answers: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = stick(run, 3, 1, hang)
    assert f"\n{found}\n" in done.stderr
    assert re.search(r"\nranks 0, 2: after step \d+ waits in ", done.stderr)
    assert {path.name for path in (run / "stacks-1").iterdir()} == {
        f"rank-{r}.txt" for r in ([0, 1, 2] if answers else [0, 2])
    }
    if answers:
        assert "in stuck\n" in (run / "stacks-1/rank-1.txt").read_text()
    else:
        assert re.search(r'Stack .*File "<string>", line \d+ in stuck\n', done.stderr, re.S)


def test_a_job_that_was_suspended_goes_on(tmp_path: Path) -> None:
    """All ranks for longer than they have patience, and one rank for less."""
    run = tmp_path / "run"
    job = start(2, *arguments(run, *LONG))
    wait_for(run / "checkpoint-00000015.h5", job)
    ranks = ranks_of(job)
    for who, seconds in ((ranks, 1.5 * PATIENCE), ([1], 0.5 * PATIENCE)):
        for rank in who:
            os.kill(ranks[rank], signal.SIGSTOP)
        time.sleep(seconds)
        for rank in who:
            os.kill(ranks[rank], signal.SIGCONT)
        time.sleep(0.5 * PATIENCE)
    job.send_signal(signal.SIGUSR1)
    done = finish(job)
    assert done.returncode == STOPPED, done.stderr
    assert "no progress" not in done.stderr
    assert list(run.glob("stacks-*")) == []


def test_a_stack_that_is_written_after_a_suspension_ends_no_job(tmp_path: Path) -> None:
    """Each rank writes its own, since another thread might read it while it changes, and crash."""
    run = tmp_path / "run"
    job = start(2, *arguments(run, *LONG, "run.patience=1"))
    wait_for(run / "checkpoint-00000015.h5", job)
    ranks = ranks_of(job).values()
    for _ in range(8):
        for sign, seconds in ((signal.SIGSTOP, 1.2), (signal.SIGCONT, 0.05)):
            for rank in ranks:
                os.kill(rank, sign)
            time.sleep(seconds)
    job.send_signal(signal.SIGUSR1)
    done = finish(job)
    assert done.returncode == STOPPED, done.stderr
    assert "Stack (most recent call first)" in done.stderr


@pytest.mark.parametrize(("patience", "watched"), [(0.0, False), (600.0, True)])
def test_it_can_be_switched_off(patience: float, watched: bool, tmp_path: Path) -> None:
    from dataclasses import replace
    from threading import enumerate as threads

    with Watchdog(replace(world(), size=2), patience, tmp_path):
        assert ("watchdog" in [thread.name for thread in threads()]) == watched
    assert "watchdog" not in [thread.name for thread in threads()]


def test_another_patience_is_no_other_run(tmp_path: Path) -> None:
    small = ("model.widths=[12]", "train.epochs=1")
    assert here(tmp_path / "run", *small, stop_after=3) == STOPPED
    assert here(tmp_path / "run", *small, "run.patience=5") == 0


@pytest.mark.open_mpi
def test_under_open_mpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPINN_TEST_MPIRUN", str(Path(open_mpi() or "") / "bin/mpirun"))
    monkeypatch.setenv("MPI4PY_LIBMPI", str(open_mpi_library()))
    said = halt(tmp_path / "run", 3, 1)
    assert "\nrank 1: no answer, dead or stopped\n" in said
    assert re.search(r"\nranks? 0(, 2)?: after step \d+ waits in ", said)
    goes_on(3, tmp_path / "run")
