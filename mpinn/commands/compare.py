"""The command ``compare``: experiments one after another, each a job of its own; what is done is not done again."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpinn.comm.launch import read_launch
from mpinn.config import InputError, difference
from mpinn.run.summary import quality_text
from mpinn.signals import STOPPED
from mpinn.storage.directory import RunDirectory
from mpinn.training.choices import read_config


@dataclass(frozen=True)
class Job:
    """One experiment with one seed: what its command line says."""

    file: str
    seed: int
    directory: Path
    ranks: int
    settings: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """What follows ``python``."""
        line = ["-m", "mpinn", "train", self.file]
        for setting in (*self.settings, f"run.seed={self.seed}", f"run.directory={self.directory}"):
            line += ["--set", setting]
        return line

    @property
    def summary(self) -> dict[str, Any] | None:
        """That of the run in its directory, if there is one and it has finished."""
        place = RunDirectory(self.directory).summary
        return dict(json.loads(place.read_text(encoding="utf-8"))) if place.is_file() else None

    def finished(self) -> dict[str, Any] | None:
        """The summary of the run if it has been done as it is to be done now."""
        was = RunDirectory(self.directory).config
        if not was.is_file():
            return None
        config = read_config(self.file, (*self.settings, f"run.seed={self.seed}", f"run.directory={self.directory}"))
        wanted = replace(config, schedule=config.schedule.settled(config.grid.stages))
        return None if difference(read_config(str(was), ()).tables(), wanted.tables()) else self.summary


def compare(
    files: Sequence[Path], seeds: int, ranks: int, launcher: str, settings: tuple[str, ...], runs: Path | None = None
) -> list[Path]:
    """Run all of them; the run directories that have finished. InputError before the first starts, if one is wrong."""
    if read_launch() is not None:
        raise InputError("compare", "start it without a launcher: it starts the ranks of every experiment itself")
    jobs = planned(files, seeds, ranks, settings, runs)
    start = command(launcher) if any(job.ranks > 1 for job in jobs) else []
    done = []
    for number, job in enumerate(jobs, 1):
        place = f"[{number}/{len(jobs)}] {job.directory} on {job.ranks} rank{'s' if job.ranks > 1 else ''}"
        if told := job.finished():
            print(f"{place}: done before, {_reached(told)}", flush=True)
            done.append(job.directory)
            continue
        print(f"{place} ...", flush=True)
        code = run(job, start)
        if code == STOPPED:
            print(f"{place}: stopped with its state saved; the same command goes on", flush=True)
            break
        if code == 0 and (told := job.summary):
            print(f"{place}: {_reached(told)}", flush=True)
            done.append(job.directory)
        else:
            print(f"{place}: failed with code {code}, see {log_of(job)}", flush=True)
    return done


def planned(
    files: Sequence[Path], seeds: int, ranks: int, settings: tuple[str, ...], runs: Path | None = None
) -> list[Job]:
    """Every experiment with every seed, seed by seed, so that a comparison that is stopped has something of all.

    With ``runs`` their directories are moved there, each with its last name.
    """
    jobs, owners = [], dict[str, Path]()
    for file in files:
        config = read_config(str(file), settings)
        grid, place = config.grid, config.run.directory
        if runs is not None:
            place = str(runs / Path(place).name)
        if place in owners:
            raise InputError(str(file), f"run.directory is {place}, as in {owners[place]}: each needs one of its own")
        owners[place] = file
        if not (grid.replicas or ranks):
            raise InputError(str(file), "grid.replicas is 0, for as many as there are ranks: say how many with --ranks")
        needed = grid.replicas * grid.stages * grid.shards or ranks
        jobs += [Job(str(file), seed, Path(f"{place}-{seed}"), needed, settings) for seed in range(seeds)]
    return sorted(jobs, key=lambda job: job.seed)


def command(launcher: str) -> list[str]:
    """The program that starts ranks, with its options: by default the mpirun beside Python, or on PATH."""
    if launcher:
        return shlex.split(launcher)
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise InputError("--launcher", "there is no mpirun beside Python or on PATH: say what starts ranks")
    return [found]


def run(job: Job, start: Sequence[str]) -> int:
    """Run a job to its end, what it prints going into a file beside its directory; the code of its launcher."""
    line = [sys.executable, *job.arguments]
    if job.ranks > 1:
        line = [*start, "-n", str(job.ranks), *line]
    log = log_of(job)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as out:
            return subprocess.run(line, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=os.environ).returncode
    except OSError as error:
        raise InputError(error.filename or line[0], f"cannot be started or written: {error.strerror}") from error


def log_of(job: Job) -> Path:
    """What a job has printed, every time that it was started."""
    return job.directory.with_name(job.directory.name + ".log")


def _reached(summary: dict[str, Any]) -> str:
    return f"test {quality_text(summary['test'])}, {summary['seconds']:.1f} s of training"
