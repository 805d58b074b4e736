"""The command line. What a command needs is imported inside it."""

import os
import sys
from typing import Annotated

import typer

from mpinn.comm.launch import silence_other_ranks

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

app = typer.Typer(
    name="mpinn",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Train neural networks in parallel under mpirun, and look at what came out.

\b
  mpirun -n 4 python -m mpinn                              train on the digits that come with the program
  mpirun -n 4 python -m mpinn jobs/digits.toml             train what a file describes
  mpirun -n 4 python -m mpinn --set consensus.score=best   change one key
  python -m mpinn inspect runs/digits                      look at a run or a checkpoint
  mpirun -n 4 python -m mpinn doctor                       look at the machine

Without the name of a command it trains. Exit codes: 0 done; 2 what you gave is wrong; 75 stopped with the state saved,
run the same command again; anything else is a failure.""",
)


@app.command()
def train(
    config: Annotated[str | None, typer.Argument(help="A TOML file; without one, every key has its default.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="table.key=value, instead of the file's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Insist on going on from a checkpoint.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an old run aside and start anew.")] = False,
    stop_after: Annotated[int, typer.Option(min=0, help="Stop and save after this step, as a signal would.")] = 0,
) -> None:
    """Train, or go on where the run directory's newest checkpoint is.

    \b
    mpirun -n 4 python -m mpinn train jobs/digits.toml --set train.epochs=100
    mpirun -n 4 python -m mpinn --set model.widths=[128,128] --set run.directory=runs/wide
    """
    from mpinn.comm.grid import connect
    from mpinn.experiment import Request
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

    run(path, json)


COMMANDS = ("train", "inspect")


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its code; a mistake of the user is one message on one rank and code 2."""
    for variable in THREADS:
        os.environ.setdefault(variable, "1")
    from mpinn.comm.abort import install_abort_hook, leave
    from mpinn.config import InputError

    given = sys.argv[1:] if arguments is None else arguments
    silence_other_ranks()
    install_abort_hook()
    try:
        code = app(_with_command(given), standalone_mode=False) or 0
    except InputError as error:
        print(f"mpinn: {error}", file=sys.stderr, flush=True)
        code = 2
    leave(code)


def _with_command(arguments: list[str]) -> list[str]:
    """The arguments with ``train`` before them, unless they name a command or ask for help."""
    if arguments and (arguments[0] in COMMANDS or arguments[0] in ("-h", "--help", "--version")):
        return arguments
    return ["train", *arguments]
