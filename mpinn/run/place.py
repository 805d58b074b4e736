"""The run directory that the user has named: what is there already, and what may become of it. Nothing is written."""

import os
from pathlib import Path

from mpinn.config import ORDER, read_toml
from mpinn.errors import InputError
from mpinn.storage.directory import RunDirectory, write_text
from mpinn.storage.history import read
from mpinn.storage.index import read_index
from mpinn.storage.restore import newest


def names_of(directory: RunDirectory) -> tuple[str, ...]:
    """The checkpoints that are there, by their names."""
    return tuple(path.name for path in directory.checkpoints())


def look_back(directory: RunDirectory, notes: list[str]) -> Path | None:
    """The checkpoint from which the run goes on, if there is one; the metrics so far must be readable too."""
    if not directory.path.is_dir():
        return None
    read(directory.metrics)
    found = newest(directory.path, notes.append)
    if found is not None and not _indexed(directory):
        notes.append(f"{directory.index} is made anew at the next save, from the checkpoints that are not damaged")
    return found


def check_place(path: Path) -> None:
    """Raise InputError for what is there and is no directory, such as a file, a pipe or a device."""
    if os.path.exists(path) and not path.is_dir():
        raise InputError("run.directory", f"{str(path)!r} is there, and it is no directory: choose another one")


def check_fresh(directory: RunDirectory) -> None:
    """Only a run is moved aside, never a directory that holds something else; raises InputError."""
    path = directory.path
    if not path.is_dir():
        return
    if {*path.iterdir()} - {directory.lock} and not directory.config.is_file():
        raise InputError("--fresh", f"{path} is not moved aside: it has no {directory.config.name}, so it is no run")
    if directory.config.is_file() and not _left_by_a_run(directory):
        wrong = f"no run has written its {directory.config.name}, so it is no run"
        raise InputError("--fresh", f"{path} is not moved aside: {wrong}; choose another directory")
    if Path.cwd().is_relative_to(path.resolve()):
        raise InputError("--fresh", f"{path} is not moved aside while this is typed in it: go to another folder")


def begun_here(directory: RunDirectory) -> bool:
    """Whether this job has begun the run, before Slurm started it again."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") in ("", "0"):
        return False
    try:
        return directory.job.read_text() == os.environ.get("SLURM_JOB_ID")
    except OSError:
        return False


def note_job(directory: RunDirectory) -> None:
    """Remember which job begins the run, if one does."""
    if job := os.environ.get("SLURM_JOB_ID"):
        write_text(directory.job, job)
    else:
        directory.job.unlink(missing_ok=True)


def check_own(file: Path) -> None:
    """What a person has written is not written over; raises InputError."""
    if os.path.lexists(file) and not (file.is_file() and set(ORDER) <= read_toml(file).keys()):
        raise InputError("run.directory", f"{file} is there, and no run has written it: choose another directory")


def _indexed(directory: RunDirectory) -> bool:
    try:
        return read_index(directory) is not None
    except InputError:
        return False


def _left_by_a_run(directory: RunDirectory) -> bool:
    """Whether a run has written the config.toml, which then has every table; a damaged one is known by its company."""
    if directory.checkpoints():
        return True
    try:
        return set(ORDER) <= read_toml(directory.config).keys()
    except InputError:
        return directory.metrics.is_file()
