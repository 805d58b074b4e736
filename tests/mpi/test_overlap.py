"""Forward and backward passes side by side: the same results to the last bit, and really at the same time."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from depth import Depth, Staged
from oracles import Problem
from staged import Run, grids, train
from test_depth_resume import DEEP, NOISY
from test_local import images, vectors
from test_resume import meet
from train_jobs import SMALL, differences

from mpinn.comm.grid import Grid, World
from mpinn.commands.train import train as train_run
from mpinn.models.cnn import CNN
from mpinn.models.mlp import MLP
from mpinn.nn.optimizer import SGD
from mpinn.run.checks import Request
from mpinn.schedules.decoupled import Decoupled
from mpinn.schedules.layerwise import LayerwiseOptions
from mpinn.schedules.registry import SCHEDULES
from mpinn.trace import Trace

pytestmark = pytest.mark.mpi

DENSE = Problem(model=MLP(widths=(9, 8, 7, 6), norm="batch", dropout=0.3), optimizer=SGD(rate=0.05))
CONVOLVED = replace(DENSE, source=images(), model=CNN(channels=(3, 4), kernel=3, widths=(6,), dropout=0.3))
SIDE_BY_SIDE = LayerwiseOptions(overlap="always")


@pytest.mark.parametrize("problem", [DENSE, CONVOLVED], ids=["dense", "convolved"])
def test_equals_the_simulator_bit_for_bit(world: World, problem: Problem) -> None:
    for grid in grids(world):
        stages = grid.stages.size
        steps = 3 * stages + 20
        run = train(problem, grid, SIDE_BY_SIDE, steps)
        depth = Depth(versions="mixed", recompute=True, order="forward_first")
        oracle = Staged(problem, run.bounds, depth, grid.replicas.size)
        for _ in range(steps):
            oracle.step()
        part = oracle.replicas[grid.replica].parts[grid.stage]
        assert vectors(run.part)[:-1] == vectors(part)[:-1]
        ahead = 2 * (stages - 1 - grid.stage)
        assert run.schedule.staleness.most == ahead
        assert run.schedule.most_in_flight == (ahead + 1 if ahead else 0)


@pytest.mark.parametrize("options", [{"accumulate": 3}, {"recompute": False}, {"versions": "stash"}], ids=str)
def test_the_other_keys_go_with_it(world: World, options: dict[str, Any]) -> None:
    grid = Grid(world, 1, world.size)
    runs = [
        train(DENSE, grid, LayerwiseOptions(overlap=overlap, **options), 25, drained=True)  # type: ignore[arg-type]
        for overlap in ("always", "never")
    ]
    assert vectors(runs[0].part) == vectors(runs[1].part)
    assert runs[0].losses == runs[1].losses


@dataclass
class Watched:
    """Options whose schedule `watch` may change before it is used."""

    watch: Callable[[Decoupled], None]
    options: Any = SIDE_BY_SIDE

    def build(self, *arguments: Any) -> Decoupled:
        schedule = self.options.build(*arguments)
        self.watch(schedule)
        return schedule

    def held(self, stages: int) -> int:
        return self.options.held(stages)


def test_the_forward_pass_runs_while_the_backward_pass_does(world: World) -> None:
    again, overlapped = threading.Event(), []

    def watch(schedule: Decoupled) -> None:
        stage, plain = schedule._stage, schedule._stage.forward

        def forward(*arguments: Any, **switches: Any) -> Any:
            if switches.get("again"):
                again.set()
            if switches.get("pool"):
                # one after the other, whichever is first, this would never come to pass
                overlapped.append(again.wait(10))
                again.clear()
                # long enough for the backward pass to end, whose update must wait
                sleep(0.02)
            return plain(*arguments, **switches)

        stage.forward = forward  # type: ignore[method-assign]

    steps, trace = 3 * world.size + 4, Trace(10_000)
    run = train(DENSE, Grid(world, 1, world.size), Watched(watch), steps, trace=trace)
    both = 0 if run.last else steps - 2 * (world.size - 1) + world.rank
    assert overlapped == [True] * both
    rows = [event.row for event in trace.events if event.name == "forward"]
    assert sum(rows) == both
    assert {event.row for event in trace.events if event.name != "forward"} <= {0}
    plain = train(DENSE, Grid(world, 1, world.size), replace(SIDE_BY_SIDE, overlap="never"), steps)
    assert vectors(run.part) == vectors(plain.part)


@pytest.mark.parametrize("name", ["fdg", "ddg", "layerwise", "local"])
def test_what_comes_is_expected_before_anything_is_computed(name: str, world: World) -> None:
    """So that it may come while this stage computes, not only while it has nothing else to do."""
    steps: list[list[str]] = []

    def watch(schedule: Decoupled) -> None:
        stage, step = schedule._stage, schedule.step
        for method, event in (("receive", "expected"), ("forward", "computed"), ("backward", "computed")):
            setattr(stage, method, noted(getattr(stage, method), event))
        schedule.step = lambda *arguments: steps.append([]) or step(*arguments)  # type: ignore[assignment]

    def noted(method: Callable[..., Any], event: str) -> Callable[..., Any]:
        def call(*arguments: Any, **switches: Any) -> Any:
            found = method(*arguments, **switches)
            # nothing comes to the first stage from before, nor to the last one from after
            steps[-1] += [event] if found is not None or event == "computed" else []
            return found

        return call

    train(DENSE, Grid(world, 1, world.size), Watched(watch, SCHEDULES[name]()), 3 * world.size + 4)
    before, after = world.rank > 0, world.rank < world.size - 1
    assert steps[-1].count("expected") == before + (after and name != "local")
    for events in steps:
        assert events == sorted(events, reverse=True)


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_a_pipeline_expects_the_next_message_of_each_kind_before_it_computes(name: str, world: World) -> None:
    steps: list[list[str]] = []

    def watch(schedule: Any) -> None:
        stage, step, receive = schedule._stage, schedule.step, schedule._stage.receive
        stage.forward, stage.backward = noted(stage.forward, "forward"), noted(stage.backward, "backward")
        schedule.step = lambda *arguments: steps.append([]) or step(*arguments)
        stage.receive = lambda kind, batch: steps[-1].append(kind) or receive(kind, batch)

    def noted(method: Callable[..., Any], event: str) -> Callable[..., Any]:
        return lambda *arguments, **switches: steps[-1].append(event) or method(*arguments, **switches)

    train(DENSE, Grid(world, 1, world.size), Watched(watch, SCHEDULES[name]()), 5)
    assert len(steps) == 5
    for events in steps:
        pieces = events.count("forward")
        assert pieces == events.count("backward") > 1
        for place, event in enumerate(events):
            if event in ("forward", "backward"):
                done = events[: place + 1]
                assert done.count("activation") == min(pieces, done.count("forward") + 1)
                assert done.count("gradient") == min(pieces, done.count("backward") + 1)


def test_messages_are_those_of_the_main_thread(world: World) -> None:
    threads: set[threading.Thread] = set()

    def watch(schedule: Decoupled) -> None:
        stage = schedule._stage
        for name in ("_send", "receive", "take", "poke"):
            setattr(stage, name, noted(getattr(stage, name)))

    def noted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **switches: Any) -> Any:
            threads.add(threading.current_thread())
            return method(*arguments, **switches)

        return call

    run: Run = train(DENSE, Grid(world, 1, world.size), Watched(watch), 3 * world.size)
    assert threads == {threading.main_thread()}
    assert run.applied


@pytest.mark.parametrize(
    "settings",
    [NOISY, ("model.name=cnn", "model.channels=[8,8]", "model.kernel=3", "model.widths=[9]", "model.dropout=0.3")],
    ids=["dense", "convolved"],
)
def test_runs_with_compiled_kernels_are_equal(world: World, settings: tuple[str, ...], mpi_tmp_path: Path) -> None:
    common = (*SMALL, *DEEP, f"grid.stages={world.size}", "schedule.name=layerwise", "consensus.name=gradients")

    def run(name: str, overlap: str, stop_after: int = 0) -> int:
        own = (f"run.directory={mpi_tmp_path / name}", f"schedule.overlap={overlap}")
        code = train_run(world, Request(overrides=(*own, *common, *settings), stop_after=stop_after))
        meet(world)
        return code

    codes = [run("never", "never"), run("always", "always"), run("once more", "always")]
    # what is in flight when a run stops goes on either way
    codes += [run("changed", "always", stop_after=9), run("changed", "never")]
    assert codes == [0, 0, 0, 75, 0]
    names = ("never", "always", "once more", "changed")
    whole, *others = (mpi_tmp_path / name / "checkpoint-00000018.h5" for name in names)
    for other in others:
        # the run directories have other names
        assert differences(other, whole) == ["configuration"]
    meet(world)
