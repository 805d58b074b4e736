"""The command ``submit``: a batch script for one run, written into its directory and handed to Slurm."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mpinn
from mpinn.config import Config
from mpinn.errors import FatalError, InputError
from mpinn.run.checks import Request, check, set_aside
from mpinn.run.target import kernels_of
from mpinn.storage.directory import RunDirectory, write_text

TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(:\d+){0,2})")
"""As Slurm writes a time: minutes, hours:minutes:seconds, days-hours and what lies between."""
SIGNAL = re.compile(r"--signal[= ].*@(\d+)")
EARLY = 60
"""Seconds that Slurm may send a signal before its time."""
TEMPLATE, SCRIPT, SHARED, ENVIRONMENT = "train.sbatch", "job.sbatch", "start.sh", "environment.sh"


@dataclass(frozen=True)
class Allocation:
    """What a job asks Slurm for: one rank for each GPU, or so many for each node; ``more`` are options of sbatch."""

    nodes: int
    gpus_per_node: int
    ranks_per_node: int
    time: str
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seconds = seconds_of(self.time)
        for option in self.more:
            if not option.startswith("-") or "\n" in option:
                raise InputError("--sbatch", f"expected an option of sbatch such as --partition=gpu, got {option!r}")
        lead = _lead((*_kept(), *self.more))
        # a limit of 0 is none
        if 0 < seconds <= lead + EARLY:
            least = (lead + EARLY) // 60 + 1
            said = f"a job is told to save its state {lead} seconds before its end, and up to {EARLY} earlier"
            raise InputError("--time", f"{said}: expected at least {least} minutes, got {self.time!r}")

    def remarks(self, collectives: str) -> list[str]:
        """What is odd about ranks and GPUs; InputError if they cannot have their ``collectives`` so."""
        ranks, gpus = self.tasks_per_node, self.gpus_per_node
        if not gpus or ranks == gpus:
            return []
        if ranks < gpus:
            return [f"warning: {ranks} of the {gpus} GPUs of a node are used, one by each rank"]
        if collectives == "nccl":
            raise InputError("--ranks-per-node", f"NCCL wants a GPU for each rank, so at most {gpus}, got {ranks}")
        return [f"warning: the {ranks} ranks of a node share {gpus} GPU{'s' * (gpus > 1)} and take turns on them"]

    @property
    def tasks_per_node(self) -> int:
        """Ranks of one node."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def options(self) -> list[str]:
        """For sbatch."""
        gpus = [f"--gpus-per-node={self.gpus_per_node}"] if self.gpus_per_node else []
        shape = [f"--nodes={self.nodes}", f"--ntasks-per-node={self.tasks_per_node}", *gpus]
        return [*shape, f"--time={self.time}", *self.more]


def submit(request: Request, allocation: Allocation, environment: Path | None, dry_run: bool) -> list[str]:
    """Submit a run, or only show how; what is to be said. Raises InputError before anything is written."""
    start = check(request, allocation.nodes * allocation.tasks_per_node, here=False)
    kernels_of(start.config, measured=False)
    notes = [*start.notes, *allocation.remarks(start.config.run.collectives)]
    directory = RunDirectory(start.config.run.directory)
    if start.summary is not None:
        return [*notes, f"{directory.path} is a finished run: nothing is submitted"]
    site = _site(environment)
    script = directory.path.absolute() / SCRIPT
    text = _script(directory, allocation)
    command = ["sbatch", "--parsable", str(script), str(directory.config.absolute())]
    if dry_run:
        return [*notes, text.rstrip(), "", f"# {site} is copied beside it, and then:", shlex.join(command)]
    if shutil.which(command[0]) is None:
        raise InputError("sbatch", "there is no such program here; --dry-run shows what would be submitted")
    said = [
        *notes,
        *_write(directory, start.config, start.fresh, {script.name: text, site.name: site.read_text()}),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode != 0:
        raise FatalError(f"{shlex.join(command)}: {done.stderr.strip()}")
    job = done.stdout.strip().partition(";")[0]
    return [*said, f"job {job} is submitted; what it says will be in {directory.path / 'job.log'}"]


def _write(directory: RunDirectory, config: Config, fresh: bool, files: dict[str, str]) -> list[str]:
    """The scripts, and the configuration as it was checked: the job trains that, whatever becomes of its file."""
    try:
        said = [set_aside(directory)] if fresh and directory.path.exists() else []
        directory.create()
        write_text(directory.config, config.toml())
        for name, text in {SHARED: (_folder() / SHARED).read_text(), **files}.items():
            write_text(directory.path / name, text)
    except OSError as error:
        where = error.filename or directory.path
        raise InputError("run.directory", f"{str(where)!r} cannot be written: {error.strerror}") from error
    return said


def _script(directory: RunDirectory, allocation: Allocation) -> str:
    """The script that comes with the program, for this run and this allocation."""
    place = directory.path.absolute()
    template = (_folder() / TEMPLATE).read_text()
    log = str(place / "job.log").replace("%", "%%")
    options = [f"--job-name={place.name}", f"--chdir={Path.cwd()}", f"--output={log}", *_kept(), *allocation.options]
    _, _, body = template.partition("\njobs=")
    return "\n".join(
        [
            "#!/bin/bash",
            f"# sbatch {shlex.quote(str(place / SCRIPT))} {shlex.quote(str(directory.config.absolute()))}",
            *(f"#SBATCH {_quoted(option)}" for option in options),
            "",
            f"jobs={shlex.quote(str(place))}",
            body.partition("\n")[2],
        ]
    )


def seconds_of(time: str) -> int:
    """Of a time limit as Slurm reads it: a number alone is minutes, or hours after days; InputError if it is none."""
    found = TIME.fullmatch(time)
    if found is None:
        raise InputError("--time", f"expected a time of Slurm's such as 30, 12:00:00 or 2-00, got {time!r}")
    numbers = [int(number) for number in found["rest"].split(":")]
    units = (3600, 60, 1) if found["days"] or len(numbers) == 3 else (60, 1)
    return 86400 * int(found["days"] or 0) + sum(a * b for a, b in zip(numbers, units, strict=False))


def _kept() -> list[str]:
    """The options of the script that comes with the program with which a job is stopped in time and goes on."""
    lines = re.findall(r"^#SBATCH (.*)$", (_folder() / TEMPLATE).read_text(), re.M)
    return [line for line in lines if line.startswith(("--signal", "--requeue", "--open"))]


def _lead(options: Sequence[str]) -> int:
    """Seconds before the end of a job at which the last of its options with a signal has that sent."""
    found = [int(match[1]) for match in map(SIGNAL.fullmatch, options) if match]
    return found[-1] if found else 0


def _quoted(option: str) -> str:
    """An option as sbatch reads it from a script."""
    return option if re.fullmatch(r"[\w@%+=:,./-]*", option) else f'"{option}"'


def _folder() -> Path:
    """The scripts that come with the program."""
    package = Path(mpinn.__file__).parent
    return next(place for place in (package / "jobs", package.parent / "jobs") if place.is_dir())


def _site(environment: Path | None) -> Path:
    """What depends on the site: the file that was named, or that of the folder jobs here, or the program's own."""
    found = environment or Path("jobs") / ENVIRONMENT
    if found.is_file():
        return found
    if environment is not None:
        raise InputError("--environment", f"there is no file {str(environment)!r}")
    return _folder() / ENVIRONMENT
