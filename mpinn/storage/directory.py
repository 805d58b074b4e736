"""The run directory: which file is where, and writing that survives a crash."""

import errno
import os
import re
from contextlib import suppress
from pathlib import Path

PARTIAL = ".partial"
CHECKPOINT = re.compile(r"checkpoint-(\d{8,})\.h5")
NEVER_SYNCED = {errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}
"""What comes of asking where a file system brings no directory to the disk alone, or where it may not be read."""


class RunDirectory:
    """The files of one run, ``runs/<name>``."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.metrics = self.path / "metrics.jsonl"
        self.index = self.path / "checkpoints.json"
        self.latest = self.path / "latest"
        self.summary = self.path / "summary.json"
        self.ranking = self.path / "ranking.csv"
        self.requeue = self.path / "requeue"
        self.lock = self.path / "lock"
        self.job = self.path / "job"
        """Has the number of the job of Slurm's that began the run, where one did."""

    def create(self) -> None:
        """Make the directory and its parents, or what a link leads to, durably; one that exists is left as it is."""
        place = followed(self.path)
        place.mkdir(parents=True, exist_ok=True)
        sync_directory(place.parent)

    def checkpoint(self, step: int) -> Path:
        """The checkpoint file of a step."""
        return self.path / f"checkpoint-{step:08d}.h5"

    def inspection(self, step: int) -> Path:
        """The file that a run leaves when it fails: to look at, never to resume from."""
        return self.path / f"inspection-{step:08d}.h5"

    def inspections(self) -> list[Path]:
        """The files of failures that are there, the highest step first."""
        return sorted(self.path.glob("inspection-*.h5"), reverse=True)

    def checkpoints(self) -> list[Path]:
        """The checkpoint files that are there, the highest step first."""
        found = [path for path in self.path.glob("checkpoint-*.h5") if CHECKPOINT.fullmatch(path.name)]
        return sorted(found, key=step_of, reverse=True)

    def remove_partial(self) -> None:
        """Remove what a killed run left half written."""
        for path in self.path.glob(f".*{PARTIAL}"):
            path.unlink(missing_ok=True)

    def point_latest(self, name: str) -> None:
        """Let ``latest`` point to the file ``name``: a link, or the name as text where links are impossible."""
        temporary = partial(self.latest)
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(name)
        except OSError:
            write_text(self.latest, name + "\n")
            return
        os.replace(temporary, self.latest)
        sync_directory(self.path)


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint file."""
    match = CHECKPOINT.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint.name} is not the name of a checkpoint")
    return int(match[1])


def partial(path: Path) -> Path:
    """The temporary name, in the same directory, under which ``path`` is written."""
    return path.with_name(f".{path.name}{PARTIAL}")


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: after a crash it holds the old text or the new one, never a part."""
    temporary = partial(path)
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Return when the contents of a closed file are on the disk."""
    _sync(path, os.O_RDWR)


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on the disk, if its file system can say so."""
    try:
        _sync(path, os.O_RDONLY)
    except OSError as error:
        if error.errno not in NEVER_SYNCED:
            raise


def followed(directory: Path) -> Path:
    """Where a link leads, whether there is something or not; what is no link is itself."""
    return Path(os.path.realpath(directory)) if directory.is_symlink() else directory


def move_aside(directory: Path) -> Path | None:
    """Rename an existing ``runs/x`` to the first free one of ``runs/x.1``, ``runs/x.2`` ..., and return that.

    A link stays as it is, and what it leads to is renamed: the next run is to be on the same disk. Raises
    NotADirectoryError, and renames nothing, if there is something else than a directory.
    """
    if not directory.exists():
        return None
    if not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
    number, place = 1, followed(directory)
    while (aside := place.with_name(f"{place.name}.{number}")).exists() or aside.is_symlink():
        number += 1
    place.rename(aside)
    sync_directory(aside.parent)
    return aside


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
