"""Jobs under an Open MPI with ULFM, in which ranks die at a known step, and what they are compared with."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from launch import finish, open_mpi, open_mpi_library, start
from train_jobs import arguments, series, summary

BEGIN = """
import os, signal, sys
from mpinn.training import agreement
from mpinn.cli.main import main
from mpinn.comm.launch import read_launch
from mpinn.training.update import OptimizerUpdate
agreement.HORIZON = 0  # a boundary after every step
def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""
MORTAL = """
deaths = DEATHS
update = OptimizerUpdate.__call__
def dies(self, part, batch):
    if deaths.get(read_launch().rank) == batch.index:
        die()
    update(self, part, batch)
OptimizerUpdate.__call__ = dies
main(sys.argv[1:])
"""
"""DEATHS: rank -> the index of the batch in whose update it dies."""
SAVING = """
from mpinn.storage.collect import Collection
from mpinn.storage.checkpoint import Saver
save = Saver.save
def saves(self, snapshot, *rest):
    if snapshot.step == STEP and read_launch().rank == 0:
        Collection.column = lambda *given: die()
    save(self, snapshot, *rest)
Saver.save = saves
main(sys.argv[1:])
"""
"""Rank 0 dies while it collects the state after STEP steps."""
WRITING = """
from mpinn.storage.history import Metrics
append = Metrics.append
def appends(self, record):
    if record["step"] == STEP and read_launch().rank == 0:
        die()
    append(self, record)
Metrics.append = appends
main(sys.argv[1:])
"""
"""Rank 0 dies before it writes what all know after STEP steps."""
FLAGS = ("--with-ft", "ulfm")


@contextmanager
def under_open_mpi() -> Iterator[None]:
    """Start jobs with the mpirun of an Open MPI."""
    prefix = open_mpi()
    assert prefix is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPINN_TEST_MPIRUN", str(prefix / "bin/mpirun"))
        patch.setenv("MPI4PY_LIBMPI", str(open_mpi_library()))
        yield


def ulfm(ranks: int, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run Python on some ranks that may survive others."""
    return finish(start(ranks, *arguments, options=FLAGS), timeout)


def mortal(deaths: dict[int, int]) -> str:
    """The program in which ranks die in the update of a batch."""
    return MORTAL.replace("DEATHS", repr(deaths))


def surviving(ranks: int, run: Path, program: str, *settings: str) -> subprocess.CompletedProcess[str]:
    """Train under a program that lets ranks die."""
    return ulfm(ranks, "-c", BEGIN + program, *arguments(run, "run.survive=true", *settings)[2:])


@dataclass(frozen=True)
class Drill:
    """A run in which ranks have died, and the directory of the one as which it is to end."""

    run: Path
    oracle: Path
    settings: Sequence[str]
    job: subprocess.CompletedProcess[str]

    @property
    def deaths(self) -> list[dict[str, Any]]:
        return deaths(self.run)

    def until(self, stop: int, *settings: str) -> tuple[Path, Sequence[str], int]:
        """The oracle until a step, or to its end: one of a `series`."""
        return self.oracle, (*self.settings, *settings), stop


def drill(place: Path, name: str, program: str, *settings: str) -> Drill:
    """Train on four ranks under a program that lets some die, to the end."""
    job = surviving(4, place / name, program, *settings)
    assert job.returncode == 0, job.stderr
    return Drill(place / name, place / f"{name}-oracle", settings, job)


def references(ranks: int, *runs: tuple[Path, Sequence[str], int]) -> None:
    """Train with the same messages as a run that survives."""
    series(ranks, *runs, options=FLAGS)


def deaths(run: Path) -> list[dict[str, Any]]:
    """What the summary says of them."""
    found: list[dict[str, Any]] = summary(run)["deaths"]
    return found


def bereave(run: Path, replica: int) -> None:
    """Make the newest checkpoint of a run one of a run that never had a replica, which kept a state of its own."""
    with h5py.File(run / "latest", "r+") as file:
        count = int(file.attrs["grid"][0])
        file.attrs["grid"] = np.array([count - 1, *file.attrs["grid"][1:]])
        del file[f"replica/{replica}"]
        for later in range(replica + 1, count):
            file.move(f"replica/{later}", f"replica/{later - 1}")
        found: list[str] = []
        file.visit(lambda name: found.append(name) if name.endswith("averaging/merge") else None)
        for name in found:
            shares = np.delete(file[name][()], replica)
            del file[name]
            file[name] = shares / shares.sum()
    (run / "checkpoints.json").unlink()
