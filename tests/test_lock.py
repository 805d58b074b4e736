"""One job at a time trains in a run directory."""

import errno
import fcntl
import os
import re
import signal
import time
from pathlib import Path
from threading import Thread

import h5py
import pytest
from launch import finish, start
from train_jobs import SMALL, arguments, contents, here, records, train, wait_for

from mpinn.errors import InputError
from mpinn.run.checks import Request, check, prepare
from mpinn.storage.lock import Lock, check_free

STOPPED = 75


@pytest.mark.parametrize("asked", [(), ("--fresh",), ("data.batch=100",)])
def test_a_directory_in_which_a_job_trains_is_refused_and_left_alone(
    asked: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, lock = tmp_path / "run", Lock()
    assert here(run, *SMALL, stop_after=5) == STOPPED
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert lock.take(run / "lock") == ""
    before = contents(tmp_path)
    job = train(2, run, *SMALL, *asked)
    assert (job.returncode, job.stdout) == (2, "")
    told = rf"mpinn: run.directory: {run} is being trained by pid {os.getpid()} on host .*, job 4711 \(since 2.*\)\n"
    assert re.fullmatch(told, job.stderr)
    assert contents(tmp_path) == before
    lock.release()
    assert here(run, *SMALL) == 0


def test_the_lock_is_taken_before_anything_is_written_and_what_was_found_still_holds(tmp_path: Path) -> None:
    """Between looking and locking another job may begin, or even end."""
    run, lock = tmp_path / "run", Lock()
    assert here(run, *SMALL, stop_after=5) == STOPPED
    begin = check(Request(overrides=(f"run.directory={run}", *SMALL)), 1)
    lock.take(run / "lock")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"^run.directory: .* is being trained by pid "):
        prepare(begin)
    assert contents(tmp_path) == before
    lock.release()
    assert here(run, *SMALL) == 0
    told = (run / "summary.json").read_text()
    with pytest.raises(InputError, match=r"^run.directory: another job has just trained in "):
        prepare(begin)
    begin.lock.release()
    assert (run / "summary.json").read_text() == told


def test_a_run_leaves_no_lock_and_a_file_that_was_left_is_none(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "lock").write_text("pid 1 on host gone, which was killed before it had written anything else")
    assert here(run, *SMALL, fresh=True, stop_after=5) == STOPPED
    assert not (run / "lock").exists()
    (run / "lock").write_text("pid 1 on host gone")
    assert here(run, *SMALL) == 0
    assert list(tmp_path.rglob("lock")) == []


def test_a_lock_whose_file_was_moved_is_taken_where_it_should_be(tmp_path: Path) -> None:
    first, second, path = Lock(), Lock(), tmp_path / "lock"
    first.take(path)
    path.rename(tmp_path / "aside")
    second.take(path)
    first.release()
    with pytest.raises(InputError, match="is being trained by"):
        first.take(path)
    second.release()
    assert not path.exists()


def test_where_there_are_no_locks_the_log_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    run = tmp_path / "run"
    assert here(run, *SMALL) == 0
    assert f"{run} cannot be locked on this file system: see that no other job trains in it" in capsys.readouterr().out
    assert not (run / "lock").exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_a_run_goes_on_and_is_read(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    class File(h5py.File):
        def __init__(self, name: object, mode: str, locking: bool | str | None = None, **options: object):
            if locking:
                raise OSError(code, f"Unable to synchronously open file (unable to lock file, errno = {code})")
            super().__init__(name, mode, locking=locking, **options)

    run = tmp_path / "run"
    assert here(run, *SMALL, stop_after=5) == STOPPED
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(h5py, "File", File)
    assert here(run, *SMALL) == 0
    assert [line["step"] for line in records(run) if "loss" in line] == [4, 8, 12, 16, 18]


def test_who_comes_just_after_a_lock_is_taken_waits_until_it_says_by_whom(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def name() -> None:
            time.sleep(0.2)
            held.write("pid 7 on host late")
            held.flush()

        late = Thread(target=name)
        late.start()
        with pytest.raises(InputError, match=r"is being trained by pid 7 on host late$"):
            check_free(tmp_path / "lock")
        late.join()


def test_a_lock_that_says_nothing_is_held_by_another_job(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"is being trained by another job$"):
            Lock().take(tmp_path / "lock")


def test_of_two_jobs_that_start_at_once_in_one_directory_one_trains(tmp_path: Path) -> None:
    run = tmp_path / "run"
    long = ("model.widths=[12]", "train.epochs=100000", "optimizer.decay=constant", "train.log=7 steps")
    jobs = [start(2, *arguments(run, *long, "checkpoint.every=15 steps")) for _ in range(2)]
    deadline = time.monotonic() + 60
    while all(job.poll() is None for job in jobs) and time.monotonic() < deadline:
        time.sleep(0.01)
    refused, trains = sorted(jobs, key=lambda job: job.poll() is None)
    ended = finish(refused)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"mpinn: run.directory: {run} is being trained by pid ")
    wait_for(run / "latest", trains)
    trains.send_signal(signal.SIGUSR1)
    assert finish(trains).returncode == STOPPED
    steps = [line["step"] for line in records(run) if "loss" in line]
    assert steps == list(range(7, steps[-1] + 1, 7))
