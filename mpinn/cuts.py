"""Where a configured run cuts the depth of its model into stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import ModuleType

import numpy as np

from mpinn.array.typing import Shape
from mpinn.config import Config
from mpinn.costs import demands
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.nn.network import Whole
from mpinn.partition import parse, partition
from mpinn.profile import Cost, estimate, profile, subject_of, units


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
    batch, dtype = -(-config.data.batch // replicas), np.dtype(config.run.dtype)
    if asked == "measured" and measure:
        costs, source = profile(model, subject_of(config, model.shape, outputs, batch, ops), dtype, ops)
    else:
        costs, source = estimate(model, batch, dtype), "estimated from counts of operations"
    costs = joined(costs, frame)
    pieces = getattr(config.schedule, "micro_batches", 1)
    found = partition(
        costs, stages, slots=len(config.optimizer.slots), in_flight=demands(config.names["schedule"], pieces)
    )
    return Cuts(found.bounds, f"costs {source}")


def joined(costs: Sequence[Cost], frame: Model) -> list[Cost]:
    """The costs of the units of a frame, each made of one unit of its model or of several."""
    found: list[Cost] = []
    start, stops = 0, [unit.stop for unit in units(frame)]
    for stop, cost in zip(accumulate(cost.layers for cost in costs), costs, strict=True):
        found.append(cost if start in (0, *stops) else _after(found.pop(), cost))
        start = stop
    return found


def _after(one: Cost, other: Cost) -> Cost:
    return Cost(
        name=f"{one.name}+{other.name}",
        layers=one.layers + other.layers,
        forward=one.forward + other.forward,
        backward=one.backward + other.backward,
        input_bytes=one.input_bytes,
        output_bytes=other.output_bytes,
        kept_bytes=one.kept_bytes + other.kept_bytes,
        parameter_bytes=one.parameter_bytes + other.parameter_bytes,
    )
