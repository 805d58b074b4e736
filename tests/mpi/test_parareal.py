"""Parareal stages under mpirun: what one process computes with all blocks, bit for bit; messages, and overlap."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from oracles import Problem, clusters, predict, serial, synchronous
from staged import bounds_of, grids

from mpinn.array.typing import Array
from mpinn.comm.channel import NullChannel
from mpinn.comm.grid import Grid, World
from mpinn.consensus.gradients import Gradients
from mpinn.consensus.independent import Independent
from mpinn.models.mlp import MLP
from mpinn.models.model import Model
from mpinn.nn.gathered import Gathered
from mpinn.nn.layer import Pass
from mpinn.nn.network import Network
from mpinn.nn.part import Part, build_part
from mpinn.schedules.mail import Mail
from mpinn.schedules.parareal import PararealOptions, PararealStage
from mpinn.schedules.serial import Serial
from mpinn.schedules.stage import Place
from mpinn.trace import SILENT
from mpinn.training.update import OptimizerUpdate

pytestmark = pytest.mark.mpi

DEEP = MLP(widths=(9, 8, 7, 6), norm="batch", dropout=0.3)
STEPS = 11
"""The ragged batch of an epoch has 2 samples, and a batch of one leaves a replica without any."""


@dataclass(frozen=True)
class Whole:
    """A model whose network is the parareal one, for the oracles."""

    model: Any
    options: PararealOptions
    blocks: int

    def build(self, shape: tuple[int, ...], outputs: int) -> Model:
        model = self.model.build(shape, outputs)
        bounds = bounds_of(len(model.network), self.blocks)
        return replace(model, network=self.options.network(self.model, model, bounds))


def problem_of(blocks: int, options: PararealOptions, model: Any = DEEP, **settings: Any) -> Problem:
    """Training of all blocks in one process."""
    return Problem(model=Whole(model, options, blocks), **settings)  # type: ignore[arg-type]


@dataclass
class Run:
    part: Part
    schedule: Any
    losses: list[tuple[int, float]]


def build(problem: Problem, grid: Grid) -> Any:
    """This rank's stage."""
    whole: Any = problem.model
    model = whole.model.build(problem.source.sample_shape, problem.source.classes)
    bounds = bounds_of(len(model.network), grid.stages.size)
    network = whole.options.network(whole.model, model, bounds)
    share, shape = whole.options.share(network, model, bounds, grid.stage, grid.stages.size, problem.batch * 8)
    part = build_part("network", share, shape, np.dtype(problem.dtype), problem.optimizer.slots)
    part.initialize(problem.seed)
    aside = grid.stages.split(0, grid.stage, "aside")
    place = Place(grid.stages, aside, (), (), SILENT)
    return whole.options.build(part, problem.loss, problem.seed, place)


def train(problem: Problem, grid: Grid, steps: int = STEPS, *, alone: bool = False, schedule: Any = None) -> Run:
    """Train this rank's block, in agreement with the other replicas unless ``alone``."""
    schedule = schedule or build(problem, grid)
    (part,) = schedule.parts.values()
    consensus = Independent(NullChannel("alone")) if alone else Gradients(grid.replicas, 300)
    update = OptimizerUpdate(consensus, problem.optimizer, problem.rate, problem.clip, schedule.parts, schedule.chained)
    batches = problem.batches(grid.replicas.size, grid.replica)
    run = Run(part, schedule, [])
    for step in range(steps):
        measured = schedule.step(batches.batch(step), update)
        run.losses += [(m.index, float(m.loss)) for m in measured]
    return run


def values(part: Part, like: Part | None = None) -> Array:
    """The parameters of a part without padding, or those that another part has too."""
    names = {entry.name for entry in (like or part).layout}
    return np.concatenate([part.weights[e.slice] for e in part.layout if e.name in names])


def allowed(options: PararealOptions, world: World) -> Sequence[Grid]:
    """The grids of these ranks that have as many blocks as sweeps, or more."""
    return [grid for grid in grids(world) if grid.stages.size >= options.iterations]


CASES = {
    "residual": PararealOptions(sweep="chain"),
    "difference": PararealOptions(form="difference", sweep="chain"),
    "gathered": PararealOptions(sweep="gather"),
    "gathered, difference": PararealOptions(form="difference", sweep="gather"),
    "two sweeps": PararealOptions(iterations=2),
    "three sweeps, difference": PararealOptions(iterations=3, form="difference"),
}
cases = pytest.mark.parametrize("name", CASES)


@cases
def test_equals_all_blocks_in_one_process_bit_for_bit(world: World, name: str) -> None:
    for grid in allowed(CASES[name], world):
        problem = problem_of(grid.stages.size, CASES[name])
        run = train(problem, grid)
        whole = synchronous(problem, grid.replicas.size, STEPS)
        assert values(run.part).tobytes() == values(whole, run.part).tobytes()
        assert bool(run.losses) == (grid.stage == grid.stages.size - 1)


@cases
def test_running_statistics_are_those_of_one_process(world: World, name: str) -> None:
    for grid in allowed(CASES[name], world)[:1]:
        run = train(problem_of(world.size, CASES[name]), grid, alone=True)
        whole = serial(problem_of(world.size, CASES[name]), STEPS)
        theirs = {entry.name: whole.state[entry.slice] for entry in whole.state_layout}
        assert run.part.state.any()
        for entry in run.part.state_layout:
            assert run.part.state[entry.slice].tobytes() == theirs[entry.name].tobytes()


def test_gradients_are_clipped_by_the_norm_of_all_blocks(world: World) -> None:
    for grid in grids(world):
        problem = problem_of(grid.stages.size, CASES["residual"], clip=0.2)
        run = train(problem, grid)
        # sums of squares are added up in the order of the blocks, wherever their networks are
        gathered = train(problem_of(grid.stages.size, CASES["gathered"], clip=0.2), grid)
        assert values(gathered.part, run.part).tobytes() == values(run.part, gathered.part).tobytes() != b""
        whole = synchronous(problem, grid.replicas.size, STEPS)
        assert values(run.part).tobytes() == values(whole, run.part).tobytes()
        free = synchronous(replace(problem, clip=0.0), grid.replicas.size, STEPS)
        assert not np.allclose(values(free, run.part), values(whole, run.part), rtol=1e-3)


@cases
def test_predictions_and_gradients_aside_are_those_of_one_process(world: World, name: str) -> None:
    grid = Grid(world, 1, world.size)
    if CASES[name].iterations > world.size:
        return
    problem = problem_of(world.size, CASES[name], MLP(widths=(9, 8, 7, 6), norm="batch"))
    run = train(problem, grid, 3, alone=True)
    whole = serial(problem, 3)
    x = problem.source.splits["test"].x.astype(problem.dtype)
    before = dict(grid.stages.meter.counts)
    for _ in range(4):
        y = run.schedule.predict(x)
        assert (y is None) == (grid.stage < world.size - 1)
        assert y is None or y.tobytes() == predict(whole, x).tobytes()
    batch = problem.batches(1, 0).batch(5)
    run.schedule.gradient(batch)
    Serial(whole, problem.loss, problem.seed).gradient(batch)
    theirs = {entry.name: whole.grads[entry.slice] for entry in whole.layout}
    for entry in run.part.layout:
        assert run.part.grads[entry.slice].tobytes() == theirs[entry.name].tobytes()
    assert grid.stages.meter.counts == before


@cases
def test_messages_are_those_of_the_method(world: World, name: str) -> None:
    grid, options = Grid(world, 1, world.size), CASES[name]
    if options.iterations > world.size:
        return
    run = train(problem_of(world.size, options), grid, 5, alone=True)
    counts = grid.stages.meter.counts
    if world.size == 1:
        assert not counts
        return
    if options.sweep == "gather":
        others, number = world.size - 1, world.rank + 1
        # y_j, and v_j but for the first; and back l_j, and what V_j loses
        each = 2 * others - 1 if number == world.size else 2 - (number == 1)
        assert counts.get("send", (0, 0))[0] == counts.get("receive", (0, 0))[0] == 5 * each
        return
    block = run.part.network.blocks[0]
    right = 0 if block.last else len(block.sweeps) + sum(sweep < block.number for sweep in block.sweeps)
    left = len(block.heard)
    assert counts.get("send", (0, 0))[0] == 5 * (right + left)
    assert set(counts) <= {"send", "receive"}
    if options.iterations == 1:
        # y_j and l_{j-1}, and c_j between the first and the last block
        assert right + left == (not block.last) + (block.number > 1) + (1 < block.number < world.size)


@pytest.mark.parametrize("name", ["residual", "gathered"])
def test_a_stage_without_samples_takes_part(world: World, name: str) -> None:
    for grid in grids(world):
        problem = problem_of(grid.stages.size, CASES[name], source=clusters(25), batch=8)
        run = train(problem, grid)
        whole = synchronous(problem, grid.replicas.size, STEPS)
        assert values(run.part).tobytes() == values(whole, run.part).tobytes()


@pytest.mark.parametrize("name", ["residual", "gathered"])
def test_a_stage_is_rehearsed_alone(world: World, name: str) -> None:
    """What it lacks sends zeros, forward and backward, and every gradient is written."""
    grid = Grid(world, 1, world.size)
    (part,) = build(problem_of(world.size, CASES[name]), grid).parts.values()
    x = np.random.default_rng(0).normal(size=(4, 6))
    context = Pass(part.pool)
    y, saved = part.network.forward(part.weight_views, part.state_views, x, context)
    part.grads.fill(np.nan)
    _, finish = part.network.backward(part.weight_views, saved, np.ones_like(y), context)
    finish(part.grad_views)
    assert all(np.isfinite(part.grads[entry.slice]).all() for entry in part.layout)


@dataclass
class Notes:
    """What a rank did in turn: its fine block ``fine`` or ``fine back``, and ``send`` or ``receive``."""

    monkeypatch: pytest.MonkeyPatch
    found: list[str] = field(default_factory=list)

    def watch(self, owner: Any, name: str, note: str, only: Any = None) -> None:
        """Note the calls of a method, of all objects or of one."""
        plain = getattr(owner, name)

        def noted(itself: Any, *given: Any, **named: Any) -> Any:
            if only is None or itself is only:
                self.found.append(note)
            return plain(itself, *given, **named)

        self.monkeypatch.setattr(owner, name, noted)


@pytest.mark.parametrize("name", [name for name, options in CASES.items() if options.iterations == 1])
def test_all_fine_blocks_run_at_the_same_time(world: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for another block before its own has run, and backward none has run before others know the error."""
    if world.size == 1:
        return
    grid, options, notes = Grid(world, 1, world.size), CASES[name], Notes(monkeypatch)
    problem = problem_of(world.size, options)
    schedule = build(problem, grid)
    assert isinstance(schedule, PararealStage)
    network = schedule.parts["network"].network
    fine = (network.block if isinstance(network, Gathered) else network.blocks[0]).fine
    notes.watch(Network, "forward", "fine", only=fine)
    notes.watch(Network, "backward", "fine back", only=fine)
    notes.watch(Mail, "send", "send")
    notes.watch(Mail, "receive", "receive")
    train(problem, grid, 1, alone=True, schedule=schedule)
    first, last = grid.stage == 0, grid.stage == world.size - 1
    # before that a guess may leave, for where the coarse networks are gathered
    guess = ["send"] * (options.sweep == "gather" and not first and not last)
    begun = [*guess, "fine", *["send"] * (not last)]
    assert notes.found[: len(begun)] == begun
    assert notes.found.count("fine") == notes.found.count("fine back") == 1
    assert "send" not in notes.found[notes.found.index("fine back") :]
