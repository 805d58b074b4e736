"""What can be known of the launcher before MPI is started: this process's rank, and whether a person is watching."""

import codecs
import fcntl
import os
import struct
import sys
import termios
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

LAUNCHERS = {"mpirun", "mpiexec", "mpiexec.hydra", "mpiexec.gforker", "prterun", "orterun", "prte"}
"""Programs whose own standard output is where the output of the ranks ends up."""
WIDTH = 80
"""Columns assumed where no terminal can be asked."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Where a launcher has put this process. Read from the environment: MPI itself may see something else.

    local_rank: among the ranks on this machine; None where the launcher doesn't say.
    """

    rank: int
    size: int
    local_rank: int | None
    local_size: int
    launcher: str


# Names of rank, size, rank on this machine, and ranks on this machine.
_OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
_MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "")
_PMIX = ("PMIX_RANK", "", "", "")
_ASKED = ("PMI_FD", "PMI_RANK", "PMI_SIZE")
"""By what MPICH knows that a launcher is to be asked for the other ranks."""


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """The launch that the environment describes; None when the process was started alone."""
    if "OMPI_COMM_WORLD_RANK" in environment:
        return _read(environment, _OPEN_MPI, "Open MPI's mpirun")
    # Both mpiruns start their daemons with srun inside a Slurm job, so that Slurm's variables then count daemons.
    if "MPI_LOCALRANKID" in environment:
        return _read(environment, _MPICH, "MPICH's mpirun")
    # The script of a Slurm job has SLURM_PROCID=0 and SLURM_NTASKS although nothing was started; a step has this too.
    if "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        return _read(environment, _SLURM, "srun")
    if "PMI_RANK" in environment:
        return _read(environment, _MPICH, "a PMI launcher")
    if "PMIX_RANK" in environment:
        return _read(environment, _PMIX, "a PMIx launcher")
    return None


def forget_interface(launch: Launch, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let a rank that is alone in a step of Slurm start MPI without srun, which answers the first program only.

    In an interactive shell of ``srun --mpi=pmi2 --pty bash`` it would not start a second time.
    """
    if launch.launcher == "srun" and launch.size == 1:
        for name in _ASKED:
            environment.pop(name, None)


def _read(environment: Mapping[str, str], names: tuple[str, ...], launcher: str) -> Launch:
    values = [environment.get(name, "") for name in names]
    rank, size, local_rank, local_size = (int(value) if value.isdigit() else None for value in values)
    ranks = size or 1
    return Launch(
        rank=rank or 0,
        size=ranks,
        local_rank=local_rank,
        local_size=local_size or ranks,
        launcher=launcher,
    )


def settle_streams() -> None:
    """Let nothing that is printed end a run: a stream that was closed leads to nowhere, and stdout replaces characters.

    Otherwise the next file that is opened, which may be a checkpoint, would stand where libraries print.
    """
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(free)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "w")  # noqa: SIM115  open until the process ends
            setattr(sys, name, nowhere)
            setattr(sys, f"__{name}__", nowhere)
    if isinstance(sys.stdout, TextIOWrapper) and not _prints_all(sys.stdout):
        sys.stdout.reconfigure(errors="replace")


def _prints_all(stream: TextIOWrapper) -> bool:
    """Whether no character raises: with surrogateescape, which locale C brings, none does in UTF-8 alone."""
    narrow = stream.errors == "surrogateescape" and codecs.lookup(stream.encoding).name != "utf-8"
    return stream.errors != "strict" and not narrow


def silence_other_ranks(launch: Launch | None = None) -> None:
    """Send what ranks other than 0 print from Python to nowhere; an abort still writes to ``sys.__stderr__``."""
    launch = launch or read_launch()
    if launch is not None and launch.rank != 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (open until the process ends)


def speak() -> None:
    """From now on this rank is the one that prints: those before it are gone."""
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


def say(text: str) -> None:
    """Print a line that is seen at once; where the output takes none, as on a full disk, say so and go on without it.

    Raises BrokenPipeError where the reader of the output has gone.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with suppress(OSError):
            lost = f"standard output cannot be written: {error.strerror}; from here on what it is told is lost"
            print(f"mpinn: {lost}", file=sys.stderr, flush=True)


def on_terminal(proc: Path = Path("/proc"), environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the output of rank 0 ends on a terminal, seen through a launcher on this machine."""
    if read_launch(environment) is None:
        return sys.stdout.isatty()
    return launcher_terminal(proc) is not None


def terminal_width(proc: Path = Path("/proc"), environment: Mapping[str, str] = os.environ) -> int:
    """Columns of the terminal that shows the output of rank 0."""
    if read_launch(environment) is None:
        return _columns(sys.stdout.fileno()) if sys.stdout.isatty() else WIDTH
    terminal = launcher_terminal(proc)
    if terminal is None:
        return WIDTH
    try:
        device = os.open(terminal, os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return WIDTH
    try:
        return _columns(device)
    finally:
        os.close(device)


def launcher_terminal(proc: Path = Path("/proc"), process: int | None = None) -> str | None:
    """The terminal on which the launcher above ``process`` prints.

    The rank's own standard output tells nothing: it is a pipe under MPICH and a pseudo-terminal under Open MPI,
    wherever the launcher's goes. Under srun and on other machines no launcher is an ancestor: None.
    """
    for ancestor in _ancestors(proc, os.getpid() if process is None else process):
        try:
            name = (proc / str(ancestor) / "comm").read_text().strip()
            target = os.readlink(proc / str(ancestor) / "fd" / "1")
        except OSError:
            return None
        if name in LAUNCHERS:
            return target if target.startswith(("/dev/pts/", "/dev/tty")) else None
    return None


def _ancestors(proc: Path, process: int) -> Iterator[int]:
    while process > 1:
        try:
            # The second field is the program's name in brackets, which may itself hold brackets and blanks.
            fields = (proc / str(process) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return
        process = int(fields[1])
        yield process


def _columns(device: int) -> int:
    try:
        size = fcntl.ioctl(device, termios.TIOCGWINSZ, bytes(8))
    except OSError:
        return WIDTH
    columns: int = struct.unpack("HHHH", size)[1]
    return columns or WIDTH
