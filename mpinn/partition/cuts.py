"""Where a configured run cuts the depth of its model into stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import ModuleType

from mpinn.array.precision import activations
from mpinn.array.typing import Shape
from mpinn.config import KEPT, Config
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.nn.network import Whole
from mpinn.partition.abreast import choose, head_of
from mpinn.partition.costs import ASSUMED, Link
from mpinn.partition.demands import demands
from mpinn.partition.profile import Cost, estimate, profile, subject_of, together, units
from mpinn.partition.sides import Sides, sides_of
from mpinn.partition.split import Demands, Partition, parse, partition


@dataclass(frozen=True)
class Cuts:
    """The layers ``bounds[k]`` up to ``bounds[k + 1]`` are stage k; ``reason`` says where the bounds are from."""

    bounds: tuple[int, ...]
    reason: str = ""

    def shape(self, model: Model, bound: int) -> Shape:
        """Of a sample where stage ``bound`` begins."""
        return model.network[: self.bounds[bound]].output_shape(model.shape)

    def starts(self, model: Model) -> str:
        """The layers with which the stages begin, for the log."""
        return ", ".join(model.network.names[bound] for bound in self.bounds[:-1])


def trained(config: Config, model: Model, cuts: Cuts) -> Whole:
    """The network that is trained, altogether."""
    network: Whole = config.schedule.network(config.model, model, cuts.bounds)
    return network


def size_of(config: Config, replicas: int) -> int:
    """Bytes of one number of every sample of a replica's batch."""
    return -(-config.data.batch // replicas) * activations(config.run.dtype, config.run.bf16).itemsize


def remark(config: Config) -> str:
    """What estimated costs do not tell of bfloat16; nothing for a run without it."""
    return "; seconds as of float32, only the bytes are those of bfloat16" if config.run.bf16 else ""


def whole(model: Model) -> Cuts:
    """No cuts: one rank has the whole depth."""
    return Cuts((0, len(model.network)))


def cut(config: Config, model: Model, outputs: int, replicas: int, ops: ModuleType, measure: bool = True) -> Cuts:
    """The cuts that the schedule asks for; raises InputError for what the model does not allow.

    Called on one rank, since what is measured may differ. Without ``measure`` times are estimated in any case.
    """
    stages = config.schedule.pieces(config.grid.stages)
    if stages == 1:
        return whole(model)
    frame = config.schedule.frame(model)
    most = len(units(frame))
    key = "grid.stages" if config.grid.stages > 1 else "schedule.blocks"
    if stages > most:
        allowed = f"the model has {most} units between which it can be cut, so this can be at most {most}"
        raise InputError(key, f"{allowed}, got {stages}")
    asked = config.schedule.cut
    if not isinstance(asked, str):
        found = parse(frame, asked, "schedule.cut")
        if found.stages != stages:
            raise InputError("schedule.cut", f"it makes {found.stages} stages, but {key} is {stages}")
        return Cuts(found.bounds, "the configuration names them")
    costs = learn(config, model, outputs, -(-config.data.batch // replicas), ops, asked == "measured" and measure)
    pieces = getattr(config.schedule, "micro_batches", 1)
    rule = demands(config.names["schedule"], config.schedule, pieces)
    return Cuts(divide(config, model, costs, stages, rule).bounds, f"costs {costs.source}")


@dataclass(frozen=True)
class Costs:
    """Of the units of a model; and, for a parareal network, of what may stand beside its fine blocks."""

    units: Sequence[Cost]
    source: str
    """In words, where they are from."""
    sides: Sides | None = None
    beside: Sequence[Cost] = ()


def held(config: Config) -> int:
    """Vectors as long as the weights that a rank holds beside them and their gradients: slots, and copies of all."""
    slots = len(config.optimizer.slots)
    return slots + (KEPT * (1 + slots) if config.run.survive else 0)


def learn(
    config: Config, model: Model, outputs: int, batch: int, ops: ModuleType, measure: bool, file: Path | None = None
) -> Costs:
    """The costs that are measured, or were and are kept, or are estimated."""
    dtype, sides, slots = activations(config.run.dtype, config.run.bf16), None, held(config)
    if config.schedule.wanted(slots) is not None:
        ends = [unit.stop for unit in units(config.schedule.frame(model))]
        sides = sides_of(config.model, model, ends[:-1], ends)
    if not measure:
        beside = sides.estimate(batch, dtype) if sides else []
        return Costs(estimate(model, batch, dtype), "estimated from counts of operations", sides, beside)
    subject = subject_of(config, model.shape, outputs, batch, ops, sides.names if sides else ())
    found, source = profile(model, subject, dtype, ops, file, list(sides.networks.values()) if sides else ())
    count = len(units(model))
    return Costs(found[:count], source, sides, found[count:])


def divide(
    config: Config, model: Model, costs: Costs, stages: int, rule: Demands, link: Link = ASSUMED,
    memory: float | None = None,
) -> Partition:  # fmt: skip
    """The best partition for the schedule of the configuration, or, where stages are simple, for a ``rule``."""
    framed, slots = joined(costs.units, config.schedule.frame(model)), held(config)
    wanted = config.schedule.settled(stages).wanted(slots)
    if wanted is not None and costs.sides is not None:
        return choose(wanted, framed, head_of(model, costs.units), costs.sides, costs.beside, link, memory)
    return partition(
        framed, stages, bandwidth=link.bandwidth, latency=link.latency, memory=memory, slots=slots, in_flight=rule
    )


def joined(costs: Sequence[Cost], frame: Model) -> list[Cost]:
    """The costs of the units of a frame, each made of one unit of its model or of several."""
    found: list[Cost] = []
    start, stops = 0, [unit.stop for unit in units(frame)]
    for stop, cost in zip(accumulate(cost.layers for cost in costs), costs, strict=True):
        found.append(cost if start in (0, *stops) else together([found.pop(), cost]))
        start = stop
    return found
