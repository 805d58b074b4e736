"""Stages with losses of their own under mpirun against the simulator in one process, bit for bit."""

from collections.abc import Iterator
from dataclasses import replace
from time import sleep

import numpy as np
import pytest
from local_oracle import Locals
from oracles import Problem, clusters, serial
from staged import grids, train

from mpinn.array.typing import Array
from mpinn.comm.grid import Grid, World
from mpinn.datasets.samples import Source, Split
from mpinn.models.cnn import CNN
from mpinn.models.mlp import MLP
from mpinn.nn.optimizer import SGD, Adam
from mpinn.nn.part import Part
from mpinn.schedules.local import LocalOptions
from mpinn.trace import Trace

pytestmark = pytest.mark.mpi


def images() -> Source:
    """Small images of noise around the image of their class."""
    rng = np.random.default_rng(8)
    means = rng.normal(size=(3, 8, 8, 2))

    def split(size: int) -> Split:
        target = rng.integers(0, 3, size)
        return Split(means[target] + rng.normal(size=(size, 8, 8, 2)), target)

    return Source({"train": split(50), "validation": split(60)}, np.zeros(1), np.ones(1), 3)


NOISY = Problem(model=MLP(widths=(9, 8, 7, 6), norm="batch", dropout=0.3), optimizer=SGD(rate=0.05, weight_decay=1e-3))
CLIPPED = replace(NOISY, clip=0.7)
PROBLEMS = {
    "noisy": (NOISY, 5),
    "adam": (replace(NOISY, optimizer=Adam(rate=0.01)), 0),
    "a batch of one": (replace(NOISY, model=MLP(widths=(9, 8, 7, 6)), source=clusters(25), batch=8), 5),
    "images": (replace(NOISY, source=images(), model=CNN(channels=(3, 4), kernel=3, widths=(6,), dropout=0.3)), 5),
}
"""What is trained, and the width of the auxiliary heads."""


def vectors(part: Part) -> list[bytes]:
    """All that training changes."""
    return [vector.tobytes() for vector in (part.weights, part.state, *part.slots.values(), part.counters)]


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("drained", [False, True], ids=["in flight", "drained"])
def test_equals_the_simulator_bit_for_bit(world: World, name: str, drained: bool) -> None:
    problem, width = PROBLEMS[name]
    for grid in grids(world):
        stages = grid.stages.size
        steps = 3 * stages + 20
        run = train(problem, grid, LocalOptions(width=width), steps, drained=drained)
        oracle = Locals(problem, run.bounds, width, grid.replicas.size)
        for _ in range(steps):
            oracle.step()
        if drained:
            oracle.drain()
        own = oracle.columns[grid.replica]
        expected = [own.parts[grid.stage], *own.heads[grid.stage : grid.stage + 1]]
        assert list(run.schedule.parts) == [part.name for part in expected]
        for mine, part in zip(run.schedule.parts.values(), expected, strict=True):
            assert vectors(mine) == vectors(part), (grid.shape, part.name)
        assert run.losses == (own.losses if run.last else [])


def test_every_stage_and_every_head_clips_by_the_norm_of_its_own_gradient(world: World) -> None:
    for grid in grids(world):
        steps = 3 * grid.stages.size + 20
        run = train(CLIPPED, grid, LocalOptions(width=5), steps, drained=True)
        oracle = Locals(CLIPPED, run.bounds, 5, grid.replicas.size)
        for _ in range(steps):
            oracle.step()
        oracle.drain()
        own = oracle.columns[grid.replica]
        expected = [own.parts[grid.stage], *own.heads[grid.stage : grid.stage + 1]]
        for mine, part in zip(run.schedule.parts.values(), expected, strict=True):
            assert oracle.clipped[grid.stage + 1, part.name] == {True, False}
            assert vectors(mine) == vectors(part), (grid.shape, part.name)


def test_one_stage_is_sgd_bit_for_bit(world: World) -> None:
    grid = Grid(world, world.size, 1)
    problem = replace(NOISY, deal="same", batch=12 * world.size)
    run = train(problem, grid, LocalOptions(), 12, alone=True)
    assert list(run.schedule.parts) == ["network"]
    assert run.part.weights.tobytes() == serial(problem, 12, world.size, world.rank).weights.tobytes()


def test_auxiliary_heads_leave_the_first_weights_of_the_model_as_they_are(world: World) -> None:
    grid = Grid(world, 1, world.size)
    run = train(NOISY, grid, LocalOptions(), 0)
    whole = NOISY.part()
    for entry in run.part.layout:
        other = next(one for one in whole.layout if one.name == entry.name)
        np.testing.assert_array_equal(run.part.weights[entry.slice], whole.weights[other.slice])


def test_a_stage_does_not_depend_on_those_after_it(world: World) -> None:
    grid = Grid(world, 1, world.size)
    plain = train(NOISY, grid, LocalOptions(), 12)
    shift = grid.stage == world.size - 1

    def silence(batch: object, loss: tuple[Array, Array]) -> tuple[Array, Array]:
        return loss[0], -3 * loss[1]

    other = train(NOISY, grid, LocalOptions(), 12, silence=silence if shift else None)
    assert (plain.part.weights.tobytes() == other.part.weights.tobytes()) == (not shift)


def test_no_gradient_is_sent_and_none_is_old(world: World) -> None:
    grid = Grid(world, 1, world.size)
    steps, trace = 4 * world.size, Trace(10_000)
    run = train(NOISY, grid, LocalOptions(), steps, drained=True, trace=trace)
    counts = grid.stages.meter.counts
    assert counts.get("send", (0, 0))[0] == (0 if run.last else steps)
    assert counts.get("receive", (0, 0))[0] == (0 if run.first else steps)
    assert set(counts) <= {"send", "receive"}
    assert (run.schedule.staleness.updates, run.schedule.staleness.most) == (steps, 0)
    for name in ("forward", "backward"):
        mine = [event for event in trace.events if event.name == name]
        # batch b is worked on at the weights that b batches have made
        assert [(event.batch, event.version) for event in mine] == [(step, step) for step in range(steps)]


def held(trace: Trace, pause: float) -> Iterator[int]:
    """The numbers of the forward passes before which a stage was held up."""
    begun = [event.begun for event in trace.events if event.name == "forward"]
    yield from (int(place) + 1 for place in np.flatnonzero(np.diff(begun) > pause / 2))


@pytest.mark.parametrize("late_stage", ["first", "last"])
def test_a_stall_travels_downstream_one_stage_in_each_iteration_and_never_upstream(
    world: World, late_stage: str
) -> None:
    grid = Grid(world, 1, world.size)
    late, pause, trace = 12, 0.4, Trace(10_000)
    culprit = 0 if late_stage == "first" else world.size - 1

    def before(step: int, stage: int) -> None:
        if step == late and stage == culprit:
            sleep(pause)

    world.control.barrier()
    train(NOISY, grid, LocalOptions(), late + 3 * world.size, before=before, trace=trace)
    # forward pass n of stage k, both counted from 0, is of iteration n + k
    expected = [late] if grid.stage >= culprit else []
    iterations = [number + grid.stage for number in held(trace, pause)]
    if late_stage == "first":
        expected = [late + grid.stage]
    assert iterations == expected
