"""The command line: how a job ends whatever ends one of its ranks, signals at any moment, mistyped commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch import ROOT, alone, finish, mpirun, ranks_of, start
from train_jobs import SMALL, arguments, records, train, wait_for

from mpinn.signals import AGAIN

STOPPED = 75
LONG = ("model.widths=[12]", "train.epochs=100000", "optimizer.decay=constant")
"""A run that ends by what a test does to it only."""
PROGRAM = "import sys; from mpinn.cli.main import main; main(sys.argv[1:])"
DRILL = """
import signal, time
from mpinn.comm import mpi
from mpinn.comm.launch import read_launch
from mpinn.errors import FatalError, InputError
from mpinn.schedules.serial import Serial
rank = read_launch().rank if read_launch() else 0
mpi.PATIENCE = {patience}
step = Serial.step
def drilled(self, batch, update):
    if batch.index == 5 and rank == {rank}:
        {what}
    return step(self, batch, update)
Serial.step = drilled
"""
ENDS = {
    "raise InputError('data.path', 'is gone')": "mpinn: data.path: is gone",
    "raise FatalError('the disk is gone')": "mpinn: the disk is gone",
    "raise SystemExit('a last word')": "a last word",
    "raise SystemExit": "has ended while others have not",
    "raise SystemExit(75)": "has ended while others have not",
}
"""What one rank does, and what is said of it."""


def drill(what: str, rank: int = 0, patience: float = 1) -> str:
    """The program, in which one rank does ``what`` in a step."""
    return DRILL.format(what=what, rank=rank, patience=patience) + PROGRAM


def wait_for_signals(ranks: dict[int, int], number: int, state: str) -> None:
    """Return when every process catches (SigCgt) or ignores (SigIgn) a signal."""
    deadline = time.monotonic() + 30
    while not all(_mask(process, state) >> (number - 1) & 1 for process in ranks.values()):
        assert time.monotonic() < deadline, f"{ranks} have not got {state}"
        time.sleep(0.005)


def _mask(process: int, state: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(state)).split()[1], 16)


def listening(job: subprocess.Popen[str], ranks: int) -> dict[int, int]:
    """The processes of a job, as soon as all of them listen for SIGUSR1."""
    deadline = time.monotonic() + 30
    while len(found := ranks_of(job)) < ranks:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    wait_for_signals(found, signal.SIGUSR1, "SigCgt")
    return found


@pytest.mark.parametrize(("rank", "what"), [(0, next(iter(ENDS))), *((1, what) for what in ENDS)])
def test_a_rank_that_ends_alone_ends_the_job(rank: int, what: str, tmp_path: Path) -> None:
    job = mpirun(2, "-c", drill(what, rank), *arguments(tmp_path / "run", *LONG)[2:], timeout=30)
    assert job.returncode not in (0, 2, STOPPED, 130)
    assert job.stderr.count(ENDS[what]) == 1
    assert job.stderr.count(f"rank {rank} has ended while others have not") == 1


@pytest.mark.parametrize(
    ("what", "code", "said"), [("None", 0, ""), ("'a last word'", 1, "a last word\n"), ("7", 7, "")]
)
def test_what_a_command_exits_with(what: str, code: int, said: str, tmp_path: Path) -> None:
    job = alone("-c", drill(f"raise SystemExit({what})"), *arguments(tmp_path / "run", *SMALL)[2:])
    assert (job.returncode, job.stderr) == (code, said)


def test_the_patience_of_the_end_is_short() -> None:
    told = alone("-c", "from mpinn.comm.mpi import PATIENCE; print(PATIENCE)")
    assert 1 < float(told.stdout) <= 10


@pytest.mark.parametrize("ranks", [[0], [1], [0, 1]], ids=str)
def test_the_keyboard_stops_a_run_with_its_state_saved(ranks: list[int], tmp_path: Path) -> None:
    """A launcher may pass on what the terminal has told the ranks already."""
    run = tmp_path / "run"
    job = start(2, *arguments(run, *LONG, "checkpoint.every=15 steps"))
    wait_for(run / "latest", job)
    there = ranks_of(job)
    for rank in (*ranks, *ranks):
        os.kill(there[rank], signal.SIGINT)
    ended = finish(job, timeout=30)
    assert ended.returncode == STOPPED
    assert ended.stdout.count("once more ends it at once") == (0 in ranks)
    assert ended.stdout.count("stopped with the state saved; the same command goes on from") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_the_keyboard_ends_a_job_that_does_not_stop(rank: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stuck = f"open({str(tmp_path / 'stuck')!r}, 'w').close(); time.sleep(1000)"
    job = start(2, "-c", drill(stuck, rank), *arguments(run, *LONG)[2:])
    wait_for(tmp_path / "stuck", job)
    process = ranks_of(job)[rank]
    os.kill(process, signal.SIGINT)
    time.sleep(1.5 * AGAIN)
    assert job.poll() is None
    os.kill(process, signal.SIGINT)
    ended = finish(job, timeout=30)
    assert ended.returncode == 130
    assert ended.stderr.count(f"rank {rank} of 2 on ") == 1
    assert ended.stderr.count("KeyboardInterrupt") == 1


def test_the_keyboard_ends_at_once_what_is_not_training(tmp_path: Path) -> None:
    program = DRILL.format(what="pass", rank=0, patience=1) + (
        "from mpinn.run import assembly\n"
        "assembly._load = lambda *given: os.kill(os.getpid(), signal.SIGINT) or time.sleep(1000)\n"
    )
    job = mpirun(2, "-c", "import os\n" + program + PROGRAM, *arguments(tmp_path / "run", *LONG)[2:], timeout=30)
    assert job.returncode == 130
    assert "KeyboardInterrupt" in job.stderr


def test_the_keyboard_ends_a_run_without_a_launcher(tmp_path: Path) -> None:
    job = alone("-c", drill("raise KeyboardInterrupt"), *arguments(tmp_path / "run", *SMALL)[2:])
    assert (job.returncode, job.stderr.strip()) == (130, "interrupted")


def test_a_rank_that_hangs_while_it_leaves_can_be_terminated(tmp_path: Path) -> None:
    line = arguments(tmp_path / "run", *LONG)[2:]
    job = start(2, "-c", drill("raise SystemExit(3)", rank=1, patience=1000), *line)
    leaving = {1: listening(job, 2)[1]}
    wait_for_signals(leaving, signal.SIGUSR1, "SigIgn")
    time.sleep(0.1)
    os.kill(leaving[1], signal.SIGTERM)
    assert finish(job, timeout=20).returncode not in (0, 2, STOPPED)


def test_signals_to_ranks_that_leave_do_not_change_the_code(tmp_path: Path) -> None:
    late = "end = mpi.end_together\nmpi.end_together = lambda *given: (time.sleep(rank == 0), end(*given))\n"
    program = DRILL.format(what="pass", rank=0, patience=10) + late + PROGRAM
    job = start(2, "-c", program, *arguments(tmp_path / "run", *LONG, "--stop-after", "9")[2:])
    ranks = listening(job, 2)
    wait_for_signals(ranks, signal.SIGTERM, "SigIgn")
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        for process in ranks.values():
            os.kill(process, number)
    assert finish(job, timeout=30).returncode == STOPPED
    assert (tmp_path / "run/requeue").exists()


@pytest.mark.parametrize("delay", [0, 0.1, 0.4])
def test_a_signal_before_the_first_step_stops_the_job_with_its_state_saved(delay: float, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = start(2, *arguments(run, *LONG))
    listening(job, 2)
    time.sleep(delay)
    job.send_signal(signal.SIGUSR1)
    ended = finish(job, timeout=30)
    assert (ended.returncode, ended.stderr) == (STOPPED, "")
    assert (run / "requeue").exists()
    again = train(2, run, *LONG, "--stop-after", "60")
    assert again.returncode == STOPPED
    assert "resumed from " in again.stdout


def test_a_run_listens_before_it_loads_anything_heavy() -> None:
    heard = """
import signal, sys
listen = signal.signal
def told(number, handler):
    if number == signal.SIGTERM:
        print(*{name.split(".")[0] for name in sys.modules})
        raise SystemExit
    return listen(number, handler)
signal.signal = told
"""
    loaded = set(alone("-c", heard + PROGRAM, "train").stdout.split())
    assert "mpinn" in loaded
    assert not loaded & {"numpy", "mpi4py", "h5py", "msgspec", "numba", "rich"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("inspekt", "inspekt is neither a command nor a file (did you mean inspect?)"),
        ("xyz", "xyz is neither a command nor a file"),
        ("inspekt runs/x", "inspekt is neither a command nor a file (did you mean inspect?)"),
        ("inspekt --help", "inspekt is neither a command nor a file (did you mean inspect?)"),
        ("inspekt.toml", "inspekt.toml: there is no such file"),
        ("evaluate runs/x --split tset", "--split: 'tset' is not one of train, validation, test (did you mean test?)"),
        (
            "bench foo",
            "bench: 'foo' is not one of mlp, layers, networks, replicas, depth, parareal, checkpoint, population, "
            "fleet, gpu, messages",
        ),
    ],
)
def test_a_mistyped_command(line: str, said: str, tmp_path: Path) -> None:
    job = alone("-m", "mpinn", *line.split(), cwd=tmp_path)
    assert (job.returncode, job.stdout, job.stderr) == (2, "", f"mpinn: {said}\n")


def test_a_mistyped_command_is_told_once(tmp_path: Path) -> None:
    job = mpirun(2, "-m", "mpinn", "inspekt", cwd=tmp_path)
    assert job.returncode == 2
    assert job.stderr.count("is neither a command nor a file (did you mean inspect?)") == 1


AS_OTHERS = """
import ctypes, os, sys
for override in (1, 2):  # that of permissions, and that of those to read: root has both
    ctypes.CDLL(None).prctl(24, override, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "mpinn", *sys.argv[1:]])
"""


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("inspect closed", "closed/"),
        ("inspect closed/run", "closed/run"),
        ("extract closed --best", "closed/"),
        ("import closed/model.npz run", "closed/model.npz"),
        ("submit --dry-run --set run.directory=closed", "closed/"),
        ("train --set data.name=npz --set data.path=secret.npz", "data.path: 'secret.npz' cannot be read"),
        ("train --set data.name=hdf5 --set data.path=closed/x.h5", "data.path: 'closed/x.h5' cannot be read"),
    ],
)
def test_what_may_not_be_read_is_named(line: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "secret.npz").touch(mode=0)
    job = alone("-c", AS_OTHERS, *line.split(), cwd=tmp_path)
    (tmp_path / "closed").chmod(0o700)
    assert (job.returncode, job.stdout) == (2, "")
    assert job.stderr.startswith(f"mpinn: {named}")
    assert job.stderr.count("Permission denied") == job.stderr.count("\n") == 1


def test_what_the_output_cannot_show_is_replaced(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = tmp_path / "größe"
    job = train(0, run, *SMALL, "train.epochs=1", env=environment)
    assert (job.returncode, job.stderr) == (0, "")
    assert f"run directory {tmp_path}/gr??e\n" in job.stdout
    job = alone("-m", "mpinn", "diff", str(run), str(run), env=environment)
    assert (job.returncode, job.stderr) == (0, "")
    assert "momentum" in job.stdout


def test_without_standard_streams_a_run_ends_and_no_file_takes_their_place(tmp_path: Path) -> None:
    line = arguments(tmp_path / "run", *SMALL, "train.epochs=1")
    closed = "import os, sys; os.closerange(0, 3); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    assert alone("-c", closed, *line).returncode == 0
    checkpoint = next((tmp_path / "run").glob("checkpoint-*.h5"))
    assert alone("-m", "mpinn", "evaluate", str(checkpoint)).returncode == 0


@pytest.mark.parametrize("line", [("",), ("train", ""), ("plan", ""), ("submit", "", "--dry-run")])
def test_an_empty_path_of_a_configuration_is_no_folder(line: tuple[str, ...], tmp_path: Path) -> None:
    job = alone("-m", "mpinn", *line, cwd=tmp_path)
    assert (job.returncode, job.stdout) == (2, "")
    assert job.stderr == "mpinn: CONFIG: expected the path of a TOML file, got an empty string\n"
    assert not any(tmp_path.iterdir())


FULL = """
import os, sys
for stream in map(int, sys.argv[1]):
    os.dup2(os.open("/dev/full", os.O_WRONLY), stream)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
LOST = "mpinn: standard output cannot be written: No space left on device; from here on what it is told is lost\n"


@pytest.mark.parametrize(("streams", "told"), [("1", LOST), ("12", "")])
def test_a_run_goes_on_where_the_disk_of_its_output_is_full(streams: str, told: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = arguments(run, *SMALL, "--trace")
    for stop, code in (("--stop-after=5", STOPPED), ("--stop-after=0", 0), ("--resume", 0)):
        job = alone("-c", FULL, streams, *line, stop)
        assert (job.returncode, job.stdout, job.stderr) == (code, "", told), stop
        assert (run / "requeue").exists() == (code == STOPPED)
        assert (run / "summary.json").exists() == (code == 0)
    assert [line["step"] for line in records(run) if "loss" in line] == [4, 8, 12, 16, 18]


@pytest.mark.parametrize("line", [["--help"], ["--version"], ["plan", "jobs/digits.toml"], ["doctor"]])
def test_a_command_says_in_a_line_that_its_output_cannot_be_written(line: list[str]) -> None:
    job = alone("-c", FULL, "1", "-m", "mpinn", *line)
    lost = "mpinn: standard output cannot be written: No space left on device\n"
    assert (job.returncode, job.stdout, job.stderr) == (1, "", lost)


@pytest.mark.parametrize("line", [["--help"], ["train", "-h"], ["--version"]])
def test_output_that_nobody_reads_is_no_failure(line: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mpinn", *line], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, text=True
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
