"""Training jobs for the tests: how they are started, and what they leave in their run directories."""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from launch import alone, finish, kill, mpirun, start

from mpinn.array.typing import Array
from mpinn.comm.grid import World, _alone
from mpinn.commands.train import train as train_here
from mpinn.run.checks import Request

SMALL = ("model.widths=[12]", "data.batch=200", "train.epochs=3", "train.log=4 steps", "train.evaluate=5 steps")
"""18 steps, 6 an epoch, in which no two cadences coincide before the last step."""

SERIES = """
import json, sys
from mpinn.run.checks import Request
from mpinn.comm.abort import install_abort_hook, leave
from mpinn.comm.grid import connect
from mpinn.comm.launch import silence_other_ranks
from mpinn.commands.train import train
silence_other_ranks()
install_abort_hook()
world = connect()
for overrides, stop in json.loads(sys.argv[1]):
    code = train(world, Request(overrides=tuple(overrides), stop_after=stop))
    if code != (75 if stop else 0):
        raise SystemExit(f"{overrides}: {code}")
leave(0)
"""

LAYER = 20_000
"""Microseconds, or a little more, that a dense layer of `PACED` takes in a pass."""

PACED = f"""
import sys, time
from mpinn.cli.main import main
from mpinn.nn.dense import Dense
for name in ("forward", "backward"):
    def paced(*given, compute=getattr(Dense, name)):
        time.sleep({LAYER / 1e6})
        return compute(*given)
    setattr(Dense, name, paced)
main(sys.argv[1:])
"""
"""The program with dense layers so slow that a timeline shows what waits for what, however busy the machine is."""


def arguments(directory: Path, *settings: str) -> list[str]:
    """The command line of a run in ``directory``; what begins with a dash is passed on as it is."""
    line = ["-m", "mpinn"]
    for setting in (f"run.directory={directory}", *settings):
        line += [setting] if setting.startswith("-") or setting.isdecimal() else ["--set", setting]
    return line


def train(
    ranks: int, directory: Path, *settings: str, timeout: float = 60, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Train on ``ranks`` ranks; 0: without a launcher."""
    line = arguments(directory, *settings)
    return mpirun(ranks, *line, timeout=timeout, env=env) if ranks else alone(*line, timeout=timeout, env=env)


def paced(ranks: int, directory: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """As `train`, with the dense layers of `PACED`."""
    return mpirun(ranks, "-c", PACED, *arguments(directory, *settings)[2:])


def series(
    ranks: int, *runs: tuple[Path, Sequence[str], int], options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Train one run after the other in the same processes; each is a directory, its settings, and --stop-after."""
    told = [((f"run.directory={directory}", *settings), stop) for directory, settings, stop in runs]
    job = finish(start(ranks, "-c", SERIES, json.dumps(told), options=options), timeout=60 * len(runs))
    assert job.returncode == 0, job.stderr
    return job


def wait_for(path: Path, job: subprocess.Popen[str], limit: float = 30) -> None:
    """Return when there is a file or folder ``path``; if there is none after ``limit`` seconds the job is killed."""
    deadline = time.monotonic() + limit
    while not path.exists():
        if job.poll() is not None or time.monotonic() > deadline:
            kill(job)
            raise AssertionError(f"{path} has not come: {job.communicate()}")
        time.sleep(0.01)


def world() -> World:
    """One rank without MPI, which the process of the tests does not start."""
    return _alone("")


def here(directory: Path, *settings: str, **request: Any) -> int:
    """Train on one rank in this process; the code with which the program would leave."""
    return train_here(world(), Request(overrides=(f"run.directory={directory}", *settings), **request))


def summary(directory: Path) -> dict[str, Any]:
    """The summary that a finished run has left."""
    found: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return found


def records(directory: Path) -> list[dict[str, Any]]:
    """The lines of the metrics."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def datasets(path: Path) -> dict[str, Array]:
    """Every data set of a checkpoint by its path, and the attributes of the file, as arrays."""
    found: dict[str, Array] = {}
    with h5py.File(path, "r") as file:
        file.visititems(
            lambda name, item: found.update({name: np.asarray(item[()])}) if isinstance(item, h5py.Dataset) else None
        )
        found |= {f"@{name}": np.asarray(value) for name, value in file.attrs.items()}
    return found


def differences(one: Path, other: Path) -> list[str]:
    """The data sets in which two checkpoints differ in any bit, times of the clock aside."""
    first, second = datasets(one), datasets(other)
    names = [name for name in {**first, **second} if "seconds" not in name]
    return [name for name in names if name not in first or name not in second or not _same(first[name], second[name])]


def _same(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def contents(directory: Path) -> dict[str, tuple[int, int]]:
    """Every file below ``directory`` with its size and the time of its last change."""
    found = [path for path in directory.rglob("*") if not path.is_symlink()]
    return {str(path.relative_to(directory)): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}
