"""``kill -9`` in the middle of a save on three ranks whose replicas differ: the checkpoint before it stays in use."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch import finish, gone, kill, ranks_of, start
from train_jobs import arguments, differences, series

from mpinn.storage.directory import RunDirectory, step_of
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import newest

RANKS, EVERY, LAST = 3, 3, 18
SETTINGS = (
    "model.widths=[512,512]",
    "data.batch=200",
    "train.epochs=3",
    "consensus.period=7 steps",
    f"checkpoint.every={EVERY} steps",
    "checkpoint.keep=2",
)
"""18 steps; files of 10 MB, since the replicas differ whenever they are saved."""

Far = Callable[[int, int], bool]
"""Whether a save is so far, from the bytes of its temporary file and those of a checkpoint."""


def begun(size: int, whole: int) -> bool:
    return True


def half_done(size: int, whole: int) -> bool:
    return 2 * size >= whole


def not_yet_named(size: int, whole: int) -> bool:
    return size >= whole


KILLS: list[tuple[Far, Sequence[int]]] = [
    (half_done, [2]),
    (begun, range(RANKS)),
    (not_yet_named, [0]),
    (half_done, range(RANKS)),
]
"""When in a save, and which ranks. One after the other, each in a run that goes on from what the one before it left."""


def halt_in_a_save(job: subprocess.Popen[str], run: Path, far: Far) -> tuple[dict[int, int], Path]:
    """Halt rank 0 in a save that is not the run's first; the processes of the ranks, and the newest checkpoint."""
    since = time.time()
    while job.poll() is None and time.time() < since + 60:
        if _is_saving(run, since, far):
            ranks = ranks_of(job)
            os.kill(ranks[0], signal.SIGSTOP)
            while _state(ranks[0]) != "T":
                time.sleep(0.0005)
            if _is_saving(run, since, far):
                return ranks, RunDirectory(run).checkpoints()[0]
            os.kill(ranks[0], signal.SIGCONT)
        time.sleep(0.0005)
    kill(job)
    raise AssertionError(f"no save was caught: {job.communicate()}")


def _is_saving(run: Path, since: float, far: Far) -> bool:
    """Whether the save after the newest checkpoint is so far; a job that was killed before may have left its file."""
    try:
        before = RunDirectory(run).checkpoints()[0]
        temporary = run / f".checkpoint-{step_of(before) + EVERY:08d}.h5.partial"
        found = temporary.stat()
        return found.st_mtime > since and far(found.st_size, before.stat().st_size)
    except (IndexError, FileNotFoundError):
        return False


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_checkpoint_before_it_stays_in_use(tmp_path: Path) -> None:
    run, unharmed, resumed = tmp_path / "run", tmp_path / "unharmed", ""
    for far, killed in KILLS:
        job = start(RANKS, *arguments(run, *SETTINGS))
        ranks, before = halt_in_a_save(job, run, far)
        held = before.read_bytes()
        for rank in killed:
            os.kill(ranks[rank], signal.SIGKILL)
        if 0 not in killed:
            os.kill(ranks[0], signal.SIGCONT)
        since = time.monotonic()
        ended = finish(job, timeout=30)
        assert time.monotonic() - since < 10
        assert ended.returncode not in (0, 2, 75)
        assert resumed in ended.stdout
        assert gone(ranks.values())
        assert not (run / "requeue").exists()
        assert before.read_bytes() == held
        step = step_in_use(run)
        if 0 in killed:  # nobody has lived who could give the new file its name
            assert list(run.glob(".checkpoint-*.h5.partial"))
            assert (run / "latest").resolve() == before.resolve()
            assert step == step_of(before)
        assert step_of(before) <= step < LAST
        resumed = f"resumed from {run}/checkpoint-{step:08d}.h5 at step {step}\n"

    again = series(RANKS, (run, SETTINGS, 0), (unharmed, SETTINGS, 0))
    assert again.stderr == ""
    assert resumed in again.stdout
    assert list(run.glob(".*.partial")) == []
    assert differences(run / "latest", unharmed / "latest") == ["configuration"]


def step_in_use(run: Path) -> int:
    """The step of the checkpoint that the run would go on from, which is whole, and in which the replicas differ."""
    said: list[str] = []
    found = newest(run, said.append)
    assert found is not None
    # listed, but not yet named, is as far as a kill may get
    assert all("listed in checkpoints.json, but missing" in line for line in said), said
    with Checkpoint(found) as checkpoint:
        checkpoint.verify()
        assert checkpoint.replicas == list(range(RANKS))
        return checkpoint.step
