"""Decoupled backpropagation under mpirun against the simulator in one process, bit for bit."""

from collections import Counter
from dataclasses import replace
from time import sleep
from typing import Any

import numpy as np
import pytest
from depth import Depth, Staged, cut
from oracles import Problem, clusters, serial
from staged import grids, options_of, place_of, train

from mpinn.array.typing import Array
from mpinn.comm.channel import NullChannel
from mpinn.comm.grid import Grid, World
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.models.mlp import MLP
from mpinn.nn.optimizer import SGD
from mpinn.partition.demands import demands
from mpinn.schedules.decoupled import FROptions
from mpinn.schedules.layerwise import LayerwiseOptions
from mpinn.trace import Trace
from mpinn.training.update import OptimizerUpdate

pytestmark = pytest.mark.mpi

NOISY = Problem(model=MLP(widths=(9, 8, 7, 6), norm="batch", dropout=0.3), optimizer=SGD(rate=0.05, weight_decay=1e-3))
PLAIN = Problem(model=MLP(widths=(9, 8, 7, 6), activation="tanh"), optimizer=SGD(rate=0.1, momentum=0.0))
CLIPPED = replace(PLAIN, clip=0.5)
SCHEDULES = {
    "fdg": Depth(),
    "fdg, forward first": Depth(order="forward_first"),
    "fdg, mixed": Depth(versions="mixed"),
    "fdg, mixed, forward first": Depth(versions="mixed", order="forward_first"),
    "fdg, stash, recompute": Depth(recompute=True),
    "layerwise": Depth(versions="mixed", recompute=True, order="forward_first"),
    "ddg": Depth(kind="ddg", order="forward_first"),
    "ddg, backward first": Depth(kind="ddg"),
    "ddg, mixed": Depth(kind="ddg", order="forward_first", versions="mixed"),
    "fr": Depth(kind="ddg", order="forward_first", versions="mixed", recompute=True),
    "shrink": Depth(shrink=0.5),
    "accumulate": Depth(accumulate=3),
    "accumulate, ddg": Depth(kind="ddg", order="forward_first", accumulate=2, shrink=0.7),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("drained", [False, True], ids=["in flight", "drained"])
def test_equals_the_simulator_bit_for_bit(world: World, name: str, drained: bool) -> None:
    depth = SCHEDULES[name]
    for grid in grids(world):
        stages = grid.stages.size
        steps = 3 * stages + 20
        problem = NOISY if stages > 1 or depth.versions == "stash" else PLAIN
        run = train(problem, grid, depth, steps, drained=drained)
        oracle = Staged(problem, run.bounds, depth, grid.replicas.size)
        for _ in range(steps):
            oracle.step()
        if drained:
            oracle.drain()
        own = oracle.replicas[grid.replica]
        part, mine = own.parts[grid.stage], run.part
        assert mine.weights.tobytes() == part.weights.tobytes(), (name, grid.shape)
        assert mine.state.tobytes() == part.state.tobytes()
        for slot, vector in mine.slots.items():
            assert vector.tobytes() == part.slots[slot].tobytes()
        assert run.losses == (own.losses if grid.stage == stages - 1 else [])


REPLAYING = {
    **{name: options_of(depth) for name, depth in SCHEDULES.items()},
    "fr": FROptions(),
    "layerwise": LayerwiseOptions(overlap="never"),
    "layerwise, kept": LayerwiseOptions(recompute=False, overlap="never"),
}


@pytest.mark.parametrize("name", REPLAYING)
def test_a_stage_runs_its_layers_as_often_as_its_cut_is_made_for(world: World, name: str) -> None:
    options, steps = REPLAYING[name], 10
    kind = "ddg" if options.chained else "fdg"
    for grid in grids(world):
        trace = Trace(10_000)
        train(PLAIN, grid, options, steps, drained=True, trace=trace)
        run = Counter(event.name for event in trace.events)
        demand = demands(kind, options)(grid.stage + 1, grid.stages.size)
        assert run["backward"] == steps
        assert run["forward"] + run["recompute"] == demand.forwards * steps


@pytest.mark.parametrize("name", ["fdg", "fdg, mixed", "layerwise", "ddg", "fr"])
def test_every_stage_clips_by_the_norm_of_its_own_gradient(world: World, name: str) -> None:
    for grid in grids(world):
        steps = 3 * grid.stages.size + 20
        run = train(CLIPPED, grid, SCHEDULES[name], steps, drained=True)
        oracle = Staged(CLIPPED, run.bounds, SCHEDULES[name], grid.replicas.size)
        for _ in range(steps):
            oracle.step()
        oracle.drain()
        assert oracle.clipped[grid.stage + 1] == {True, False}
        own = oracle.replicas[grid.replica].parts[grid.stage]
        assert run.part.weights.tobytes() == own.weights.tobytes(), (name, grid.shape)


@pytest.mark.parametrize("name", ["fdg", "layerwise", "fr", "accumulate"])
def test_a_replica_without_samples_in_a_batch_takes_part(world: World, name: str) -> None:
    ragged = replace(PLAIN, source=clusters(25), batch=8)
    for grid in grids(world):
        run = train(ragged, grid, SCHEDULES[name], 19, drained=True)
        oracle = Staged(ragged, run.bounds, SCHEDULES[name], grid.replicas.size)
        for _ in range(19):
            oracle.step()
        oracle.drain()
        own = oracle.replicas[grid.replica].parts[grid.stage]
        assert run.part.weights.tobytes() == own.weights.tobytes()


@pytest.mark.parametrize("name", ["fdg", "fdg, forward first", "ddg", "fr"])
def test_one_stage_is_sgd_bit_for_bit(world: World, name: str) -> None:
    grid = Grid(world, world.size, 1)
    if grid.replicas.size > 1:
        grid = Grid(world, 0, 1)
    problem = replace(NOISY, deal="same", batch=12 * world.size)
    run = train(problem, grid, replace(SCHEDULES[name], shrink=0.5), 12, alone=True)
    alone = serial(problem, 12, world.size, world.rank)
    assert run.part.weights.tobytes() == alone.weights.tobytes()


@pytest.mark.parametrize("name", SCHEDULES)
def test_staleness_and_queues_are_those_of_the_formula(world: World, name: str) -> None:
    depth = SCHEDULES[name]
    grid = Grid(world, 1, world.size)
    run = train(PLAIN, grid, depth, 3 * world.size + 20)
    ahead = world.size - 1 - grid.stage
    passes = ahead if depth.kind == "ddg" else 2 * ahead
    after = depth.order == "forward_first"
    if ahead:
        expected = passes if after else passes - 1
        if depth.accumulate == 1:
            assert run.schedule.staleness.most == expected
        else:
            assert run.schedule.staleness.most == -(-expected // depth.accumulate)
        assert run.schedule.most_in_flight == passes + after
        assert run.schedule.staleness.formula == expected / depth.accumulate
    else:
        assert run.schedule.staleness.most == run.schedule.staleness.formula == 0


@pytest.mark.parametrize("name", ["fdg", "fdg, mixed", "layerwise", "ddg"])
def test_ages_are_counted_on_where_a_run_goes_on(world: World, name: str) -> None:
    grid, options = Grid(world, 1, world.size), options_of(SCHEDULES[name])
    part, place, _ = place_of(PLAIN, grid)
    held = options.held(world.size)
    schedule = options.build(part, PLAIN.loss, PLAIN.seed, place)
    update = OptimizerUpdate(Independent(NullChannel("alone")), PLAIN.optimizer, PLAIN.rate, 0.0, schedule.parts)
    for steps in (range(13), range(13, 18)):
        batches = PLAIN.batches(1, 0, held=held)
        if flight := schedule.flight():
            schedule = options.build(part, PLAIN.loss, PLAIN.seed, place)
            schedule.resume(flight, batches.batch)
        for step in steps:
            schedule.step(batches.batch(step), update)
    assert schedule.staleness.mean == schedule.staleness.formula


def test_with_frozen_weights_gradients_are_exact_and_on_time(world: World) -> None:
    grid = Grid(world, 1, world.size)
    frozen = replace(NOISY, optimizer=SGD(rate=0.0, momentum=0.0), model=MLP(widths=(9, 8, 7, 6), dropout=0.3))
    for depth, shrink in ((Depth(), 1.0), (Depth(kind="ddg"), 1.0), (Depth(shrink=0.5), 0.5)):
        run = train(frozen, grid, depth, 2 * world.size + 5)
        k, stages = grid.stage + 1, world.size
        lag = 2 * stages - k - 1 if depth.kind == "fdg" else stages - k
        # the samples and labels of a batch are needed as long as that
        assert lag <= options_of(depth).held(stages)
        whole = exact(frozen, run.bounds, grid.stage, len(run.applied) + 1)
        assert [batch for _, batch, _ in run.applied] == list(range(len(run.applied)))
        for iteration, batch, gradient in run.applied:
            assert iteration == batch + lag
            assert gradient.tobytes() == (whole[batch] * shrink ** (stages - k)).tobytes()


def exact(problem: Problem, bounds: tuple[int, ...], stage: int, batches: int) -> list[Array]:
    """One stage's slice of the exact gradient of every batch, at the initial weights."""
    found = []
    for step in range(batches):
        oracle = Staged(problem, bounds, Depth(kind="ddg", order="forward_first"))
        shares = problem.batches(1, 0)
        (stages,) = oracle.replicas
        stages.batches.append(shares.batch(step))
        oracle.given = 1
        for _ in range(len(bounds) - 1):
            oracle._iterate()
        found.append(next(a.gradient for a in oracle.applied if a.stage == stage + 1))
    return found


def test_an_impulse_arrives_at_every_stage_in_its_iteration(world: World) -> None:
    grid = Grid(world, 1, world.size)
    hit, k, stages = 4, grid.stage + 1, world.size

    def silence(batch: Batch, loss: Any) -> Any:
        return loss if batch.index == hit else (loss[0] * 0, loss[1] * 0)

    run = train(PLAIN, grid, Depth(), 20 + 2 * stages, silence=silence)
    moved = [iteration for iteration, _, gradient in run.applied if gradient.any()]
    assert moved == [hit + 2 * stages - k - 1]


def test_a_large_step_differs_from_serial_training(world: World) -> None:
    grid = Grid(world, 1, world.size)
    large = replace(PLAIN, optimizer=SGD(rate=0.5, momentum=0.5))
    run = train(large, grid, Depth(), 20, drained=True)
    alone = serial(large, 20)
    parts = cut(large, run.bounds)
    start = sum(part.layout.count for part in parts[: grid.stage])
    values = np.concatenate([alone.weights[entry.slice] for entry in alone.layout])
    own = np.concatenate([run.part.weights[entry.slice] for entry in run.part.layout])
    assert np.allclose(own, values[start : start + own.size], rtol=1e-3) == (world.size == 1)


@pytest.mark.parametrize("name", ["fdg", "ddg", "layerwise"])
def test_messages_of_a_step_are_one_activation_and_one_gradient(world: World, name: str) -> None:
    grid = Grid(world, 1, world.size)
    steps, depth = 4 * world.size, SCHEDULES[name]
    run = train(PLAIN, grid, depth, steps, drained=True)
    counts = grid.stages.meter.counts
    sends = steps * ((not run.first) + (not run.last))
    assert counts.get("send", (0, 0))[0] == sends
    assert counts.get("receive", (0, 0))[0] == sends
    assert set(counts) <= {"send", "receive"}


def test_dropping_what_is_in_flight_ends_cleanly(world: World) -> None:
    grid = Grid(world, 1, world.size)
    run = train(PLAIN, grid, Depth(), 10, drained=True, drop=True)
    late = 2 * world.size - grid.stage - 2
    assert len(run.applied) == 10 - late
    again = train(PLAIN, grid, Depth(), 10, drained=True)
    assert len(again.applied) == 10


def stalled(world: World, where: int, late: int) -> list[int]:
    """The iterations in which this rank begins late after stage ``where`` has slept before iteration ``late``."""
    pause, trace = 0.5, Trace(10_000)
    grid = Grid(world, 1, world.size)

    def before(step: int, stage: int) -> None:
        if (step, stage) == (late, where):
            sleep(pause)

    world.control.barrier()
    train(PLAIN, grid, Depth(), late + 3 * world.size, before=before, trace=trace)
    begun = [event.begun for event in trace.events if event.name == "forward"]
    # forward pass n of stage k, both from 0, is of iteration n + k
    return [int(n) + 1 + grid.stage for n in np.flatnonzero(np.diff(begun) > pause / 2)]


def test_a_late_last_stage_holds_up_one_stage_more_in_each_iteration(world: World) -> None:
    late, behind = 12, world.size - 1 - world.rank
    # a forward pass that follows a backward pass waits with it; the late stage itself sleeps before its own
    assert stalled(world, world.size - 1, late) == [late + behind]


def test_a_late_first_stage_holds_up_one_stage_more_in_each_iteration(world: World) -> None:
    late = 12
    assert stalled(world, 0, late) == [late + world.rank]
