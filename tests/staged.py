"""Training stages x replicas with the program's own schedules, updates and consensus."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from depth import Depth, cut, shapes
from oracles import Problem

from mpinn.array.typing import Array
from mpinn.comm.channel import NullChannel
from mpinn.comm.grid import Grid, World
from mpinn.consensus.gradients import Gradients
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.nn.part import Part
from mpinn.schedules.decoupled import DDGOptions, DecoupledOptions
from mpinn.schedules.stage import Place
from mpinn.trace import Trace
from mpinn.training.update import OptimizerUpdate

Silence = Callable[[Batch, Any], Any]


def grids(world: World) -> Iterator[Grid]:
    """Up to four ranks as stages of one replica, and, where that is possible, all of two."""
    if world.size <= 4:
        yield Grid(world, 1, world.size)
    if world.size % 2 == 0:
        yield Grid(world, 2, world.size // 2)


def bounds_of(layers: int, stages: int) -> tuple[int, ...]:
    """Cuts that give every stage about as many layers; the first of them, which only flattens, is nobody's only one."""
    return 0, *(1 + (layers - 1) * stage // stages for stage in range(1, stages + 1))


def place_of(problem: Problem, grid: Grid, trace: Trace | None = None) -> tuple[Part, Place, tuple[int, ...]]:
    """This rank's stage."""
    layers = len(problem.model.build(problem.source.sample_shape, problem.source.classes).network)
    bounds = bounds_of(layers, grid.stages.size)
    edges = shapes(problem, bounds)
    aside = grid.stages.split(0, grid.stage, "aside")
    place = Place(grid.stages, aside, edges[grid.stage], edges[grid.stage + 1], trace or Trace(), edges[-1])
    return cut(problem, bounds)[grid.stage], place, bounds


@dataclass
class Run:
    """What one rank has after training, and what it applied: (iteration, index of the batch, gradient)."""

    part: Part
    schedule: Any
    bounds: tuple[int, ...]
    first: bool
    last: bool
    losses: list[tuple[int, float]] = field(default_factory=list)
    applied: list[tuple[int, int, Array]] = field(default_factory=list)


class Recorded:
    """An update that keeps a copy of every gradient."""

    def __init__(self, update: OptimizerUpdate, run: Run):
        self._update, self._run = update, run
        self.iteration = -1

    def ready(self, part: Part, span: slice) -> None:
        self._update.ready(part, span)

    def __call__(self, part: Part, batch: Batch) -> None:
        self._run.applied.append((self.iteration, batch.index, part.grads.copy()))
        self._update(part, batch)


def options_of(depth: Depth, drop: bool = False) -> DecoupledOptions:
    """The program's options for the oracle's."""
    type_ = DecoupledOptions if depth.kind == "fdg" else DDGOptions
    return type_(
        order=depth.order,  # type: ignore[arg-type]
        versions=depth.versions,  # type: ignore[arg-type]
        recompute=depth.recompute,
        shrink=depth.shrink,
        accumulate=depth.accumulate,
        drain=not drop,
    )


def train(
    problem: Problem,
    grid: Grid,
    depth: Depth | Any,
    steps: int,
    *,
    drained: bool = False,
    alone: bool = False,
    drop: bool = False,
    silence: Silence | None = None,
    before: Callable[[int, int], None] | None = None,
    trace: Trace | None = None,
) -> Run:
    """Train this rank's stage; ``alone`` without any consensus, ``silence`` changes (loss, dy) of a batch."""
    part, place, bounds = place_of(problem, grid, trace)
    options = options_of(depth, drop) if isinstance(depth, Depth) else depth
    loss = problem.loss
    schedule = options.build(part, loss, problem.seed, place)
    if silence is not None:
        plain = schedule._stage.loss
        schedule._stage.loss = lambda y, batch: silence(batch, plain(y, batch))
    batches = problem.batches(grid.replicas.size, grid.replica, held=options.held(grid.stages.size))
    consensus = Independent(NullChannel("alone")) if alone else Gradients(grid.replicas, 2**22)
    run = Run(part, schedule, bounds, grid.stage == 0, grid.stage == grid.stages.size - 1)
    update = Recorded(
        OptimizerUpdate(consensus, problem.optimizer, problem.rate, problem.clip, schedule.parts, schedule.chained), run
    )
    for step in range(steps):
        if before is not None:
            before(step, grid.stage)
        update.iteration = step
        measured = schedule.step(batches.batch(step), update)
        run.losses += [(m.index, float(m.loss)) for m in measured]
    if drained:
        run.losses += [(m.index, float(m.loss)) for m in schedule.drain(update)]
    return run
