"""The command that plans: a model on stages, or a run on any number of ranks."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpinn.cli.files import Settings

if TYPE_CHECKING:
    from mpinn.scaling.predict import Prediction
    from mpinn.scaling.report import Outlook

plans = typer.Typer()

NETWORKS = "h100-ndr, a100-hdr, pcie-100gbe, cpu-hdr, local (measured), or a TOML file as these are"


@plans.command()
def plan(
    config: Annotated[str | None, typer.Argument(help="A TOML file; without one, every key has its default.")] = None,
    settings: Settings = None,
    stages: Annotated[int, typer.Option(min=0, help="Stages; 0: those of the configuration.")] = 0,
    replicas: Annotated[int, typer.Option(min=0, help="Replicas, which share the batch; 0: the configured ones.")] = 0,
    shards: Annotated[int, typer.Option(min=0, help="Shards of a population; 0: the configured ones.")] = 0,
    schedule: Annotated[
        str, typer.Option(help="For which the stages are made even and have to fit; else the configured one, or fdg.")
    ] = "",
    micro_batches: Annotated[
        int, typer.Option(min=0, help="Micro-batches of gpipe and 1f1b; 0: those of the configuration.")
    ] = 0,
    cut: Annotated[list[str] | None, typer.Option(help="Begin a stage at this layer; then nothing is chosen.")] = None,
    memory: Annotated[float, typer.Option(help="GiB that a rank may hold; 0: any amount.")] = 0.0,
    bandwidth: Annotated[float | None, typer.Option(help="Of messages, in GB/s.")] = None,
    latency: Annotated[float | None, typer.Option(help="Of a message, in microseconds.")] = None,
    profile: Annotated[Path | None, typer.Option(help="Keep what is measured in this file, or use it.")] = None,
    estimated: Annotated[bool, typer.Option("--estimated", help="Count operations, measure nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ranks: Annotated[
        str, typer.Option(help="Plan these numbers of ranks, such as 64, 1,6,48 or 1-100000: every grid of each.")
    ] = "",
    network: Annotated[str, typer.Option(help=f"With --ranks: {NETWORKS}.")] = "",
    weak: Annotated[
        bool, typer.Option("--weak", help="With --ranks: data.batch is that of a replica, not the global one.")
    ] = False,
    samples: Annotated[int, typer.Option(min=0, help="With --ranks: to train, in place of the data set's.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="With --ranks: a directory for a figure and a table.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run all schedules and consensuses on 1 to 4 ranks beside predictions.")
    ] = False,
    launcher: Annotated[str, typer.Option(help="What starts ranks, such as 'srun'; else mpirun.")] = "",
) -> None:
    """Split a model into stages, and say what a training step will cost under every schedule; trains nothing.

    A parareal network is another architecture, with stages of its own: --set schedule.name=parareal plans it as well.
    Of a population it says what each shard has to compute and to hold. With --ranks it predicts a step of every
    schedule and consensus on every grid of so many ranks, and recommends one; with --check it measures some of them.

    \b
    python -m mpinn plan jobs/cifar10.toml --stages 4
    python -m mpinn plan --set model.widths=[512,512,512] --stages 2 --replicas 2 --estimated
    python -m mpinn plan jobs/cifar10.toml --stages 4 --set schedule.name=parareal
    python -m mpinn plan jobs/synchronous.toml --ranks 1-100000 --network h100-ndr -o scaling
    python -m mpinn plan --set model.name=resnet --check
    """
    single = {"--stages": stages, "--replicas": replicas, "--shards": shards, "--cut": cut, "--json": json,
              "--bandwidth": bandwidth is not None, "--latency": latency is not None,
              "--schedule": schedule, "--micro-batches": micro_batches}  # fmt: skip
    if ranks or check:
        refuse(single, "does not go with --ranks or --check, which try all grids")
        _many(
            config, tuple(settings or ()), ranks, network, weak, samples, out, memory, profile, estimated, check,
            launcher,
        )  # fmt: skip
        return
    refuse({"--network": network, "--weak": weak, "--samples": samples, "--out": out}, "goes with --ranks")
    from mpinn.commands.plan import Question, answer, show
    from mpinn.training.choices import read_config

    if read_config(config, tuple(settings or ())).names["model"] == "population":
        from mpinn.commands.member_plan import plan_members

        plan_members(config, tuple(settings or ()), shards, json)
        return
    question = Question(
        config, tuple(settings or ()), stages, replicas, schedule, micro_batches, tuple(cut or ()), memory,
        bandwidth, latency, profile, estimated,
    )  # fmt: skip
    show(answer(question), json)


def refuse(given: Mapping[str, object], why: str) -> None:
    """Raise InputError for the first option that is given."""
    from mpinn.errors import InputError

    for name in (name for name, value in given.items() if value):
        raise InputError(name, why)


def _many(
    config: str | None, settings: tuple[str, ...], ranks: str, network: str, weak: bool, samples: int, out: Path | None,
    memory: float, profile: Path | None, estimated: bool, check: bool, launcher: str,
) -> None:  # fmt: skip
    from mpinn.comm.launch import read_launch
    from mpinn.errors import InputError
    from mpinn.scaling.answer import TABLE, Inquiry, compare, outlook, show, write

    if ranks and check:
        raise InputError("--check", "runs on 1 to 4 ranks: it does not go with --ranks")
    if check:
        refuse({"--weak": weak, "--samples": samples, "--network": network, "--out": out}, "does not go with --check")
    if out is not None:
        _check_place(out)
    inquiry = Inquiry(config, settings, ranks, network, samples, weak, memory, profile, estimated, launcher)
    if check:
        compare(inquiry)
        return
    told = outlook(inquiry)
    show(told)
    launch = read_launch()
    if out is not None and told.predictions and (launch is None or launch.rank == 0):
        write(told, out)
        print(f"\n{_draw(told, out)}, {out / TABLE}: {len(told.predictions):,} predictions")


def _check_place(out: Path) -> None:
    """Raise InputError, before anything is measured, where no figure can be drawn or ``out`` is no directory."""
    from mpinn.errors import InputError

    try:
        import mpinn.analysis.scaling  # noqa: F401
    except ImportError as error:
        raise InputError("--out", f"it needs pip install 'mpinn[report]' ({error})") from None
    if out.exists() and not out.is_dir():
        raise InputError("--out", f"{str(out)!r} is a file: name a directory")


def _draw(told: "Outlook", out: Path) -> Path:
    from mpinn.analysis.scaling import Line, scaling_figure
    from mpinn.scaling.answer import FIGURE, drawn

    weak, first = told.scaling == "weak", told.predictions[0]
    label = "samples a second" if weak else "seconds of a step"

    def line(name: str, known: "list[Prediction]") -> Line:
        values = [one.throughput if weak else one.seconds for one in known]
        return Line(name, [one.ranks for one in known], values, [one.efficiency for one in known])

    panels = {title: [line(*one) for one in group.items()] for title, group in drawn(told).items()}
    ranks = sorted({one.ranks for one in told.predictions})
    alone = first.throughput / first.speedup
    best = [count * alone if weak else first.batch / alone / count for count in ranks]
    efficiency = f"efficiency, {told.scaling} scaling (%)"
    scaling_figure(panels, label, Line("ideal", ranks, best, []), efficiency, out / FIGURE)
    return out / FIGURE
