"""The command line. What a command needs is imported inside it; commands on files stand in `mpinn.cli.files`."""

import errno
import gc
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mpinn import __version__
from mpinn.array.blas import settle_blas
from mpinn.cli.bench import benches
from mpinn.cli.files import Settings, files
from mpinn.cli.plan import plans
from mpinn.comm.launch import settle_streams, silence_other_ranks

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

FULL = (errno.ENOSPC, errno.EDQUOT)

HELP = """Train neural networks in parallel under mpirun, and look at what came out.

\b
  mpirun -n 4 python -m mpinn                              train on the digits that come with the program
  mpirun -n 4 python -m mpinn jobs/digits.toml             train what a file describes
  mpirun -n 4 python -m mpinn --set consensus.score=best   change one key
  python -m mpinn keys schedule.name=fdg                   say what a configuration may have; keys alone: everything
  python -m mpinn inspect runs/digits                      look at a run or a checkpoint
  python -m mpinn plan jobs/cifar10.toml --stages 4        split a model into stages, and say what a step costs
  python -m mpinn plan jobs/cifar10.toml --ranks 1-1024    say what grid to take on so many ranks, and why
  python -m mpinn data mnist                               get or convert a data set
  mpirun -n 4 python -m mpinn doctor                       look at the machine
  python -m mpinn submit jobs/digits.toml --nodes 4        train in a job of Slurm's

Without the name of a command it trains. Exit codes: 0 done; 2 what you gave is wrong; 75 stopped with the state saved,
run the same command again; anything else is a failure."""

app = typer.Typer(
    name="mpinn",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mpinn {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    """Take what stands before the name of a command."""


@app.command()
def train(
    config: Annotated[str | None, typer.Argument(help="A TOML file; without one, every key has its default.")] = None,
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Insist on going on from a checkpoint.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an old run aside and start anew.")] = False,
    stop_after: Annotated[int, typer.Option(min=0, help="Stop and save after this step, as a signal would.")] = 0,
    trace: Annotated[bool, typer.Option("--trace", help="Write a timeline of all ranks for ui.perfetto.dev.")] = False,
    where: Annotated[bool, typer.Option("--where", help="Print the run directory, and train nothing.")] = False,
) -> None:
    """Train, or go on where the run directory's newest checkpoint is.

    \b
    mpirun -n 4 python -m mpinn train jobs/digits.toml --set train.epochs=100
    mpirun -n 4 python -m mpinn --set model.widths=[128,128] --set run.directory=runs/wide
    """
    if where:
        from mpinn.training.choices import read_config

        print(read_config(config, tuple(settings or ())).run.directory)
        return
    from mpinn.signals import Signals

    signals = Signals()
    signals.listen()  # before the imports and the start of MPI, which take their time
    gc.disable()  # until the run is built: modules and kernels are many objects and no garbage
    from mpinn.comm.grid import connect
    from mpinn.commands.train import train as run
    from mpinn.errors import InputError
    from mpinn.run.checks import Request

    request = Request(config, tuple(settings or ()), resume, fresh, stop_after, trace)
    try:
        code = run(connect(), request, signals)
    except InputError as error:
        if config is None or error.path != config or not _is_word(config):
            raise
        raise _neither(config) from None
    raise typer.Exit(code)


@app.command()
def submit(
    config: Annotated[str | None, typer.Argument(help="A TOML file; without one, every key has its default.")] = None,
    settings: Settings = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[
        int, typer.Option(min=0, help="One rank each, unless --ranks-per-node says otherwise.")
    ] = 0,
    ranks_per_node: Annotated[int, typer.Option(min=0, help="0: one for each GPU.")] = 0,
    time: Annotated[
        str,
        typer.Option(help="As Slurm writes it, of at least 5 minutes; the job is requeued until the run is done."),
    ] = "1:00:00",
    more: Annotated[list[str] | None, typer.Option("--sbatch", help="An option more, as --partition=gpu.")] = None,
    environment: Annotated[Path | None, typer.Option(help="In place of jobs/environment.sh.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an old run aside and start anew.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script, and do nothing.")] = False,
) -> None:
    """Check a run, write a batch script into its directory, and submit that to Slurm.

    \b
    mpinn submit jobs/cifar10.toml --nodes 4 --gpus-per-node 4 --time 12:00:00
    mpinn submit --ranks-per-node 8 --sbatch=--partition=short --set run.directory=runs/eight --dry-run
    """
    from mpinn.commands.submit import Allocation
    from mpinn.commands.submit import submit as run
    from mpinn.run.checks import Request

    allocation = Allocation(nodes, gpus_per_node, ranks_per_node, time, tuple(more or ()))
    request = Request(config, tuple(settings or ()), fresh=fresh)
    print("\n".join(run(request, allocation, environment, dry_run)))


@app.command()
def doctor(
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Try whether MPI reads memory of GPUs, which may crash; save the result."),
    ] = False,
) -> None:
    """Say which ranks, machines and libraries there are, and how fast messages are.

    \b
    mpirun -n 4 python -m mpinn doctor
    mpirun -n 2 python -m mpinn doctor --probe
    """
    from mpinn.array.device import choose_device, describe_devices
    from mpinn.comm.grid import connect
    from mpinn.commands.doctor import doctor as run
    from mpinn.commands.doctor import try_transports
    from mpinn.storage.versions import versions

    world = connect()
    device = choose_device("auto", "plain", world.local_rank)
    if probe:
        try_transports(world, device)
    else:
        run(world, device, describe_devices=describe_devices, versions=versions())


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="mnist, cifar10 or cifar100.")],
    originals: Annotated[
        Path | None, typer.Option("--from", help="The folder or archive that has its official files; else download.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="The file to write; else one in MPINN_DATA, where it's found.")
    ] = None,
) -> None:
    """Convert a data set to one HDF5 file: official files that are there, or downloaded ones.

    \b
    python -m mpinn data mnist
    python -m mpinn data cifar10 --from ~/Downloads/cifar-10-binary.tar.gz
    """
    from mpinn.datasets.prepare import prepare

    prepare(name, originals, to)


app.registered_commands += [*benches.registered_commands, *plans.registered_commands, *files.registered_commands]
COMMANDS = tuple(command.name or command.callback.__name__ for command in app.registered_commands if command.callback)
ALONE = ("inspect", "diff", "export", "import", "report", "extract", "keys", "plan", "submit", "data")
"""Commands of one process, with which no other rank waits for a message."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its code; a mistake of the user is one message on one rank and code 2."""
    for variable in THREADS:
        os.environ.setdefault(variable, "1")
    settle_blas()
    from mpinn.comm.abort import install_abort_hook, leave

    settle_streams()
    silence_other_ranks()
    install_abort_hook()
    code, report = _written(*_run(sys.argv[1:] if arguments is None else arguments))
    if report:
        print(report, file=sys.stderr)
    leave(code, report)


def _run(arguments: list[str]) -> tuple[int, str]:
    """The code with which a command ends, and what is to be said of it."""
    from mpinn.comm.abort import INTERRUPTED, leave_interrupted
    from mpinn.errors import FatalError, InputError

    try:
        arguments = _with_command([_at_home(argument) for argument in arguments])
        # Not app(...), which puts typer's own hook in the place of the one that ends the job.
        typer.main.get_command(app)(arguments, prog_name="python -m mpinn")
    except SystemExit as left:
        if left.code == INTERRUPTED:
            leave_interrupted()
        if isinstance(left.__context__, BrokenPipeError):
            training = arguments[0] == "train" and not {"-h", "--help"} & set(arguments)
            return (1, "mpinn: the reader of the output has gone") if training else (0, "")
        return (1, left.code) if isinstance(left.code, str) else (left.code or 0, "")
    except InputError as error:
        return 2, f"mpinn: {error}"
    except FatalError as error:
        return 1, f"mpinn: {error}"
    except OSError as error:
        if error.filename is None and error.errno in FULL and _output_is_full():
            return 1, _lost(error)
        if not isinstance(error, PermissionError) or arguments[0] not in ALONE or error.filename is None:
            raise
        return 2, f"mpinn: {error.filename}: {error.strerror}"
    return 0, ""


def _written(code: int, report: str) -> tuple[int, str]:
    """The same, unless what was printed is still held here and cannot be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and not code:
            return 1, _lost(error)
    return code, report


def _lost(error: OSError) -> str:
    return f"mpinn: standard output cannot be written: {error.strerror}"


def _output_is_full() -> bool:
    """Whether nothing can be printed, not even the end of a line."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _with_command(arguments: list[str]) -> list[str]:
    """The arguments with ``train`` before them, unless they name a command or ask for help.

    Raises InputError if they begin with what is neither a command nor a file, and go on as ``train`` never does.
    """
    first, second = (*arguments, "", "")[:2]
    if first in COMMANDS or first in ("-h", "--help", "--version"):
        return arguments
    if second and (second in ("-h", "--help") or not second.startswith("-")) and _is_word(first):
        raise _neither(first)
    return ["train", *arguments]


def _at_home(argument: str) -> str:
    """A path, or an option with one, where a shell has left a ``~`` before it, as in ``--out=~/report``."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{equals}{os.path.expanduser(value)}"


def _neither(first: str) -> Exception:
    from mpinn.errors import InputError
    from mpinn.words import nearest

    return InputError("", f"{first} is neither a command nor a file{nearest(first, COMMANDS)}")


def _is_word(first: str) -> bool:
    """Whether what should be a file is none, and looks like the name of a command."""
    path = Path(first)
    return not first.startswith("-") and path.name == first and not path.suffix and not path.exists()
