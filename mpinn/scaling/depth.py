"""A schedule on a number of stages: where the depth is cut, what a step takes, and what each stage holds and sends."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mpinn.config import Config
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.nn.parareal import Parareal
from mpinn.partition import abreast
from mpinn.partition.abreast import Abreast
from mpinn.partition.costs import PIPELINES, Link, Stage, forecast, stages_of
from mpinn.partition.cuts import Costs, divide
from mpinn.partition.demands import demands
from mpinn.partition.profile import Cost, units
from mpinn.partition.split import Demand, Partition, parse, stage_bytes
from mpinn.scaling.cluster import Cluster
from mpinn.scaling.ownership import Ownership, Piece
from mpinn.scaling.work import Work
from mpinn.schedules.registry import SCHEDULES, options_of

TOGETHER = ("serial", "naive", *PIPELINES, "parareal")
"""Schedules whose stages end a step before the next one begins; the others run on as far as messages let them."""


@dataclass(frozen=True)
class Depth:
    """The stages of a schedule for one size of a replica's batch.

    ``stages`` follow one another; of a parareal network ``blocks`` run abreast. ``held``: bytes of each stage in
    flight, and ``once`` those of one pass. ``samples``: seconds for making a batch and for its loss; ``updates``: of
    each stage for its parameters.
    """

    schedule: str
    options: Any
    bounds: tuple[int, ...]
    pieces: tuple[Piece, ...]
    stages: tuple[Stage, ...]
    blocks: tuple[Abreast, ...]
    held: tuple[float, ...]
    once: tuple[float, ...]
    samples: float
    updates: tuple[float, ...]
    micro_batches: int = 1

    @property
    def passes(self) -> list[float]:
        """Seconds of each stage in a step without its messages: all its passes, also those that it runs again."""
        if self.blocks:
            return [sum(cost.forward + cost.backward for cost in entry.costs) for entry in self.blocks]
        rule, count = demands(self.schedule, self.options, self.micro_batches), len(self.stages)
        return [
            rule(number, count).forwards * stage.forward + stage.backward for number, stage in enumerate(self.stages, 1)
        ]

    @property
    def busy(self) -> float:
        """Seconds of all stages in a step."""
        return sum(self.passes) + sum(self.updates) + self.samples

    def seconds(self, links: Sequence[Link], added: Sequence[float]) -> float:
        """Of a step on cores of their own; ``added``: seconds of each stage besides, for other replicas."""
        more = [update + other for update, other in zip(self.updates, added, strict=True)]
        if self.blocks:
            slowest = max(links, key=lambda link: link.seconds(1e6))
            gathered = bool(self.pieces[0].gathered)
            return abreast.forecast(self.blocks, slowest, gathered).seconds + max(more) + self.samples
        if self.schedule in TOGETHER:
            told = forecast(self.schedule, self.options, self.stages, links, self.micro_batches)
            return told.seconds + max(more) + self.samples
        more[-1] += self.samples
        stages = [
            replace(stage, costs=(*stage.costs, Cost("update", 0, 0.0, extra, 0, 0, 0, 0)))
            for stage, extra in zip(self.stages, more, strict=True)
        ]
        return forecast(self.schedule, self.options, stages, links, 1).seconds


def in_flight(stage: Stage, asked: Demand, extra: float) -> float:
    """Bytes besides weights, gradients and slots; ``extra``: those of one pass that are needed while it runs, as a
    share of those that it keeps.
    """
    kept = stage.costs[0].input_bytes + sum(cost.kept_bytes for cost in stage.costs)
    return stage_bytes(stage.costs, asked, 0) - 2 * stage.parameter_bytes + extra * kept


class Depths:
    """The schedules of one model, each cut for the time that its stages take; what was found once is kept."""

    def __init__(self, config: Config, model: Model, work: Work, cluster: Cluster):
        self.config, self.model, self.work, self.cluster = config, model, work, cluster
        self.ownership = Ownership(config, model)
        self.options = {name: options_of(config, name) for name in SCHEDULES}
        self._bounds: dict[tuple[str, int, int], tuple[int, ...]] = {}
        self._known: dict[tuple[str, int, int], Depth] = {}
        self._refusals: dict[tuple[str, int], str] = {}
        self._parameters = sum(vectors.weights for vectors in self.ownership.layers)

    @cached_property
    def most(self) -> int:
        """Stages that the model can have."""
        return len(units(self.model))

    def refusal(self, schedule: str, stages: int) -> str:
        """Why a schedule cannot have so many stages; nothing if it can."""
        key = schedule, stages
        if key not in self._refusals:
            self._refusals[key] = self._refusal(schedule, stages)
        return self._refusals[key]

    def _refusal(self, schedule: str, stages: int) -> str:
        options = self.options[schedule]
        if (stages > 1) != options.staged:
            return "it has one stage" if stages > 1 else "it has several stages"
        if schedule == "parareal" and self.work.sides is None:
            return "the model has no such form"
        try:
            frame = options.settled(stages).frame(self.model)
        except InputError as error:
            return str(error)
        most = len(units(frame))
        return f"the model can be cut into {most} stages" if stages > most else ""

    def depth(self, schedule: str, stages: int, batch: int) -> Depth:
        """For a schedule that `refusal` does not refuse, and so many samples of a replica."""
        key = schedule, stages, batch
        if key not in self._known:
            self._known[key] = self._found(schedule, stages, batch)
        return self._known[key]

    def _found(self, schedule: str, count: int, batch: int) -> Depth:
        if schedule == "parareal":
            return self._abreast(count, batch)
        options = self.options[schedule].settled(count)
        bounds = self.bounds(schedule, count, batch)
        pieces = self.ownership.staged(options, bounds)
        micro = min(getattr(options, "micro_batches", 1), batch)
        stages = self._stages(batch, micro, bounds)
        summed = micro > 1 or getattr(options, "accumulate", 1) > 1
        extra = (self.work.buffers(batch / micro) - 1) / micro
        rule = demands(schedule, options, micro)
        asked = [rule(number, count) for number in range(1, count + 1)]
        held = [
            in_flight(stage, demand, extra) + summed * stage.parameter_bytes
            for stage, demand in zip(stages, asked, strict=True)
        ]
        once = [
            in_flight(stage, Demand(min(1, demand.passes)), extra) for stage, demand in zip(stages, asked, strict=True)
        ]
        return Depth(
            schedule, options, bounds, pieces, tuple(stages), (), tuple(held), tuple(once), self.work.samples(batch),
            self._shares(pieces), micro,
        )  # fmt: skip

    def _abreast(self, count: int, batch: int) -> Depth:
        options, costs = self.options["parareal"].settled(count), self._costs(batch)
        config, bounds = self._configured("parareal", options), self.bounds("parareal", count, batch)
        network = options.network(config.model, self.model, bounds)
        if not isinstance(network, Parareal) or costs.sides is None:
            raise TypeError("a network of several blocks is a parareal one")
        pieces = Ownership(config, self.model).abreast(options, bounds, batch)
        blocks = abreast.abreast(network, self.model, costs.units, bounds, costs.sides, costs.beside)
        extra = self.work.buffers(batch) - 1
        held = tuple(entry.in_flight + extra * sum(cost.kept_bytes for cost in entry.costs) for entry in blocks)
        return Depth(
            "parareal", options, bounds, pieces, (), blocks, held, held, self.work.samples(batch), self._shares(pieces)
        )

    def _shares(self, pieces: Sequence[Piece]) -> tuple[float, ...]:
        """Seconds of the update of each stage, by its parameters."""
        update, whole = self.work.rest.update, max(1, self._parameters)
        return tuple(update * sum(part.weights for part in piece.parts) / whole for piece in pieces)

    def _stages(self, batch: int, micro: int, bounds: tuple[int, ...]) -> list[Stage]:
        """With what so many smaller batches take altogether."""
        found = self.work.units(batch)
        if micro > 1:
            small = self.work.units(batch / micro)
            found = [
                replace(cost, forward=micro * part.forward, backward=micro * part.backward)
                for cost, part in zip(found, small, strict=True)
            ]
        return stages_of(found, Partition(bounds))

    def bounds(self, schedule: str, stages: int, batch: int) -> tuple[int, ...]:
        """Where the depth is cut: as configured, or so that the slowest stage is as fast as can be."""
        if stages == 1:
            return 0, len(self.model.network)
        options = self.options[schedule].settled(stages)
        frame = options.frame(self.model)
        cut = getattr(options, "cut", "measured")
        if not isinstance(cut, str) and len(cut) == stages - 1:
            return parse(frame, cut, "schedule.cut").bounds
        rule = demands(schedule, options)
        kind = schedule if schedule == "parareal" else f"{rule(1, stages).forwards} forward passes"
        key = kind, stages, batch
        if key not in self._bounds:
            config, costs = self._configured(schedule, options), self._costs(batch)
            self._bounds[key] = divide(config, self.model, costs, stages, rule, self.cluster.inside).bounds
        return self._bounds[key]

    def _configured(self, schedule: str, options: Any) -> Config:
        return replace(self.config, schedule=options, names={**self.config.names, "schedule": schedule})

    def _costs(self, batch: int) -> Costs:
        return Costs(self.work.units(batch), "", self.work.sides, self.work.beside(batch))
