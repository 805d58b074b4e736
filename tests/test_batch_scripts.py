"""The batch scripts, and ``submit``, without Slurm: programs that only note how they are called stand in its place."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from launch import ROOT, alone, finish
from train_jobs import SMALL, arguments, contents, here, train, wait_for

from mpinn.commands.submit import Allocation, seconds_of
from mpinn.config import read_toml
from mpinn.errors import InputError

STOPPED = 75
NOTES = 'echo "$(basename "$0") $*" >>"$PLACE/calls"\n'
PROGRAMS = {
    "python": f"""case $* in *--where*) echo "$PLACE/run"; exit ;; esac
{NOTES}
mkdir -p "$PLACE/run"
[ -z "$MARKED" ] || touch "$PLACE/run/requeue"
[ -z "$WAITS" ] || {{ trap 'exit "$CODE"' USR1; touch "$PLACE/waits"; while :; do sleep 0.05; done; }}
exit "$CODE"
""",
    "launcher": f'{NOTES}shift 2\nexec "$@"\n',
    "scontrol": NOTES,
    "sbatch": f'{NOTES}[ -z "$REFUSED" ] || {{ echo "$REFUSED" >&2; exit 1; }}\necho "17;cluster"\n',
}
ALONE = {"SLURM_JOB_ID": "41", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "n[1-2]"}
LAST = {**ALONE, "SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the scripts and the programs."""
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    return tmp_path


def environment(place: Path, more: Mapping[str, str]) -> dict[str, str]:
    path = os.pathsep.join([str(place / "bin"), os.environ["PATH"]])
    names = {"PLACE": str(place), "PATH": path, "SLURM_SUBMIT_DIR": str(place), "MPINN_LAUNCHER": "launcher"}
    return {**{name: value for name, value in os.environ.items() if "SLURM" not in name}, **names, **more}


def batch(place: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end."""
    return finish(start_batch(place, *words, **more))


def start_batch(place: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    """Start a script as Slurm does: a copy of it, somewhere else."""
    copy = place / "copied"
    copy.write_text((ROOT / "jobs" / words[0]).read_text())
    return subprocess.Popen(
        ["bash", str(copy), *words[1:]],
        env=environment(place, more),
        cwd=place,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def calls(place: Path) -> list[str]:
    return (place / "calls").read_text().splitlines()


@pytest.mark.parametrize(("job", "name"), [(ALONE, "41"), (LAST, "41_3")])
@pytest.mark.parametrize(
    ("code", "marked", "requeued"), [(75, "yes", True), (75, "", False), (0, "yes", False), (79, "yes", False)]
)
def test_a_job_is_requeued_on_both_signs_together(
    code: int, marked: str, requeued: bool, job: dict[str, str], name: str, place: Path
) -> None:
    ended = batch(place, "train.sbatch", "x.toml", "--set", "a.b=c d", CODE=str(code), MARKED=marked, **job)
    told = ended.stdout
    assert ended.returncode == (0 if requeued else code)
    command = "python -m mpinn train x.toml --set a.b=c d"
    assert calls(place) == [f"launcher -n 4 {command}", command, *([f"scontrol requeue {name}"] if requeued else [])]
    assert f"job {name}: start 1: 4 ranks on n[1-2], {place}/run\n" in told
    assert ("stopped before it made any progress: not requeued" in told) == (code == 75 and not requeued)


def test_a_job_starts_its_run_anew_once_however_often_it_is_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An older run is moved aside also where the job was requeued before it came to that."""
    run = tmp_path / "run"

    def fresh(job: str, restarts: str, stop_after: int) -> tuple[int, str, int]:
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        code = here(run, *SMALL, fresh=True, stop_after=stop_after)
        return code, capsys.readouterr().out, len(list(tmp_path.glob("run.*")))

    assert fresh("41", "", 5)[::2] == (STOPPED, 0)
    assert fresh("41", "0", 5)[::2] == (STOPPED, 1)
    code, told, aside = fresh("41", "1", 9)
    assert (code, aside) == (STOPPED, 1)
    assert "--fresh is done: this job began the run before it was requeued\nresumed from " in told
    assert fresh("42", "1", 5)[::2] == (STOPPED, 2)
    assert fresh("42", "2", 9)[::2] == (STOPPED, 2)
    monkeypatch.delenv("SLURM_JOB_ID")
    assert here(run, *SMALL, fresh=True, stop_after=5) == STOPPED
    assert fresh("42", "3", 5)[::2] == (STOPPED, 4)


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_signal_to_the_script_reaches_the_ranks(number: int, requeued: bool, place: Path) -> None:
    job = start_batch(place, "train.sbatch", "x.toml", CODE="75", MARKED="yes", WAITS="yes", **ALONE)
    wait_for(place / "waits", job)
    job.send_signal(number)
    assert finish(job).returncode == (0 if requeued else 75)
    assert ("scontrol requeue 41" in calls(place)) == requeued


def test_a_task_of_an_array_has_the_settings_of_its_line(place: Path) -> None:
    (place / "x.sweep").write_text("a.b=1\n\na.b=3 'c.d=2 epochs'\n")
    batch(place, "array.sbatch", "x.toml", "--set", "e.f=5", CODE="0", **LAST)
    own = f"run.directory={place}/run-sweep/3 --set a.b=3 --set c.d=2 epochs"
    assert calls(place)[-1] == f"python -m mpinn train x.toml --set e.f=5 --set {own}"
    job = batch(place, "array.sbatch", "x.toml", CODE="0", **{**LAST, "SLURM_ARRAY_TASK_ID": "2"})
    assert (job.returncode, job.stderr) == (2, "x.sweep has no line 2\n")
    (place / "calls").unlink()
    (place / "x.sweep").write_text("a.b=1 'c.d=2 epochs\n")
    job = batch(place, "array.sbatch", "x.toml", CODE="0", **{**LAST, "SLURM_ARRAY_TASK_ID": "1"})
    assert (job.returncode, "quote" in job.stderr, (place / "calls").exists()) == (2, True, False)


def test_a_run_that_comes_no_further_than_before_is_not_to_be_requeued(tmp_path: Path) -> None:
    """On other stages it goes back behind what was in flight, and is stopped before it has caught up."""
    run, decoupled = tmp_path / "run", (*SMALL, "schedule.name=fdg", "model.widths=[12,12]", "consensus.name=gradients")
    first = train(3, run, *decoupled, "grid.stages=3", "--stop-after", "9")
    assert (first.returncode, (run / "requeue").exists()) == (STOPPED, True)
    again = train(2, run, *decoupled, "grid.stages=2", "--stop-after", "7")
    assert again.returncode == STOPPED, again.stderr
    assert "the run goes back 4 batches, from step 9" in again.stdout
    assert again.stdout.endswith("that is no further than the start before this one has come: no requeue\n")
    assert not (run / "requeue").exists()
    assert train(2, run, *decoupled, "grid.stages=2", "--stop-after", "10").returncode == STOPPED
    assert (run / "requeue").exists()


def test_the_lines_of_the_example_are_as_many_as_the_tasks() -> None:
    first, last = map(
        int, re.findall(r"^#SBATCH --array=(\d+)-(\d+)$", (ROOT / "jobs/array.sbatch").read_text(), re.M)[0]
    )
    assert (first, last) == (1, len((ROOT / "jobs/digits.sweep").read_text().splitlines()))


@pytest.mark.parametrize(("counts", "ranks"), [("", "1 2 4 6"), ("3 5", "3 5")])
def test_scaling_takes_every_number_of_ranks_and_stops_at_a_signal(counts: str, ranks: str, place: Path) -> None:
    job = {**ALONE, "SLURM_NTASKS": "6", "COUNTS": counts}
    batch(place, "scaling.sbatch", "x.toml", CODE="0", **job)
    assert [call.split()[2] for call in calls(place) if call.startswith("launcher")] == ranks.split()
    (place / "calls").unlink()
    assert batch(place, "scaling.sbatch", "x.toml", CODE="75", MARKED="yes", **job).returncode == 0
    assert [call.split()[0] for call in calls(place)] == ["launcher", "python", "scontrol"]


def test_the_table_of_scaling_has_a_row_also_where_a_loss_is_not_finite(tmp_path: Path) -> None:
    found = re.search(r"<<'TABLE'\n(.*?)TABLE\n", (ROOT / "jobs/scaling.sbatch").read_text(), re.S)
    assert found
    for count, speed, loss in (("1", 1000.0, 0.25), ("2", 1500.0, None)):
        (tmp_path / count).mkdir()
        told = {"samples_per_second": speed, "test": {"loss": loss}}
        (tmp_path / count / "summary.json").write_text(json.dumps(told))
    line = [sys.executable, "-", str(tmp_path), "1", "2"]
    job = subprocess.run(line, input=found[1], capture_output=True, text=True, check=True)
    rows = [row.split() for row in job.stdout.splitlines()[2:]]
    assert rows == [["1", "1,000", "1.00", "100%", "0.2500"], ["2", "1,500", "1.50", "75%", "none"]]


# submit


def submit(place: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    (place / "bin/python").unlink(missing_ok=True)
    line = ["-m", "mpinn", "submit", *arguments(place / "run")[2:], *words]
    return alone(*line, env=environment(place, more), cwd=place)


def test_what_is_asked_of_blas_here_is_not_asked_on_the_machines_of_the_job(place: Path) -> None:
    (place / "bin/sbatch").write_text('#!/bin/bash\nprintenv OPENBLAS_CORETYPE > "$PLACE/asked"\necho 17\n')
    assert submit(place, "--nodes", "1", OPENBLAS_CORETYPE="").returncode == 0
    assert (place / "asked").read_text() == "\n"


def test_a_run_is_submitted_with_its_configuration_as_it_was_checked(place: Path) -> None:
    wanted = (
        "--nodes",
        "3",
        "--gpus-per-node",
        "4",
        "--time",
        "12:00:00",
        "--sbatch=--partition=gpu",
        "--set",
        "run.seed=7",
    )
    told = submit(place, *wanted)
    assert (told.returncode, told.stderr) == (0, "")
    run = place / "run"
    assert told.stdout.splitlines()[-1] == f"job 17 is submitted; what it says will be in {run}/job.log"
    assert calls(place) == [f"sbatch --parsable {run}/job.sbatch {run}/config.toml"]
    assert {path.name for path in run.iterdir()} == {"job.sbatch", "start.sh", "environment.sh", "config.toml"}
    options = re.findall("^#SBATCH (.*)$", (run / "job.sbatch").read_text(), re.M)
    assert options == [
        *("--job-name=run", f"--chdir={place}", f"--output={run}/job.log", "--signal=B:USR1@180", "--requeue"),
        *("--open-mode=append", "--nodes=3", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=12:00:00"),
        "--partition=gpu",
    ]
    tables = read_toml(run / "config.toml")
    assert (tables["run"]["seed"], tables["run"]["directory"]) == (7, str(run))


def test_what_is_wrong_is_said_before_anything_is_written_or_submitted(place: Path) -> None:
    for words, told in {
        ("--set", "data.batch=-5"): "data.batch: expected an integer of at least 1, got -5\n",
        (
            "--nodes",
            "3",
            "--set",
            "grid.stages=2",
        ): "grid.stages: any number of replicas x 2 stages x 1 shards need a multiple of 2 ranks, not 3; ",
        ("--time", "soon"): "--time: expected a time of Slurm's such as 30, 12:00:00 or 2-00, got 'soon'\n",
        ("--sbatch", "gpu"): "--sbatch: expected an option of sbatch such as --partition=gpu, got 'gpu'\n",
        ("--environment", "none"): "--environment: there is no file 'none'\n",
        ("--set", "run.bf16=true", "--set", "run.device=cpu"): "run.bf16: only a GPU computes in bfloat16: ",
    }.items():
        ended = submit(place, *words)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.startswith(f"mpinn: {told}")
    (place / "bin/sbatch").unlink()
    ended = submit(place, PATH=str(place / "bin"))
    assert (ended.returncode, ended.stderr.split(":")[1]) == (2, " sbatch")
    assert sorted(path.name for path in place.iterdir()) == ["bin", "jobs"]


def test_a_run_on_gpus_is_submitted_where_there_are_none(place: Path) -> None:
    told = submit(place, "--gpus-per-node", "2", "--set", "run.device=gpu", CUDA_VISIBLE_DEVICES="")
    assert (told.returncode, told.stderr) == (0, "")
    assert read_toml(place / "run/config.toml")["run"]["device"] == "gpu"


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        *(("30", 1800), ("00:01", 1), ("04:30", 270), ("1:00:00", 3600), ("12:30:05", 45005)),
        *(("2-00", 172800), ("0-1:30", 5400), ("1-02:03:04", 93784)),
    ],
)
def test_a_time_is_read_as_slurm_does(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds


@pytest.mark.parametrize(
    ("time", "more", "least"),
    [
        *(("00:01", (), 5), ("3", (), 5), ("04:00", (), 5), ("0-0:4", (), 5), ("04:01", (), 0), ("5", (), 0)),
        *(("0", (), 0), ("1-00", (), 0)),
        *(("10", ("--signal=B:USR1@600",), 12), ("12", ("--signal=B:USR1@600",), 0)),
        *(("2", ("--partition=gpu", "--signal=USR1@30"), 0), ("1", ("--signal=B:USR1@59",), 2)),
    ],
)
def test_a_time_must_leave_some_before_the_signal(time: str, more: tuple[str, ...], least: int) -> None:
    if not least:
        assert f"--time={time}" in Allocation(1, 0, 1, time, more).options
        return
    with pytest.raises(InputError, match=rf"^--time: .* expected at least {least} minutes, got '{time}'$"):
        Allocation(1, 0, 1, time, more)


@pytest.mark.parametrize(
    ("gpus", "ranks", "said"),
    [
        (2, 3, "warning: the 3 ranks of a node share 2 GPUs and take turns on them"),
        (1, 2, "warning: the 2 ranks of a node share 1 GPU and take turns on them"),
        (4, 3, "warning: 3 of the 4 GPUs of a node are used, one by each rank"),
        *((2, 2, ""), (2, 0, ""), (0, 3, "")),
    ],
)
def test_ranks_that_are_no_match_for_gpus_are_noted(gpus: int, ranks: int, said: str, place: Path) -> None:
    told = submit(place, "--gpus-per-node", str(gpus), "--ranks-per-node", str(ranks), "--dry-run")
    assert (told.returncode, told.stderr) == (0, "")
    assert [line for line in told.stdout.splitlines() if "warning" in line] == [said] * bool(said)


def test_nccl_wants_a_gpu_for_each_rank() -> None:
    with pytest.raises(InputError, match=r"^--ranks-per-node: NCCL wants a GPU for each rank, so at most 2, got 3$"):
        Allocation(1, 2, 3, "30").remarks("nccl")
    assert Allocation(1, 2, 2, "30").remarks("nccl") == []


def test_a_dry_run_shows_the_script_and_does_nothing(place: Path) -> None:
    (place / "bin/python").unlink()
    before = contents(place)
    told = submit(place, "--ranks-per-node", "8", "--dry-run")
    assert (told.returncode, told.stderr) == (0, "")
    assert contents(place) == before
    assert told.stdout.startswith("#!/bin/bash\n")
    assert "#SBATCH --ntasks-per-node=8\n" in told.stdout
    assert told.stdout.endswith(f"sbatch --parsable {place}/run/job.sbatch {place}/run/config.toml\n")


def test_what_sbatch_refuses_is_told(place: Path) -> None:
    told = submit(place, REFUSED="sbatch: error: invalid partition specified")
    assert told.returncode == 1
    assert told.stderr.endswith("config.toml: sbatch: error: invalid partition specified\n")


def test_a_finished_run_is_not_submitted_and_a_new_one_moves_it_aside(place: Path) -> None:
    assert here(place / "run", *SMALL) == 0
    settings = [word for setting in SMALL for word in ("--set", setting)]
    told = submit(place, *settings)
    assert (told.returncode, told.stdout) == (0, f"{place}/run is a finished run: nothing is submitted\n")
    assert not (place / "calls").exists()
    told = submit(place, *settings, "--fresh")
    assert told.stdout.startswith(f"the run that was in {place}/run is now in {place}/run.1\njob 17 is submitted")
    assert (place / "run.1/summary.json").exists()


def test_the_written_script_trains(place: Path) -> None:
    """With mpirun, and with the folder's own environment.sh, which is copied."""
    (place / "jobs").unlink()
    (place / "jobs").mkdir()
    (place / "jobs/environment.sh").write_text("launcher=(mpirun)\necho here >here\n")
    settings = [word for setting in SMALL for word in ("--set", setting)]
    assert submit(place, "--ranks-per-node", "2", *settings).returncode == 0
    names = {**ALONE, "SLURM_NTASKS": "2", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env = {**environment(place, {}), **names, "PYTHONPATH": str(ROOT)}
    line = ["bash", str(place / "run/job.sbatch"), str(place / "run/config.toml")]
    done = subprocess.run(line, env=env, cwd=place, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (place / "here").exists()
    assert (place / "run/summary.json").exists()
