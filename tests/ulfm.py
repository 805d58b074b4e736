"""Jobs under an Open MPI with ULFM, in which ranks die at a known step, and what they are compared with."""

import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from launch import finish, start
from training import arguments, summary

BEGIN = """
import os, signal, sys
from mpinn import agreement
from mpinn.cli import main
from mpinn.comm.launch import read_launch
from mpinn.update import OptimizerUpdate
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


def ulfm(ranks: int, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run Python on some ranks that may survive others."""
    return finish(start(ranks, *arguments, options=FLAGS), timeout)


def dying(ranks: int, run: Path, deaths: dict[int, int], *settings: str) -> subprocess.CompletedProcess[str]:
    """Train while ranks die, which others are to survive."""
    return surviving(ranks, run, MORTAL.replace("DEATHS", repr(deaths)), *settings)


def surviving(ranks: int, run: Path, program: str, *settings: str) -> subprocess.CompletedProcess[str]:
    """Train under a program that lets ranks die."""
    return ulfm(ranks, "-c", BEGIN + program, *arguments(run, "run.survive=true", *settings)[2:])


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
