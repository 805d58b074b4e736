"""The main job, a resumed run and a signal under Open MPI, where it is installed beside MPICH.

One mpi4py serves both: MPI4PY_LIBMPI names the library that it loads.
"""

import signal
from pathlib import Path

import pytest
from launch import finish, mpirun, open_mpi, open_mpi_library, start
from train_jobs import SMALL, arguments, differences, summary, train, wait_for

pytestmark = pytest.mark.open_mpi
STOPPED = 75


@pytest.fixture(autouse=True)
def _under_open_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = open_mpi()
    assert prefix is not None
    monkeypatch.setenv("MPINN_TEST_MPIRUN", str(prefix / "bin/mpirun"))
    monkeypatch.setenv("MPI4PY_LIBMPI", str(open_mpi_library()))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_main_job(ranks: int, tmp_path: Path) -> None:
    job = mpirun(ranks, "-m", "mpinn", cwd=tmp_path)
    assert job.returncode == 0, job.stderr
    lines = job.stdout.splitlines()
    assert lines[0].startswith(f"mpinn 0.1.0: {ranks} rank")
    assert "Open MPI" in lines[0]
    assert sum(line.startswith("test  ") for line in lines) == 1
    found = summary(tmp_path / "runs/digits")
    assert found["grid"] == [ranks, 1, 1]
    assert found["test"]["accuracy"] >= 0.96


def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    settings = (*SMALL, "model.norm=batch", "consensus.period=4 steps")
    assert train(2, whole, *settings).returncode == 0
    job = train(2, stopped, *settings, "--stop-after", "9")
    assert job.returncode == STOPPED, job.stderr
    assert (stopped / "requeue").exists()
    assert train(2, stopped, *settings).returncode == 0
    assert differences(stopped / "latest", whole / "latest") == ["configuration"]


def test_a_signal_to_the_launcher_stops_the_job_with_its_state_saved(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = start(2, *arguments(run, "model.widths=[12]", "train.epochs=100000", "checkpoint.every=50 steps"))
    wait_for(run / "latest", job)
    job.send_signal(signal.SIGUSR1)
    assert finish(job, timeout=30).returncode == STOPPED
    assert (run / "requeue").exists()


def test_a_mistake_is_told_once_and_all_leave_with_2(tmp_path: Path) -> None:
    job = train(2, tmp_path / "run", "train.epoch=1")
    assert job.returncode == 2
    assert job.stderr.count("train.epoch: unknown key (did you mean epochs?)") == 1
    assert not (tmp_path / "run").exists()
