"""The command line. What a command needs is imported inside it."""

import gc
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mpinn import __version__
from mpinn.comm.launch import silence_other_ranks

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

HELP = """Train neural networks in parallel under mpirun, and look at what came out.

\b
  mpirun -n 4 python -m mpinn                              train on the digits that come with the program
  mpirun -n 4 python -m mpinn jobs/digits.toml             train what a file describes
  mpirun -n 4 python -m mpinn --set consensus.score=best   change one key
  python -m mpinn inspect runs/digits                      look at a run or a checkpoint
  python -m mpinn data mnist                               get or convert a data set
  mpirun -n 4 python -m mpinn doctor                       look at the machine

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


Settings = Annotated[list[str] | None, typer.Option("--set", help="table.key=value, in place of the file's.")]


class Split(StrEnum):
    """The splits of a data set."""

    train = "train"
    validation = "validation"
    test = "test"


class Bench(StrEnum):
    """What can be measured."""

    mlp = "mlp"
    layers = "layers"
    networks = "networks"
    messages = "messages"


@app.command()
def train(
    config: Annotated[str | None, typer.Argument(help="A TOML file; without one, every key has its default.")] = None,
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Insist on going on from a checkpoint.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an old run aside and start anew.")] = False,
    stop_after: Annotated[int, typer.Option(min=0, help="Stop and save after this step, as a signal would.")] = 0,
) -> None:
    """Train, or go on where the run directory's newest checkpoint is.

    \b
    mpirun -n 4 python -m mpinn train jobs/digits.toml --set train.epochs=100
    mpirun -n 4 python -m mpinn --set model.widths=[128,128] --set run.directory=runs/wide
    """
    gc.disable()  # until the run is built: modules and kernels are many objects and no garbage
    from mpinn.checks import Request
    from mpinn.comm.grid import connect
    from mpinn.train import train as run

    request = Request(config, tuple(settings or ()), resume, fresh, stop_after)
    raise typer.Exit(run(connect(), request))


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="A checkpoint file or a run directory.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a checkpoint or a run is and what is in it.

    \b
    python -m mpinn inspect runs/digits
    python -m mpinn inspect runs/digits/checkpoint-00000540.h5 --json
    """
    from mpinn.analysis.inspect import inspect as run

    run(Path(path), json)


@app.command()
def evaluate(
    path: Annotated[str, typer.Argument(help="A run directory or a checkpoint file.")],
    split: Annotated[Split, typer.Option(help="The split of the data.")] = Split.test,
    settings: Settings = None,
    best: Annotated[bool, typer.Option("--best", help="The run's best checkpoint, not its newest.")] = False,
) -> None:
    """Measure a saved model.

    \b
    python -m mpinn evaluate runs/digits
    mpirun -n 4 python -m mpinn evaluate runs/digits --best --split validation
    """
    from mpinn.comm.grid import connect
    from mpinn.evaluate import evaluate as run

    raise typer.Exit(run(connect(), path, split.value, tuple(settings or ()), best))


@app.command()
def doctor() -> None:
    """Say which ranks, machines and libraries there are, and how fast messages are.

    \b
    mpirun -n 4 python -m mpinn doctor
    """
    from mpinn.array.device import describe_devices
    from mpinn.comm.grid import connect
    from mpinn.comm.transport import choose_transport
    from mpinn.doctor import doctor as run
    from mpinn.storage.versions import versions

    world = connect()
    transport, reason = choose_transport("auto", world.library)
    run(world, transport=f"{transport.name}: {reason}", describe_devices=describe_devices, versions=versions())


@app.command()
def bench(
    what: Annotated[Bench, typer.Argument(help="What to measure.")],
) -> None:
    """Measure speed, beside PyTorch's where PyTorch is installed, as ratios from one run.

    \b
    python -m mpinn bench mlp
    python -m mpinn bench networks
    mpirun -n 2 python -m mpinn bench messages
    """
    if what is Bench.mlp:
        from mpinn.bench import mlp

        mlp.print_rows(mlp.run())
    elif what is Bench.layers:
        from mpinn.bench import layers

        layers.print_rows(layers.run())
    elif what is Bench.networks:
        from mpinn.bench import networks

        networks.print_rows(networks.run())
    else:
        from mpinn.bench import messages
        from mpinn.comm.grid import connect

        world = connect()
        rows = messages.run(world)
        if world.rank == 0:
            messages.print_rows(rows)


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


COMMANDS = ("train", "evaluate", "inspect", "data", "doctor", "bench")


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its code; a mistake of the user is one message on one rank and code 2."""
    for variable in THREADS:
        os.environ.setdefault(variable, "1")
    from mpinn.comm.abort import install_abort_hook, leave
    from mpinn.errors import FatalError, InputError

    given = sys.argv[1:] if arguments is None else arguments
    silence_other_ranks()
    install_abort_hook()
    code: int | str | None = 0
    try:
        # Not app(...), which puts typer's own hook in the place of the one that ends the job.
        typer.main.get_command(app)(_with_command(given), prog_name="python -m mpinn")
    except SystemExit as left:
        code = left.code
    except InputError as error:
        print(f"mpinn: {error}", file=sys.stderr, flush=True)
        code = 2
    except FatalError as error:
        print(f"mpinn: {error}", file=sys.stderr, flush=True)
        code = 1
    leave(code if isinstance(code, int) else 0)


def _with_command(arguments: list[str]) -> list[str]:
    """The arguments with ``train`` before them, unless they name a command or ask for help."""
    if arguments and (arguments[0] in COMMANDS or arguments[0] in ("-h", "--help", "--version")):
        return arguments
    return ["train", *arguments]
