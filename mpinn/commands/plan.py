"""The plan of a configuration on stages: how the model is cut, and what a step costs under every schedule."""

import json
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any

from mpinn.array.precision import activations
from mpinn.array.typing import Shape
from mpinn.config import Config, not_one_of
from mpinn.datasets.samples import GIB
from mpinn.datasets.source import open_source
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.nn.layout import Layout
from mpinn.nn.network import Network
from mpinn.nn.parareal import Parareal
from mpinn.partition import abreast
from mpinn.partition.abreast import Abreast
from mpinn.partition.costs import PIPELINES, SCHEDULES, Forecast, Link, Stage, forecast, stages_of
from mpinn.partition.cuts import Costs, divide, held, joined, learn, remark, size_of
from mpinn.partition.demands import demands
from mpinn.partition.profile import ELEMENT, OPERATIONS, Cost
from mpinn.partition.split import BANDWIDTH, LATENCY, Partition, parse
from mpinn.run.target import kernels_of
from mpinn.schedules.registry import options_of
from mpinn.screen import Screen, table
from mpinn.training.choices import build_model, outputs_of, read_config
from mpinn.words import size_text

USUAL = "fdg"
"""For which stages are made even, if neither the question nor the configuration names a schedule with stages."""
PARAREAL = "parareal"
ABREAST = f"{PARAREAL} is a network of its own, which --set schedule.name={PARAREAL} plans"


@dataclass(frozen=True)
class Question:
    """What is to be planned; stages, replicas and micro-batches of 0 are the configured ones, memory in GiB, 0 for any.

    ``schedule``: for which stages are made even; without one it is the configured one, if that has stages, or fdg.

    ``bandwidth`` in GB/s and ``latency`` in microseconds are those of messages between neighbours, None if not known.
    """

    file: str | None = None
    overrides: tuple[str, ...] = ()
    stages: int = 0
    replicas: int = 0
    schedule: str = ""
    micro_batches: int = 0
    cuts: tuple[str, ...] = ()
    memory: float = 0.0
    bandwidth: float | None = None
    latency: float | None = None
    profile: Path | None = None
    estimated: bool = False


@dataclass(frozen=True)
class SideSize:
    """A predictor or a coarse network: its layers, parameters, and seconds forward and backward; empty for none."""

    layers: tuple[str, ...]
    parameters: int
    seconds: float


@dataclass(frozen=True)
class BlockSize:
    """A block of a parareal network: the shape of a sample before and after it, the fine block, what is beside it."""

    inputs: Shape
    outputs: Shape
    fine: int
    seconds: float
    predictor: SideSize
    coarse: SideSize


@dataclass(frozen=True)
class Plan:
    """The answer: the stages, and a forecast for each schedule, the serial one first."""

    model: str
    data: str
    schedule: str
    """That which is configured."""
    meant: str
    """That for which the stages are made even; nothing where they were given."""
    batch: int
    """Samples of one replica in a step."""
    replicas: int
    dtype: str
    """Of weights, and of all that is as long as they are."""
    activations: str
    """In what type they are stored."""
    source: str
    """Where the costs are from."""
    link: Link
    assumed: bool
    """Whether nothing was said of messages."""
    micro_batches: int
    partition: Partition
    starts: tuple[str, ...]
    stages: tuple[Stage, ...]
    vectors: int
    """Weights, gradients, the optimizer's slots, and the copies that a rank needs to survive others."""
    forecasts: tuple[Forecast, ...]
    blocks: tuple[BlockSize, ...] = ()
    """Of a parareal network."""
    sweep: tuple[str, ...] = ()
    """Where its coarse sweep will be, and why."""


def answer(question: Question) -> Plan:
    """Build the model, learn what its units cost, cut it, and forecast; raises InputError."""
    _check(question)
    config = read_config(question.file, question.overrides)
    meant = _meant(config, question.schedule)
    ops = kernels_of(config, measured=not question.estimated)
    summary = open_source(config.data).summary()
    model = build_model(config, tuple(summary["sample_shape"]), outputs_of(summary))
    replicas = question.replicas or config.grid.replicas or 1
    if replicas > config.data.batch:
        raise InputError("--replicas", f"{replicas} replicas can't share a batch of {config.data.batch} samples")
    batch = -(-config.data.batch // replicas)
    stages = question.stages or config.schedule.pieces(config.grid.stages)
    micro_batches = question.micro_batches or _micro_batches(config)
    frame = config.schedule.frame(model)
    if question.cuts and question.stages not in (0, len(question.cuts) + 1):
        raise InputError("--cut", f"the cuts make {len(question.cuts) + 1} stages, not {stages}")
    chosen = parse(frame, question.cuts, "--cut") if question.cuts else None
    costs = _costs(config, model, outputs_of(summary), batch, ops, question)
    link = Link(
        BANDWIDTH if question.bandwidth is None else question.bandwidth * 1e9,
        LATENCY if question.latency is None else question.latency * 1e-6,
    )
    if chosen is None:
        rule = demands(meant, options_of(config, meant), micro_batches)
        chosen = divide(config, model, costs, stages, rule, link, question.memory * GIB or None)
    found = stages_of(joined(costs.units, frame), chosen)
    forecasts = [forecast(name, options_of(config, name), found, link, micro_batches) for name in SCHEDULES]
    blocks = _blocks(config, model, chosen, costs)
    if blocks:
        forecasts.append(abreast.forecast(blocks, link))
        if len(blocks) > 2 and blocks[0].block.iterations == 1:
            forecasts.append(abreast.forecast(blocks, link, gathered=True))
    return Plan(
        model=config.names["model"],
        data=config.data.name,
        schedule=config.names["schedule"],
        meant="" if question.cuts else meant,
        batch=batch,
        replicas=replicas,
        dtype=config.run.dtype,
        activations=str(activations(config.run.dtype, config.run.bf16)),
        source=costs.source,
        link=link,
        assumed=question.bandwidth is None and question.latency is None,
        micro_batches=micro_batches,
        partition=chosen,
        starts=chosen.starts(model.network),
        stages=tuple(found),
        vectors=2 + held(config),
        forecasts=tuple(forecasts),
        blocks=tuple(_size_of(entry) for entry in blocks),
        sweep=_sweep(config, model, chosen, replicas),
    )


def _meant(config: Config, asked: str) -> str:
    """For which schedule the stages are made even: what was asked for, or the configured one where it has stages."""
    name = config.names["schedule"]
    if name == PARAREAL and asked not in ("", PARAREAL):
        raise InputError("--schedule", f"a parareal network is cut for parareal, not for {asked}: leave this out")
    if name != PARAREAL and asked == PARAREAL:
        raise InputError("--schedule", f"{ABREAST}; the others are {', '.join(SCHEDULES)}")
    if asked not in ("", PARAREAL, *SCHEDULES):
        raise not_one_of("--schedule", asked, SCHEDULES)
    return asked or (name if config.schedule.staged else USUAL)


def _micro_batches(config: Config) -> int:
    """Those of the pipeline that is configured, or the default."""
    name = config.names["schedule"]
    options: Any = options_of(config, name if name in PIPELINES else PIPELINES[0])
    return int(options.micro_batches)


def _blocks(config: Config, model: Model, chosen: Partition, costs: Costs) -> tuple[Abreast, ...]:
    """The blocks of a parareal network and what they cost; nothing for other schedules."""
    network = config.schedule.settled(chosen.stages).network(config.model, model, chosen.bounds)
    if costs.sides is None or not isinstance(network, Parareal):
        return ()
    return abreast.abreast(network, model, costs.units, chosen.bounds, costs.sides, costs.beside)


def _sweep(config: Config, model: Model, chosen: Partition, replicas: int) -> tuple[str, ...]:
    schedule = config.schedule.settled(chosen.stages)
    if schedule.wanted(0) is None:
        return ()
    network = schedule.network(config.model, model, chosen.bounds)
    return tuple(schedule.remarks(False, network, size_of(config, replicas)))


def _size_of(entry: Abreast) -> BlockSize:
    def told(network: Network | None, shape: Shape, cost: Cost) -> SideSize:
        if network is None:
            return SideSize((), 0, 0.0)
        return SideSize(network.names, _count(network, shape), cost.forward + cost.backward)

    block = entry.block
    return BlockSize(
        block.inputs,
        block.outputs,
        _count(block.fine, block.inputs),
        entry.fine.forward + entry.fine.backward,
        told(block.predictor, entry.sample, entry.predictor),
        told(block.coarse, block.inputs, entry.coarse),
    )


def _count(network: Network, shape: Shape) -> int:
    return Layout(network.parameters(shape), "f4").count


def show(plan: Plan, as_json: bool) -> None:
    """Print the plan, for people or as one JSON object."""
    if as_json:
        print(json.dumps(describe(plan)))
    else:
        _print(plan)


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as JSON has it; seconds and bytes."""
    serial = plan.forecasts[0].seconds
    return {
        "model": plan.model,
        "data": plan.data,
        "configured": plan.schedule,
        "batch": plan.batch,
        "replicas": plan.replicas,
        "dtype": plan.dtype,
        "activations": plan.activations,
        "costs": plan.source,
        "messages": {**asdict(plan.link), "assumed": plan.assumed},
        "micro_batches": plan.micro_batches,
        "bounds": list(plan.partition.bounds),
        "starts": list(plan.starts),
        "stages": [_stage(stage, plan.vectors) for stage in plan.stages],
        "schedules": [
            {**asdict(row), "speedup": serial / row.seconds, "locked_speedup": serial / row.locked}
            for row in plan.forecasts
        ],
        **({"blocks": [asdict(block) for block in plan.blocks], "sweep": list(plan.sweep)} if plan.blocks else {}),
    }


def _check(question: Question) -> None:
    for name in ("bandwidth", "latency", "memory"):
        value = getattr(question, name)
        if value is None:
            continue
        if not isfinite(value) or value < 0 or (name == "bandwidth" and value == 0):
            least = "above 0" if name == "bandwidth" else "of at least 0"
            raise InputError(f"--{name}", f"expected a number {least}, got {value:g}")
    if question.estimated and question.profile is not None:
        raise InputError("--profile", "with --estimated nothing is measured, so there is nothing to keep")


def _costs(config: Config, model: Model, outputs: int, batch: int, ops: ModuleType, question: Question) -> Costs:
    found = learn(config, model, outputs, batch, ops, not question.estimated, question.profile)
    if question.estimated:
        counted = f"{OPERATIONS:.0e} multiply-adds a second, an element of other layers for {ELEMENT}"
        return replace(found, source=f"estimated: {counted}{remark(config)}")
    return found


def _stage(stage: Stage, vectors: int) -> dict[str, Any]:
    return {
        "units": [asdict(cost) for cost in stage.costs],
        "forward": stage.forward,
        "backward": stage.backward,
        "parameter_bytes": stage.parameter_bytes,
        "resident_bytes": vectors * stage.parameter_bytes,
        "sent_bytes": {"before": stage.before, "after": stage.after},
    }


def _print(plan: Plan) -> None:
    screen = Screen()
    for fact in _facts(plan):
        screen.print(fact)
    screen.print(_stages(plan))
    if plan.blocks:
        screen.print(_parareal(plan))
    screen.print(_schedules(plan))
    for note in _notes(plan):
        screen.print(note)


def _facts(plan: Plan) -> list[str]:
    shared = f", {plan.replicas} replicas" if plan.replicas > 1 else ""
    wide = f", weights of {plan.dtype}" if plan.dtype != plan.activations else ""
    link = f"{plan.link.bandwidth / 1e9:g} GB/s, {plan.link.latency * 1e6:g} us"
    known = ": assumed; mpirun -n 2 python -m mpinn doctor measures them" if plan.assumed else ""
    return [
        f"{plan.model} on {plan.data}: {plan.batch} samples of {plan.activations} a step{wide}{shared}",
        f"costs     {plan.source}",
        f"messages  {link}{known}",
    ]


def _notes(plan: Plan) -> list[str]:
    told = [
        "step: from one to the next, once all stages have work; lock-step: each step ends everywhere before the next",
        "in flight: activations, inputs and old weights; beside weights, gradients, slots",
        f"options: {plan.schedule} as configured, the others with their defaults",
    ]
    if plan.blocks:
        fine = sum(block.fine for block in plan.blocks)
        added = sum(block.predictor.parameters + block.coarse.parameters for block in plan.blocks)
        told.append("parareal: a network of its own; its speed-up is over one rank with the network that is cut")
        told += plan.sweep
        told.append(f"predictors and coarse networks add {added:,} parameters to the {fine:,} of the fine blocks")
    else:
        told.append(ABREAST)
    if plan.replicas > 1:
        told.append("what the replicas send each other is not in these numbers")
    if plan.starts:
        why = f", made even for {plan.meant}" if plan.meant else ""
        told.append(f"this partition{why}: {', '.join(plan.starts)}")
    return told


def _stages(plan: Plan) -> Any:
    found = table("stage", "forward", "backward", "share", "parameters", "resident", "sent back", "sent on")
    found.add_column("layers")
    total = plan.forecasts[0].seconds
    for number, stage in enumerate(plan.stages, 1):
        names = [cost.name for cost in stage.costs]
        found.add_row(
            str(number),
            _time(stage.forward),
            _time(stage.backward),
            f"{(stage.forward + stage.backward) / total:.1%}",
            *map(_size, (stage.parameter_bytes, plan.vectors * stage.parameter_bytes, stage.before, stage.after)),
            names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}",
        )
    return found


def _parareal(plan: Plan) -> Any:
    found = table("parareal block", "input", "output", "fine", "time", "predictor", "time", "coarse", "time")
    for number, block in enumerate(plan.blocks, 1):
        cells = [f"{block.fine:,}", _time(block.seconds)]
        for side in (block.predictor, block.coarse):
            known = (f"{', '.join(side.layers)}: {side.parameters:,}", _time(side.seconds)) if side.layers else ("", "")
            cells += known
        found.add_row(str(number), *(" x ".join(map(str, shape)) for shape in (block.inputs, block.outputs)), *cells)
    return found


def _schedules(plan: Plan) -> Any:
    found = table("schedule", "step", "speed-up", "lock-step", "messages", "in flight on stage 1")
    for number in range(2, len(plan.stages) + 1):
        found.add_column(str(number), justify="right", no_wrap=True)
    serial = plan.forecasts[0].seconds
    for row in plan.forecasts:
        name = f"{row.schedule}, m = {plan.micro_batches}" if row.schedule in PIPELINES else row.schedule
        ratios = (f"{serial / seconds:.2f}" for seconds in (row.seconds, row.locked))
        found.add_row(name, _time(row.seconds), *ratios, str(row.messages), *map(_size, row.in_flight))
    return found


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.4g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.4g} us"


def _size(count: float) -> str:
    return size_text(count) if count else ""
