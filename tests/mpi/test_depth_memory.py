"""What stages hold: no large array is made in a steady step, and what is in flight is what the plan says."""

import gc
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from mpinn.array.pool import SMALL
from mpinn.array.typing import Array, Shape
from mpinn.comm.channel import NullChannel
from mpinn.comm.grid import Grid, World
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.models.resnet import ResNet
from mpinn.nn.layer import Pass, Tree
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.optimizer import SGD
from mpinn.nn.part import Part, build_part
from mpinn.partition.costs import Link, forecast, stages_of
from mpinn.partition.cuts import Cuts
from mpinn.partition.demands import demands
from mpinn.partition.profile import estimate
from mpinn.partition.split import Partition
from mpinn.schedules.decoupled import DDGOptions, DecoupledOptions, FROptions
from mpinn.schedules.layerwise import LayerwiseOptions
from mpinn.schedules.registry import SCHEDULES
from mpinn.schedules.stage import Place
from mpinn.schedules.versions import Version
from mpinn.trace import SILENT
from mpinn.training.update import OptimizerUpdate

pytestmark = pytest.mark.mpi

MODEL = ResNet(depth=8).build((16, 16, 3), 10)
BOUNDS = {1: (0, 6), 2: (0, 2, 6), 3: (0, 2, 3, 6), 4: (0, 1, 2, 3, 6)}
"""Every stage begins with a convolution, which keeps its input."""
SAMPLES = 64
DTYPE = np.dtype(np.float32)
OPTIMIZER = SGD(rate=1e-3)
STEPS = 18
LOOSE = 3 * SMALL
"""What small arrays may take together; what a block keeps, a message, and the weights of most stages are larger."""


def stage_of(world: World, options: Any) -> tuple[Any, Part, Callable[[], None], Cuts]:
    """This rank's schedule and part, one step of it, and where the depth is cut."""
    grid = Grid(world, 1, world.size)
    cuts = Cuts(BOUNDS[world.size])
    shape = cuts.shape(MODEL, grid.stage)
    network = MODEL.network[cuts.bounds[grid.stage] : cuts.bounds[grid.stage + 1]]
    part = build_part("stage", network, shape, DTYPE, OPTIMIZER.slots)
    part.initialize(0)
    aside = grid.stages.split(0, grid.stage, "aside")
    place = Place(grid.stages, aside, shape, cuts.shape(MODEL, grid.stage + 1), SILENT)
    schedule = options.build(part, CrossEntropy(), 0, place)
    update = OptimizerUpdate(Independent(NullChannel("alone")), OPTIMIZER, lambda step: 1e-3, 0.0, schedule.parts)
    batches = data()

    def step() -> None:
        schedule.step(next(batches), update)
        # which messages are still on their way depends on the neighbours' haste: here none is
        schedule._stage.settle()

    return schedule, part, step, cuts


def data() -> Iterator[Batch]:
    """Batches whose samples are made beforehand, enough of them that each in flight has its own."""
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal((SAMPLES, *MODEL.shape)).astype(DTYPE) for _ in range(9)]
    target = rng.integers(0, 10, SAMPLES)
    index = 0
    while True:
        x = samples[index % len(samples)]
        yield Batch(index, 0, x, target, SAMPLES, SAMPLES, (0, 1), np.arange(SAMPLES))
        index += 1


HALVES = {"micro_batches": 2}


@pytest.mark.parametrize(
    ("name", "switches"),
    [("naive", {}), ("gpipe", HALVES), ("1f1b", HALVES), *((n, {}) for n in ("fdg", "ddg", "fr", "layerwise"))],
)
def test_a_steady_step_allocates_no_large_array(world: World, name: str, switches: Any) -> None:
    _, part, step, _ = stage_of(world, SCHEDULES[name](**switches))
    for _ in range(2 * world.size + 2):
        step()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    grown = 0
    try:
        for _ in range(STEPS):
            tracemalloc.reset_peak()
            before, held = tracemalloc.get_traced_memory()[0], part.pool.nbytes
            step()
            grown += part.pool.nbytes > held
            most = tracemalloc.get_traced_memory()[1] - before
            assert most < LOOSE or part.pool.nbytes > held
    finally:
        tracemalloc.stop()
        gc.enable()
    # a neighbour that is late keeps a buffer that has been sent to it for longer than any step before: once or twice
    assert grown <= STEPS // 6


def owners(tree: Any) -> Iterator[Array]:
    """The arrays that hold the memory of all arrays of a tree."""
    if isinstance(tree, tuple | list):
        for inside in tree:
            yield from owners(inside)
    elif isinstance(tree, np.ndarray):
        while isinstance(tree.base, np.ndarray):
            tree = tree.base
        yield tree


def size_of(arrays: Iterable[Array]) -> int:
    """Bytes of the arrays, each one once."""
    return sum(array.nbytes for array in {id(array): array for array in arrays}.values())


def passing(part: Part, shape: Shape, first: bool) -> int:
    """Bytes of the buffers that one pass alone needs, besides those that it keeps between forward and backward."""
    context, x = Pass(wants_dx=not first), np.zeros((SAMPLES, *shape), DTYPE)
    y, saved = part.network.forward(part.weight_views, part.state_views, x, context)
    kept = size_of(array for array in owners(saved) if array is not x)
    part.network.backward(part.weight_views, saved, y, context)[1](part.grad_views)
    return context.pool.nbytes - kept


FLYING = {
    "fdg": DecoupledOptions(),
    "fdg, forward first": DecoupledOptions(order="forward_first"),
    "fdg, mixed": DecoupledOptions(versions="mixed"),
    "fdg, recompute": DecoupledOptions(recompute=True),
    "ddg": DDGOptions(),
    "fr": FROptions(),
    "layerwise": LayerwiseOptions(),
    "layerwise, recompute = false": LayerwiseOptions(recompute=False),
}
"""By the name of the schedule, and what is not its default."""


@pytest.mark.parametrize("name", FLYING)
def test_what_is_in_flight_is_what_the_plan_says(world: World, name: str) -> None:
    schedule, part, step, cuts = stage_of(world, FLYING[name])
    stages, number = stages_of(estimate(MODEL, SAMPLES, DTYPE), Partition(cuts.bounds)), world.rank
    planned = forecast(name.split(",")[0], FLYING[name], stages, Link(1e9, 0), 1).in_flight[number]
    demand = demands(name.split(",")[0], FLYING[name])(number + 1, world.size)
    # every parameter of a copy begins on a boundary, for which the plan does not account
    planned += demand.weights * (part.weights.nbytes - stages[number].parameter_bytes)
    held, backward = [], schedule._stage.backward

    def watched(
        batch: Batch, saved: Any, dy: Array, update: Any, version: Version | None = None, total: Any = None
    ) -> None:
        used = () if version is None else tuple(leaves(version.views))
        works = [(work.x, work.saved, work.version and work.version.vector) for work in schedule._works]
        held.append(size_of(owners((saved, used, works))))
        backward(batch, saved, dy, update, version, total)

    schedule._stage.backward = watched
    for _ in range(4 * world.size):  # copies are shared until all stages have work
        step()
    assert max(held) == planned
    # beside that the pool has what a pass needs while it runs, and messages: of this step, of the next one, and sent
    messages = 3 * (stages[number].before + stages[number].after)
    beside = (demand.passes + demand.inputs) * stages[0].costs[0].input_bytes if not number else 0
    copies = demand.weights * part.weights.nbytes
    room = passing(part, cuts.shape(MODEL, number), not number)
    assert planned - beside - copies <= part.pool.nbytes <= planned - beside - copies + room + messages


def leaves(tree: Tree) -> Iterator[Array]:
    """The arrays of a tree of views."""
    for inside in tree.values():
        yield from leaves(inside) if isinstance(inside, Mapping) else [inside]
