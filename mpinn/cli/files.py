"""The commands that look at files, which need neither MPI nor a launcher; `mpinn.cli.main` has all others."""

from pathlib import Path
from typing import Annotated

import typer

files = typer.Typer()

Settings = Annotated[list[str] | None, typer.Option("--set", help="table.key=value, in place of the file's.")]


@files.command()
def inspect(
    path: Annotated[str, typer.Argument(help="A checkpoint file or a run directory.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    units: Annotated[
        bool, typer.Option("--units", help="Count dead units on validation samples: needs the data set.")
    ] = False,
    data: Annotated[str, typer.Option(help="Where the data set is, if not where it was in training.")] = "",
) -> None:
    """Say what a checkpoint or a run is and what is in it.

    \b
    python -m mpinn inspect runs/digits
    python -m mpinn inspect runs/digits/checkpoint-00000540.h5 --json
    """
    from mpinn.analysis.inspect import inspect as run
    from mpinn.errors import InputError

    if data and not units:
        raise InputError("--data", "goes with --units: nothing else needs the data set")
    run(Path(path), json, units, data)


@files.command()
def keys(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="As --set has them: a table, a key, or a table's name with its value.", metavar="PATH"),
    ] = None,
) -> None:
    """Say what a configuration may have: every key, its default, what is allowed and what it means.

    \b
    python -m mpinn keys                          everything
    python -m mpinn keys train schedule           two tables, of every schedule
    python -m mpinn keys schedule.name=fdg        the keys of one schedule
    python -m mpinn keys optimizer.floor          one key, of every optimizer
    """
    from mpinn.commands.keys import keys as run

    print("\n".join(run(tuple(paths or ()))))


@files.command()
def diff(
    first: Annotated[Path, typer.Argument(help="A checkpoint file or a run directory.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say how two checkpoints differ: configuration, weights layer by layer, replicas, optimizer.

    \b
    python -m mpinn diff runs/digits runs/gossip
    """
    from mpinn.analysis.diff import diff as run

    run(first, second, json)


@files.command()
def export(
    path: Annotated[Path, typer.Argument(help="A checkpoint file or a run directory.")],
    to: Annotated[str, typer.Option(help="onnx, safetensors or npz.")] = "onnx",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file to write; else one beside it.")] = None,
    replica: Annotated[int | None, typer.Option(help="This one; else the merged model.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The run's best checkpoint, not its newest.")] = False,
) -> None:
    """Write a saved model as one file for other programs; it takes samples as the data set has them.

    \b
    python -m mpinn export runs/digits --to onnx -o digits.onnx
    """
    from mpinn.analysis.export import export as run

    run(path, to, out, replica, best)


@files.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A .safetensors or .npz file, as export writes it.")],
    directory: Annotated[Path, typer.Argument(help="The run directory to make.")],
    config: Annotated[str | None, typer.Option(help="A TOML file for a file that says nothing of its model.")] = None,
    settings: Settings = None,
) -> None:
    """Make a run whose first checkpoint has the weights of a file: evaluate it, or train it further.

    \b
    python -m mpinn import model.safetensors runs/further --set optimizer.rate=0.01
    """
    from mpinn.comm.grid import connect
    from mpinn.commands.intake import intake
    from mpinn.signals import Signals

    raise typer.Exit(intake(connect(), file, directory, config, tuple(settings or ()), Signals()))


@files.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories; those that differ in run.seed are one series.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to write.")],
) -> None:
    """Put runs side by side on one HTML page, with its figures as PNG and its tables as CSV.

    \b
    python -m mpinn report runs/digits runs/gossip -o report
    """
    from mpinn.analysis.report import report as run

    run(runs, out)


@files.command()
def compare(
    experiments: Annotated[list[Path], typer.Argument(help="TOML files, each an experiment with a run.directory.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory of the report.")],
    seeds: Annotated[int, typer.Option(min=1, help="Run each with the seeds 0, 1, ...")] = 1,
    ranks: Annotated[int, typer.Option(min=0, help="For those whose grid.replicas is 0.")] = 0,
    launcher: Annotated[str, typer.Option(help="What starts ranks, such as 'srun'; else mpirun.")] = "",
    runs: Annotated[Path | None, typer.Option(help="Where runs are kept, by the last name of their directory.")] = None,
    settings: Settings = None,
) -> None:
    """Run experiments one after another, and report on them; typed again, it does what has not been done.

    \b
    python -m mpinn compare jobs/compare/*.toml --seeds 3 -o runs/compare/report
    python -m mpinn compare jobs/compare/*.toml --set data.name=cifar10 --runs runs/cifar10 -o runs/cifar10/report
    """
    from mpinn.analysis.report import check_place
    from mpinn.analysis.report import report as tell
    from mpinn.commands.compare import compare as run

    check_place(out)
    done = run(experiments, seeds, ranks, launcher, tuple(settings or ()), runs)
    if done:
        tell(done, out)
    raise typer.Exit(0 if len(done) == seeds * len(experiments) else 1)


@files.command()
def evaluate(
    path: Annotated[str, typer.Argument(help="A run directory or a checkpoint file.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    settings: Settings = None,
    best: Annotated[bool, typer.Option("--best", help="The run's best checkpoint, not its newest.")] = False,
) -> None:
    """Measure a saved model.

    \b
    python -m mpinn evaluate runs/digits
    mpirun -n 4 python -m mpinn evaluate runs/digits --best --split validation
    """
    choose("--split", split, ("train", "validation", "test"))
    from mpinn.comm.grid import connect
    from mpinn.commands.evaluate import evaluate as run

    raise typer.Exit(run(connect(), path, split, tuple(settings or ()), best))


@files.command()
def extract(
    path: Annotated[str, typer.Argument(help="A run directory or a checkpoint file of a population.")],
    member: Annotated[int | None, typer.Option(help="Its number, as ranking.csv has it.", metavar="<n>")] = None,
    best: Annotated[bool, typer.Option("--best", help="The member that is best by validation.")] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The run directory to write; else one beside the run.")
    ] = None,
) -> None:
    """Write one member of a population as a run of its own, which evaluate and train take.

    \b
    python -m mpinn extract runs/population --best
    python -m mpinn extract runs/population --member 17 -o runs/member-17
    """
    from mpinn.commands.extract import extract as run
    from mpinn.errors import InputError

    if best == (member is not None):
        raise InputError("", "say which member: --member NUMBER or --best")
    print("\n".join(run(Path(path), member, Path(output) if output else None)))


def choose(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise InputError for a value that is not allowed."""
    if value not in allowed:
        from mpinn.errors import InputError
        from mpinn.words import nearest

        raise InputError(name, f"{value!r} is not one of {', '.join(allowed)}{nearest(value, allowed)}")
