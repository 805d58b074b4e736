"""Where a configured run cuts the depth of its model into stages."""

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from mpinn.array.typing import Shape
from mpinn.config import Config
from mpinn.costs import demands
from mpinn.models.model import Model
from mpinn.nn.network import Network
from mpinn.partition import Partition, parse, partition
from mpinn.profile import estimate, profile, subject_of


@dataclass(frozen=True)
class Cuts:
    """The layers ``bounds[k]`` up to ``bounds[k + 1]`` are stage k; ``reason`` says where the bounds are from."""

    bounds: tuple[int, ...]
    reason: str = ""

    def network(self, model: Model, stage: int) -> Network:
        """The layers of one stage."""
        return model.network[self.bounds[stage] : self.bounds[stage + 1]]

    def shape(self, model: Model, bound: int) -> Shape:
        """Of a sample where stage ``bound`` begins."""
        return model.network[: self.bounds[bound]].output_shape(model.shape)

    def starts(self, model: Model) -> str:
        """The layers with which the stages begin, for the log."""
        return ", ".join(model.network.names[bound] for bound in self.bounds[:-1])


def whole(model: Model) -> Cuts:
    """No cuts: one rank has the whole depth."""
    return Cuts((0, len(model.network)))


def cut(config: Config, model: Model, outputs: int, replicas: int, ops: ModuleType, measure: bool = True) -> Cuts:
    """The cuts that the schedule asks for; raises InputError for what the model does not allow.

    Called on one rank, since what is measured may differ. Without ``measure`` times are estimated in any case.
    """
    stages = config.grid.stages
    if stages == 1:
        return whole(model)
    asked = config.schedule.cut
    if not isinstance(asked, str):
        found = parse(model, asked, "schedule.cut")
        return _named(found, stages)
    batch, dtype = -(-config.data.batch // replicas), np.dtype(config.run.dtype)
    if asked == "measured" and measure:
        costs, source = profile(model, subject_of(config, model.shape, outputs, batch, ops), dtype, ops)
    else:
        costs, source = estimate(model, batch, dtype), "estimated from counts of operations"
    pieces = getattr(config.schedule, "micro_batches", 1)
    found = partition(
        costs, stages, slots=len(config.optimizer.slots), in_flight=demands(config.names["schedule"], pieces)
    )
    return Cuts(found.bounds, f"costs {source}")


def _named(found: Partition, stages: int) -> Cuts:
    from mpinn.errors import InputError

    if found.stages != stages:
        raise InputError("schedule.cut", f"it makes {found.stages} stages, but grid.stages is {stages}")
    return Cuts(found.bounds, "the configuration names them")
