"""Fault drills on whole jobs: killed ranks, killed saves, a full disk, a bug on one rank, a run that diverges."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import h5py
import pytest
from launch import alone, finish, gone, mpirun, ranks_of, start, start_alone
from train_jobs import SMALL, arguments, datasets, differences, here, records, series, train, wait_for

from mpinn.config import Data
from mpinn.datasets.hdf5 import digits
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import newest

STOPPED = 75
LONG = ("model.widths=[12]", "train.epochs=100000", "optimizer.decay=constant", "train.log=7 steps")
"""A run that ends by a fault only."""
SAVES_OFTEN = (*SMALL, "checkpoint.every=3 steps", "checkpoint.keep=9")
PROGRAM = "import sys; from mpinn.cli.main import main; main(sys.argv[1:])"
LIMIT = "from mpinn.comm import mpi; import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))"
LIMITED = f"{LIMIT}; {PROGRAM}"
"""No file may grow beyond LARGEST bytes, from when MPI has made its own."""


def step_of(run: Path) -> int:
    """The step of the newest checkpoint, in which nothing is wrong.

    Whoever writes one may be killed between its entry and its name, which says so: there is no file then.
    """

    def told(line: str) -> None:
        if "listed in checkpoints.json, but missing" not in line:
            pytest.fail(line)

    found = newest(run, told)
    assert found is not None
    with Checkpoint(found) as checkpoint:
        checkpoint.verify()
        return checkpoint.step


def whole(run: Path, log: int) -> None:
    """The metrics have every line of the log, once and in order."""
    steps = [line["step"] for line in records(run) if "loss" in line]
    assert steps == list(range(log, steps[-1] + 1, log))


@pytest.mark.parametrize(("count", "which"), [(2, 0), (3, 1), (4, 3)])
def test_a_killed_rank_ends_the_job_which_goes_on_from_its_last_checkpoint(
    count: int, which: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = start(count, *arguments(run, *LONG, "checkpoint.every=15 steps"))
    wait_for(run / "checkpoint-00000045.h5", job)
    ranks, killed = ranks_of(job), time.monotonic()
    os.kill(ranks[which], signal.SIGKILL)
    ended = finish(job, timeout=30)
    assert time.monotonic() - killed < 15
    assert ended.returncode not in (0, 2, STOPPED)
    assert gone(ranks.values())
    assert not (run / "requeue").exists()
    step = step_of(run)
    assert step >= 45
    again = train(count, run, *LONG, "checkpoint.every=15 steps", "--stop-after", str(step + 10))
    assert again.returncode == STOPPED
    assert f"at step {step}\n" in again.stdout
    assert step_of(run) == step + 10
    whole(run, 7)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The directories of a run on three ranks that stopped after 10 steps, and of the same that was never stopped."""
    place = tmp_path_factory.mktemp("stopped")
    series(3, (place / "stopped", SAVES_OFTEN, 10), (place / "never", SAVES_OFTEN, 0))
    return place / "stopped", place / "never"


@pytest.mark.parametrize("then", [3, 2, 4])
def test_a_truncated_checkpoint_is_named_and_the_one_before_it_taken(
    then: int, stopped: tuple[Path, Path], tmp_path: Path
) -> None:
    """On as many ranks as before the end is that of a run that was never stopped."""
    run, never = tmp_path / "run", stopped[1]
    shutil.copytree(stopped[0], run, symlinks=True)
    newest_file = run / "checkpoint-00000010.h5"
    os.truncate(newest_file, random.Random(then).randrange(newest_file.stat().st_size))
    again = train(then, run, *SAVES_OFTEN)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(f"{newest_file}: ") == 1
    assert "trying the checkpoint before it" in again.stdout
    assert f"resumed from {run / 'checkpoint-00000009.h5'} at step 9" in again.stdout
    found = differences(run / "latest", never / "latest")
    assert found == ["configuration"] if then == 3 else "configuration" in found
    assert [line["step"] for line in records(run)] == [line["step"] for line in records(never)]


@pytest.mark.parametrize("ranks", [0, 3])
def test_data_that_are_damaged_while_a_run_reads_them_end_it_with_one_message(ranks: int, tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / "data.h5"
    source = digits(Data(), 0)
    with h5py.File(path, "w") as file:
        for name, split in source.splits.items():
            file.create_dataset(f"{name}/x", data=split.x[:], chunks=(1, *split.x.shape[1:]), fletcher32=True)
            file[f"{name}/target"] = split.target
        place = file["train/x"].id.get_chunk_info(500).byte_offset
        file.attrs.update({"mean": source.mean, "std": source.std, "classes": source.classes})
    settings = (*SMALL, "data.name=hdf5", f"data.path={path}", "data.memory=0", "checkpoint.every=6 steps")
    assert here(run, *settings, stop_after=6) == STOPPED
    sound = path.read_bytes()
    path.write_bytes(sound[: place + 3] + bytes([sound[place + 3] ^ 1]) + sound[place + 4 :])
    ended = train(ranks, run, *settings)
    assert ended.returncode == 1
    assert ended.stderr.count(f"mpinn: {path}:/train/x: sample ") == 1
    assert "500, or one soon after it, cannot be read: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert step_of(run) in (6, 12)
    path.write_bytes(sound)
    assert here(run, *settings) == 0
    assert [line["step"] for line in records(run) if "loss" in line] == [4, 8, 12, 16, 18]


def test_a_signal_to_the_launcher_stops_the_job_with_its_state_saved(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = start(2, *arguments(run, *LONG, "checkpoint.every=15 steps"))
    wait_for(run / "checkpoint-00000015.h5", job)
    job.send_signal(signal.SIGUSR1)
    ended = finish(job, timeout=30)
    assert (ended.returncode, ended.stderr) == (STOPPED, "")
    assert (run / "requeue").exists()
    assert ended.stdout.count("stopped with the state saved; the same command goes on from ") == 1
    step = step_of(run)
    again = train(2, run, *LONG, "checkpoint.every=15 steps", "--stop-after", str(step + 1))
    assert again.returncode == STOPPED
    assert step_of(run) == step + 1
    whole(run, 7)


def test_a_job_that_is_killed_while_it_saves_keeps_a_good_checkpoint(tmp_path: Path) -> None:
    """Killed five times, at any moment of a run that saves after every step, it never goes back behind a checkpoint."""
    run, chance = tmp_path / "run", random.Random(0)
    settings = ("model.widths=[300,300]", *LONG[1:], "checkpoint.every=1 step", "checkpoint.keep=2")
    step, during = 0, 0
    for _ in range(5):
        job = start_alone(*arguments(run, *settings))
        wait_for(run / f"checkpoint-{step + 2:08d}.h5", job)
        time.sleep(chance.uniform(0, 0.1))
        os.kill(job.pid, signal.SIGKILL)
        assert finish(job).returncode == -signal.SIGKILL
        during += bool(list(run.glob(".*.partial")))
        said: list[str] = []
        found = newest(run, said.append)
        assert found is not None
        assert all("missing" in line for line in said), said  # listed, but not yet named, is as far as a kill may get
        with Checkpoint(found) as checkpoint:
            checkpoint.verify()
            assert checkpoint.step >= step + 2
            step = checkpoint.step
    assert during > 0
    assert here(run, *settings, stop_after=step + 1) == STOPPED
    assert step_of(run) == step + 1
    assert list(run.glob(".*.partial")) == []
    whole(run, 7)


def test_a_full_disk_ends_the_job_with_one_message_and_loses_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ("model.widths=[300]", *SMALL[1:])
    assert here(run, *small, stop_after=9) == STOPPED
    held = {path.name: path.read_bytes() for path in run.glob("checkpoint-*.h5")}
    # a checkpoint is larger than that and all else is smaller
    job = mpirun(2, "-c", LIMITED.replace("LARGEST", "65536"), *arguments(run, *small)[2:])
    assert job.returncode not in (0, 2, STOPPED)
    assert job.stderr.count("File too large") == 1
    assert job.stderr.startswith(f"mpinn: {run}: the checkpoint was not saved: ")
    assert "Traceback" not in job.stderr
    assert {path.name: path.read_bytes() for path in run.glob("checkpoint-*.h5")} == held
    assert list(run.glob(".*.partial")) == []
    assert step_of(run) == 9
    assert here(run, *small) == 0
    assert [line["step"] for line in records(run) if "loss" in line] == [4, 8, 12, 16, 18]


@pytest.mark.parametrize("name", ["summary.json", "requeue"])
def test_a_last_file_that_cannot_be_written_is_one_message_and_loses_nothing(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # The file's temporary name is taken by a folder, after what a killed run has left was removed.
    taken = f"""
from mpinn.training.trainer import Trainer
run = Trainer.run
def blocked(self):
    outcome = run(self)
    (self.keeper.directory.path / ".{name}.partial").mkdir(exist_ok=True)
    return outcome
Trainer.run = blocked
"""
    stop = ("--stop-after", "9") if name == "requeue" else ()
    job = mpirun(2, "-c", taken + PROGRAM, *arguments(run, *SMALL, *stop)[2:])
    assert job.returncode == 1
    told = "cannot be written: Is a directory; the state is saved, the same command goes on from it"
    assert job.stderr == f"mpinn: {run / name}: {told}\n"
    assert step_of(run) == (9 if stop else 18)
    assert not (run / "lock").exists()
    (run / f".{name}.partial").rmdir()
    assert here(run, *SMALL) == 0
    assert (run / "summary.json").exists()
    assert [line["step"] for line in records(run) if "loss" in line] == [4, 8, 12, 16, 18]


def test_a_disk_that_is_full_at_the_start_is_one_message(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert here(run, *SMALL, stop_after=9) == STOPPED
    held = {path.name: path.read_bytes() for path in run.iterdir()}
    job = mpirun(2, "-c", LIMITED.replace("LARGEST", "200"), *arguments(run, *SMALL)[2:])
    assert (job.returncode, job.stderr) == (2, f"mpinn: run.directory: '{run}' cannot be written: File too large\n")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == held
    assert here(run, *SMALL) == 0


def test_metrics_that_cannot_be_opened_are_one_message(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fails = """
from mpinn.storage import history
def full(path):
    raise OSError(28, "No space left on device")
history._drop_torn_line = full
"""
    job = mpirun(2, "-c", fails + PROGRAM, *arguments(run, *SMALL)[2:])
    told = f"{run / 'metrics.jsonl'}: the metrics were not written: No space left on device"
    assert (job.returncode, job.stderr) == (1, f"mpinn: {told}\n")
    assert here(run, *SMALL) == 0


def test_metrics_that_outgrow_the_disk_end_the_job_with_one_message(tmp_path: Path) -> None:
    run = tmp_path / "run"
    long = ("train.log=1 step", "train.epochs=1000", "model.widths=[2]", "checkpoint.every=300 steps")
    job = alone("-c", LIMITED.replace("LARGEST", "150000"), *arguments(run, *long)[2:])
    assert job.returncode == 1
    assert job.stderr.startswith(f"mpinn: {run / 'metrics.jsonl'}: the metrics were not written: File too large")
    assert job.stderr.count("\n") == 1
    assert step_of(run) % 300 == 0


def test_an_exception_on_one_rank_ends_the_job_at_once(tmp_path: Path) -> None:
    faulty = """
from mpinn.comm.launch import read_launch
from mpinn.schedules.serial import Serial
step = Serial.step
def fails(self, batch, update):
    if batch.index == 5 and read_launch().rank == 2:
        raise ZeroDivisionError("a bug")
    return step(self, batch, update)
Serial.step = fails
"""
    begun = time.monotonic()
    job = mpirun(3, "-c", faulty + PROGRAM, *arguments(tmp_path / "run", *SMALL)[2:], timeout=30)
    assert time.monotonic() - begun < 20
    assert job.returncode not in (0, 2, STOPPED)
    assert job.stderr.count("rank 2 of 3 on ") == 1
    assert job.stderr.count("ZeroDivisionError: a bug") == 1
    assert job.stderr.count("Traceback") == 1


def test_a_run_that_diverges_says_so_once_and_fails(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = train(2, run, *SMALL, "consensus.name=gradients", "optimizer.rate=1e30")
    assert job.returncode == 1
    assert job.stderr.startswith("mpinn: step ")
    assert "is not finite; noticed at step 4, when the first layer that is not finite is hidden1. " in job.stderr
    assert "optimizer.rate" in job.stderr
    assert job.stderr.count("\n") == 1
    assert datasets(Path(job.stderr.rpartition("The state is in ")[2].strip()))["model/network/hidden1/weight"].size
    assert newest(run, pytest.fail) is None
