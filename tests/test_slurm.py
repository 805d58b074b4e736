"""Batch jobs under a real Slurm: they stop in time, requeue themselves, and end as if they had not been stopped.

All jobs are submitted at once, to a node that is said to have cores enough.
"""

import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import slurm
from launch import ROOT, alone
from slurm import Slurm, until
from train_jobs import SMALL, arguments, differences, records, summary, train

from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import newest

SETTINGS = (
    *("model.widths=[12]", "data.batch=200", "train.epochs=40", "train.log=4 steps", "train.evaluate=1 epoch"),
    "checkpoint.every=10 steps",
)
"""240 steps."""
SLOW = """
import os
if "SLURM_JOB_ID" in os.environ and "SLURM_RESTART_COUNT" not in os.environ:
    import time
    from mpinn.schedules.serial import Serial
    step = Serial.step
    def slow(self, batch, update):
        time.sleep(0.5)
        return step(self, batch, update)
    Serial.step = slow
"""
"""A job is slow until it is requeued, so that it is still there when it is told to stop."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if why := slurm.missing():
        pytest.skip(f"there is no Slurm here: {why}")
    started = slurm.start(tmp_path_factory.mktemp("slurm"))
    yield started
    started.stop()


@dataclass(frozen=True)
class Jobs:
    """What was submitted from the folder ``place``; ``killed`` has lost a rank meanwhile."""

    place: Path
    limited: str
    sweep: str
    scaling: str
    submitted: str
    killed: str

    def log(self, name: str) -> str:
        return (self.place / f"mpinn-{name}.log").read_text()


def options(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="module")
def jobs(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    place = tmp_path_factory.mktemp("submitted")
    shutil.copytree(ROOT / "jobs", place / "jobs")
    (place / "sitecustomize.py").write_text(SLOW)
    (place / "jobs/digits.sweep").write_text("'train.log=5 steps' optimizer.rate=0.05\nrun.seed=0\n")
    env = {
        **cluster.environment,
        **here(place),
    }

    def submit(*words: str, **more: str) -> str:
        return cluster.call("sbatch", "--parsable", *words, *options(*SETTINGS), env={**env, **more}, cwd=place)

    limit = ("--ntasks-per-node=2", "--time=1", "--signal=B:USR1@59")
    limited = submit(*limit, "jobs/train.sbatch", "jobs/digits.toml", "--fresh")
    sweep = submit("--array=1-2", "jobs/array.sbatch", "jobs/digits.toml", MPINN_LAUNCHER="mpirun")
    wanted = ("--ranks-per-node", "2", "--time", "10:00", *options(*SETTINGS, "run.directory=runs/with blanks"))
    told = alone("-m", "mpinn", "submit", "jobs/digits.toml", *wanted, env=env, cwd=place)
    found = re.match(r"job (\d+) is submitted", told.stdout)
    assert found, told.stderr
    scaling = submit("jobs/scaling.sbatch", "jobs/synchronous.toml", COUNTS="1 2", SLURM_RESTART_COUNT="")
    killed = submit(
        "--ntasks-per-node=2", *["jobs/train.sbatch", "jobs/digits.toml", "--set", "run.directory=runs/killed"]
    )
    saved = place / "runs/killed/checkpoint-00000010.h5"
    until(saved.exists, lambda: f"there is no {saved}")
    os.kill(process_of(killed, 1), signal.SIGKILL)
    # before Slurm lets it start again, with a minute that may not be enough
    cluster.wait(limited, "PENDING", Restarts="1")
    cluster.call("scontrol", "update", f"JobId={limited}", "TimeLimit=9")
    cluster.hurry(limited)
    return Jobs(place, limited, sweep, scaling, found[1], killed)


def here(place: Path) -> dict[str, str]:
    """What finds Python and the program."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {"PATH": path, "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])}


def process_of(job: str, rank: int) -> int:
    """The process that is a rank of a job."""
    wanted, found = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}"}, []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            named = wanted <= set((process / "environ").read_text(errors="replace").split("\0"))
            if named and b"mpinn" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train(2, run, *SETTINGS).returncode == 0
    return run


def equal(run: Path, whole: Path) -> None:
    """A run has ended as one that was not stopped, and its metrics have every line once and in order."""
    assert summary(run)["start"] > 0
    assert differences(run / "latest", whole / "latest") == ["configuration"]
    assert [line["step"] for line in records(run) if "loss" in line] == list(range(4, 241, 4))
    assert not (run / "requeue").exists()


def trains(run: Path) -> None:
    """Wait until a run has logged a loss."""
    metrics = run / "metrics.jsonl"
    until(lambda: metrics.exists() and '"loss"' in metrics.read_text(), lambda: f"{run} does not train")


def said(log: str) -> list[str]:
    """What the script says in a log, from its restarts too, without times and places."""
    found = re.findall(r"^== .* job \S+: (requeued|stopped .*|start \d+: \d+ ranks)", log, re.M)
    return [str(line) for line in found]


def test_a_cancelled_task_saves_its_state_and_is_not_requeued(cluster: Slurm, jobs: Jobs) -> None:
    run, task = jobs.place / "runs/digits-sweep/1", f"{jobs.sweep}_1"
    trains(run)
    cluster.call("scancel", task)
    cluster.wait(task, "CANCELLED", Restarts="0")
    log = jobs.log(task)
    assert "stopped with the state saved" in log
    assert said(log) == ["start 1: 2 ranks"]
    found = newest(run, pytest.fail)
    assert found is not None
    with Checkpoint(found) as checkpoint:
        assert checkpoint.step >= 5
        settings = checkpoint.configuration
        assert (settings["train"]["log"], settings["optimizer"]["rate"]) == ("5 steps", 0.05)


def test_a_signal_to_the_ranks_under_mpirun_requeues_that_task_of_an_array_alone(
    cluster: Slurm, jobs: Jobs, uninterrupted: Path
) -> None:
    run, task = jobs.place / "runs/digits-sweep/2", f"{jobs.sweep}_2"
    trains(run)
    cluster.call("scancel", "--signal=USR1", task)
    cluster.hurry(task)
    cluster.wait(task, "COMPLETED", Restarts="1")
    equal(run, uninterrupted)
    assert said(jobs.log(task)) == ["start 1: 2 ranks", "requeued", "start 2: 2 ranks"]
    assert "MPICH's mpirun" not in jobs.log(task)
    assert cluster.job(f"{jobs.sweep}_1")["Restarts"] == "0"


def test_a_signal_to_the_ranks_under_srun_requeues_a_submitted_job(
    cluster: Slurm, jobs: Jobs, uninterrupted: Path
) -> None:
    run = jobs.place / "runs/with blanks"
    trains(run)
    cluster.call("scancel", "--signal=USR1", jobs.submitted)
    cluster.hurry(jobs.submitted)
    cluster.wait(jobs.submitted, "COMPLETED", Restarts="1")
    equal(run, uninterrupted)
    assert said((run / "job.log").read_text()) == ["start 1: 2 ranks", "requeued", "start 2: 2 ranks"]


def test_the_time_limit_requeues_a_job_that_ends_as_one_that_was_not_stopped(
    cluster: Slurm, jobs: Jobs, uninterrupted: Path
) -> None:
    """It was submitted with --fresh, which counts once."""
    cluster.wait(jobs.limited, "COMPLETED", Restarts="1")
    equal(jobs.place / "runs/digits", uninterrupted)
    assert said(jobs.log(jobs.limited)) == ["start 1: 2 ranks", "requeued", "start 2: 2 ranks"]
    assert not (jobs.place / "runs/digits.1").exists()


def test_one_experiment_on_several_numbers_of_ranks(cluster: Slurm, jobs: Jobs) -> None:
    cluster.wait(jobs.scaling, "COMPLETED", Restarts="0")
    log, place = jobs.log(jobs.scaling), jobs.place / "runs/synchronous-scaling"
    assert said(log) == ["start 1: 1 ranks", "start 1: 2 ranks"]
    rows = [line.split() for line in log[log.rindex("\nranks  ") + 1 :].splitlines()]
    assert rows[0] == ["ranks", "samples/s", "speedup", "efficiency", "test", "loss"]
    assert [row[0] for row in rows[1:]] == ["1", "2"]
    for count, speed, speedup, efficiency, loss in rows[1:]:
        run, first = summary(place / count), summary(place / "1")
        assert run["grid"] == [int(count), 1, 1]
        gain = run["samples_per_second"] / first["samples_per_second"]
        assert speed == f"{run['samples_per_second']:,.0f}"
        assert (speedup, efficiency) == (f"{gain:.2f}", f"{gain / int(count):.0%}")
        assert loss == f"{run['test']['loss']:.4f}"


def test_a_job_that_has_lost_a_rank_ends_and_goes_on_when_it_is_requeued(
    cluster: Slurm, jobs: Jobs, uninterrupted: Path
) -> None:
    """What MPICH has left in shared memory under the number of the job must not keep it from starting again."""
    run = jobs.place / "runs/killed"
    cluster.wait(jobs.killed, "FAILED", Restarts="0")
    assert said(jobs.log(jobs.killed)) == ["start 1: 2 ranks"]
    assert not (run / "requeue").exists()
    cluster.call("scontrol", "requeue", jobs.killed)
    cluster.hurry(jobs.killed)
    cluster.wait(jobs.killed, "COMPLETED", Restarts="1")
    equal(run, uninterrupted)
    assert said(jobs.log(jobs.killed)) == ["start 1: 2 ranks", "start 2: 2 ranks"]


def test_ranks_have_what_environment_sh_exports_also_where_a_job_is_given_nothing(
    cluster: Slurm, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    exports = "".join(f"export {name}='{value}'\n" for name, value in here(tmp_path).items())
    (tmp_path / "jobs/environment.sh").write_text(exports + (ROOT / "jobs/environment.sh").read_text())
    words = ("--export=NONE", "--ntasks-per-node=2", "jobs/train.sbatch", "jobs/digits.toml")
    job = cluster.call("sbatch", "--parsable", *words, *options(*SMALL), cwd=tmp_path)
    cluster.wait(job, "COMPLETED", "FAILED")
    assert summary(tmp_path / "runs/digits")["grid"] == [2, 1, 1]


def test_a_shell_that_srun_has_started_trains_more_than_once(cluster: Slurm, tmp_path: Path) -> None:
    for name in ("one", "two"):
        words = " ".join(map(shlex.quote, [sys.executable, *arguments(tmp_path / name, *SMALL)]))
        with open(tmp_path / "typed", "a", encoding="utf-8") as typed:
            typed.write(f"{words} || exit\n")
    cluster.call("srun", "--ntasks=1", "--mpi=pmi2", "bash", str(tmp_path / "typed"), env=here(tmp_path))
    assert [summary(tmp_path / name)["grid"] for name in ("one", "two")] == [[1, 1, 1], [1, 1, 1]]


def test_ranks_that_srun_has_not_joined_are_told_how(cluster: Slurm, tmp_path: Path) -> None:
    words = ("--ntasks=2", "--mpi=none", sys.executable, *arguments(tmp_path / "run", *SMALL))
    with pytest.raises(AssertionError, match=r"srun started 2 ranks, .* or with srun --mpi=pmi2 ") as told:
        cluster.call("srun", *words, env=here(tmp_path))
    assert str(told.value).count("mpinn: ") == 1
    assert not (tmp_path / "run").exists()
