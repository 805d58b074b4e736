"""Time of a population's training step on one core, beside the paper's formulation and networks one after the other.

Processor time of one thread, all in turns. With one output the targets are numbers and the loss is the squared error:
the cross-entropy of one class has no gradient. The floors are what nothing can be faster than that computes in matrix
products or keeps its weights in memory: products at the rate of a large one; each weight read and written once, at the
speed of a copy.
"""

import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np

from mpinn.array import ops as plain
from mpinn.array.activations import ACTIVATIONS
from mpinn.array.device import choose_kernels
from mpinn.array.typing import Array
from mpinn.bench.farias import RATE, Arrays, Modules, Scattered, Sums
from mpinn.bench.peer import import_torch
from mpinn.bench.timing import Operation, Spread, alternate, ratio_text, seconds_text
from mpinn.comm.channel import NullChannel
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.models.mlp import MLP
from mpinn.models.model import Model
from mpinn.models.population import Population
from mpinn.models.sweep import Widths
from mpinn.nn.loss import CrossEntropy, SquaredError
from mpinn.nn.optimizer import SGD
from mpinn.nn.packed import Member
from mpinn.nn.part import Part, build_part
from mpinn.population.update import MemberUpdate
from mpinn.run.summary import resident
from mpinn.schedules.members import Members
from mpinn.schedules.serial import Serial
from mpinn.training.update import OptimizerUpdate

ROUNDS, SAMPLE = 7, 0.2
STEPS = 5
"""Networks one after the other: each is trained for so many steps before it is the next one's turn."""
MOST = 4 << 30
"""The paper's formulation is left out where it would need more bytes."""
OURS = "mpinn"
LARGE, COPIED = 1024, 64 << 20
"""Rows and columns of a large product, and bytes of a copy, with which the machine's speed is measured."""
LOOP = "mpinn, one after the other"
NUMPY = "Farias et al., NumPy"
TORCH = "Farias et al., PyTorch"
TORCH_LOOP = "PyTorch, one after the other"
PRODUCTS, COPY = "floor: products", "floor: weights from memory"
OPTIMIZER = SGD(rate=RATE, momentum=0.0, decay="constant")


@dataclass(frozen=True)
class Work:
    """Every width up to a widest one, every activation, ``repetitions`` times; and a batch."""

    repetitions: int
    features: int
    batch: int
    outputs: int
    widest: int = 100

    @property
    def members(self) -> tuple[Member, ...]:
        """By their numbers."""
        return self._population.members()

    @property
    def model(self) -> Model:
        """All of them."""
        return self._population.build((self.features,), self.outputs)

    @property
    def _population(self) -> Population:
        widths, activations = Widths({"from": 1, "to": self.widest}), cast("Any", tuple(ACTIVATIONS))
        return Population(widths=widths, activations=activations, repetitions=self.repetitions)

    @property
    def name(self) -> str:
        """Such as ``1,000 members, 10 features, batch 32, 2 outputs``."""
        outputs = f"{self.outputs} output{'s' if self.outputs > 1 else ''}"
        return f"{len(self.members):,} members, {self.features} features, batch {self.batch}, {outputs}"

    @property
    def units(self) -> int:
        """Hidden units of all members."""
        return sum(member.widths[0] for member in self.members)

    @property
    def sample(self) -> tuple[Member, ...]:
        """One member of each width; activations take turns."""
        members = self.members
        return tuple(members[place * (self.widest + 1) % len(members)] for place in range(self.widest))

    @property
    def loss(self) -> CrossEntropy | SquaredError:
        """Of each member."""
        return SquaredError() if self.outputs == 1 else CrossEntropy()

    def data(self) -> Batch:
        """Random samples, and classes or numbers."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.batch, self.features)).astype(np.float32)
        target: Any = rng.integers(0, self.outputs, self.batch)
        if self.outputs == 1:
            target = rng.standard_normal((self.batch, 1)).astype(np.float32)
        return Batch(0, 0, x, target, self.batch, self.batch, (0, 1), np.arange(self.batch))


SOME = (
    Work(1, 10, 32, 2), Work(1, 100, 256, 2), Work(10, 10, 32, 1), Work(10, 10, 32, 2), Work(10, 10, 32, 10),
    Work(10, 100, 256, 2),
)  # fmt: skip
ALL = tuple(Work(*each) for each in product((1, 10), (5, 10, 50, 100), (32, 128, 256), (1, 2, 10)))


@dataclass(frozen=True, slots=True)
class Row:
    """One program at one work, and ``why`` it was left out, if it was.

    Seconds of a step of the whole population, extrapolated from ``measured`` members where that is above 0; those
    seconds over ours; the bytes that the program adds to the process; its gradient's error, as a share of the norm.
    """

    work: str
    program: str
    seconds: Spread | None = None
    ratio: Spread | None = None
    bytes: int | None = None
    error: float | None = None
    measured: int = 0
    why: str = ""


@dataclass(frozen=True)
class Program:
    """What is measured: a step, the gradient of its last call if it can be told, and how many members it trains."""

    step: Operation
    gradient: Callable[[], Array] | None = None
    members: int = 0
    share: float = 1.0
    """What a call counts of a step of the whole population."""


def run(works: tuple[Work, ...] = SOME, rounds: int = ROUNDS, sample: float = SAMPLE) -> list[Row]:
    """Measure all works; PyTorch is limited to one thread, and so must BLAS be (OMP_NUM_THREADS=1)."""
    torch = import_torch()
    for outputs in {
        work.outputs for work in works
    }:  # what is compiled or loaded later would count as a program's bytes
        small = Work(1, 2, 2, outputs, 2)
        for build in _programs(small, part_of(small.model), torch)[0].values():
            build().step()
    return [row for work in works for row in _measured(work, torch, rounds, sample)]


def print_rows(rows: list[Row]) -> None:
    """Print a table."""
    head = f"{'processor time, median (25-75 %)':34}  {'a step':>26}  {'this / mpinn':>18}"
    print(f"{head}  {'memory':>10}  {'error of the gradient':>21}")
    work = ""
    for row in rows:
        if row.work != work:
            work = row.work
            print(work)
        if row.seconds is None or row.ratio is None:
            print(f"  {row.program:32}  left out: {row.why}")
            continue
        memory = "" if row.bytes is None else f"{row.bytes / 2**20:.0f} MiB"
        error = "" if row.error is None else f"{row.error:.1e}"
        note = f"  from {row.measured} members" if row.measured else ""
        times = f"{seconds_text(row.seconds):>26}  {ratio_text(row.ratio):>18}"
        print(f"  {row.program:32}  {times}  {memory:>10}  {error:>21}{note}".rstrip())


def _measured(work: Work, torch: Any, rounds: int, sample: float) -> list[Row]:
    start = part_of(work.model)
    builders, left_out = _programs(work, start, torch)
    exact = _exact(work, start)
    programs: dict[str, Program] = {}
    memory: dict[str, int | None] = {}
    errors: dict[str, float] = {}
    for name, build in builders.items():
        programs[name], memory[name] = _first_step(build)
        gradient = programs[name].gradient
        if gradient is not None:
            errors[name] = float(np.linalg.norm(gradient() - exact) / np.linalg.norm(exact))
    del exact, start
    floors = _floors(work)
    steps = {name: program.step for name, program in programs.items()} | {
        name: floor.step for name, floor in floors.items()
    }
    samples = alternate(steps, rounds=rounds, sample=sample)
    for name, program in (programs | floors).items():
        samples[name] = samples[name] / program.share
    return [
        Row(
            work.name,
            name,
            Spread.of(own),
            Spread.of(own / samples[OURS]),
            None if name in floors or programs[name].members else memory[name],
            errors.get(name),
            0 if name in floors else programs[name].members,
        )
        for name, own in samples.items()
    ] + [Row(work.name, name, why=why) for name, why in left_out.items()]


def _programs(work: Work, start: Part, torch: Any) -> tuple[dict[str, Callable[[], Program]], dict[str, str]]:
    """How each is built, and why others are not."""
    batch, members = work.data(), work.members
    x, target, weights = batch.x, batch.target, Arrays.of(start, start.weights)
    found: dict[str, Callable[[], Program]] = {OURS: lambda: _ours(work, batch), LOOP: lambda: _loop(work, batch)}
    peers: dict[str, Callable[[], Program]] = {NUMPY: lambda: _peer(Sums(weights.copy(), members, x, target))}
    if torch is not None:
        peers[TORCH] = lambda: _peer(Scattered(weights.copy(), members, x, target, torch))
        found[TORCH_LOOP] = lambda: _sampled(work, Modules(work.sample, x, target, work.outputs, STEPS, torch).step)
    needed = 3 * 4 * work.batch * work.units * work.outputs
    if needed > MOST:
        why = f"a product for each sample, unit and output, and its gradients: {needed / 2**30:.1f} GiB"
        return found, dict.fromkeys(peers, why)
    return found | peers, {}


def part_of(model: Model, dtype: str = "float32", ops: Any = None) -> Part:
    """All members with their initial weights; ``ops``: kernels, those of the host if there are none."""
    kernels = choose_kernels("auto")[0] if ops is None else ops
    part = build_part("network", model.network, model.shape, np.dtype(dtype), OPTIMIZER.slots, ops=kernels)
    part.initialize(0)
    return part


def _ours(work: Work, batch: Batch) -> Program:
    part = part_of(work.model)
    schedule = Members(part, work.loss, 0)
    update = MemberUpdate(Independent(NullChannel("bench")), OPTIMIZER, lambda step: RATE, 0.0, schedule.parts)
    return Program(lambda: schedule.step(batch, update), lambda: Arrays.of(part, part.grads).vector)


def _peer(peer: Sums | Scattered) -> Program:
    return Program(peer.step, lambda: peer.grads.vector)


def _loop(work: Work, batch: Batch) -> Program:
    networks = []
    for member in work.sample:
        activation = cast("Any", member.activation)
        model = MLP(widths=member.widths, activation=activation).build((work.features,), work.outputs)
        schedule = Serial(part_of(model), work.loss, 0)
        update = OptimizerUpdate(Independent(NullChannel("bench")), OPTIMIZER, lambda step: RATE, 0.0, schedule.parts)
        networks.append((schedule, update))

    def step() -> None:
        for schedule, update in networks:
            for _ in range(STEPS):
                schedule.step(batch, update)

    return _sampled(work, step)


def _sampled(work: Work, step: Operation) -> Program:
    count = len(work.sample)
    return Program(step, members=count, share=STEPS * count / len(work.members))


def _exact(work: Work, start: Part) -> Array:
    """The gradient in float64, at the weights of a part."""
    batch, part = work.data(), part_of(work.model, "float64", plain)
    for own, given in zip(part.layout, start.layout, strict=True):
        part.weights[own.slice] = start.weights[given.slice]
    target = batch.target if batch.target.dtype.kind == "i" else batch.target.astype(np.float64)
    Members(part, work.loss, 0).gradient(replace(batch, x=batch.x.astype(np.float64), target=target))
    return Arrays.of(part, part.grads).vector


def _floors(work: Work) -> dict[str, Program]:
    """What the products would take at the rate of a large one, and the weights' way from memory and back."""
    units, parameters = work.units, work.units * (work.features + 1 + work.outputs) + len(work.members) * work.outputs
    operations = 2 * work.batch * units * (2 * work.features + 3 * work.outputs)
    a, b, c = (np.ones((LARGE, LARGE), np.float32) for _ in range(3))
    source, into = (np.zeros(COPIED // 4, np.float32) for _ in range(2))
    return {
        PRODUCTS: Program(lambda: np.matmul(a, b, out=c), share=2 * LARGE**3 / operations),
        COPY: Program(lambda: np.copyto(into, source), share=COPIED / (4 * parameters)),
    }


def _first_step(build: Callable[[], Program]) -> tuple[Program, int | None]:
    """A program after its first step, and by how many bytes it has made the process larger at the most."""
    gc.collect()
    _give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the largest size is from now on
        before = resident("VmRSS")
        program = build()
        program.step()
        return program, resident("VmHWM") - before
    except OSError:  # not on Linux
        program = build()
        program.step()
        return program, None


def _give_back() -> None:
    """What was freed goes back to the system, so that it is counted again when it is taken again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
