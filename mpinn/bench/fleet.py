"""Time of a population's training step on a device, kernel by kernel, beside the least that it could take.

The least is measured too: multiplications at the rate of a large product in float32, or bytes at the speed of a copy.
Bytes are those of the arrays that a kernel has to go over, each counted once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from mpinn.array.activations import ACTIVATIONS
from mpinn.array.device import choose_device
from mpinn.array.typing import Array
from mpinn.bench.farias import RATE
from mpinn.bench.population import OPTIMIZER
from mpinn.comm.channel import NullChannel
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.models.population import Population
from mpinn.models.sweep import Widths
from mpinn.nn.fleet import fleets, units_of
from mpinn.nn.layer import Pass
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.part import Part, build_part
from mpinn.population.update import MemberUpdate
from mpinn.schedules.members import Members, population_of_part

OUTPUTS, CALLS = 2, 20
LARGE, COPIED = 4096, 1 << 28
"""Rows and columns of a large product, and bytes of a copy."""


@dataclass(frozen=True)
class Load:
    """Widths from 1 to 100, all activations, ``repetitions`` times each of some numbers of hidden ``layers``."""

    repetitions: int
    layers: tuple[int, ...]
    features: int
    batch: int
    widest: int = 100

    def part(self, dtype: str, ops: Any) -> Part:
        """All members, with their initial weights."""
        population = Population(
            widths=Widths({"from": 1, "to": self.widest}), layers=self.layers, repetitions=self.repetitions,
            activations=tuple(ACTIVATIONS),  # type: ignore[arg-type]
        )  # fmt: skip
        model = population.build((self.features,), OUTPUTS)
        part = build_part("network", model.network, model.shape, np.dtype(dtype), OPTIMIZER.slots, ops=ops)
        part.initialize(0)
        return part

    def batch_of(self, dtype: str, ops: Any) -> Batch:
        """Random samples and classes."""
        rng, size = np.random.default_rng(0), self.batch
        x = ops.on_device(rng.standard_normal((size, self.features)).astype(dtype))
        target = ops.on_device(rng.integers(0, OUTPUTS, size))
        return Batch(0, 0, x, target, size, size, (0, 1), np.arange(size))


LOADS = (Load(10, (1,), 10, 32), Load(10, (1,), 100, 256), Load(3, (1, 2, 3), 10, 32), Load(3, (1, 2, 3), 100, 256))


@dataclass(frozen=True)
class Row:
    """Seconds, and the least seconds by multiplications and by bytes."""

    name: str
    seconds: float
    products: float = 0.0
    memory: float = 0.0


def run(loads: tuple[Load, ...] = LOADS) -> None:
    """Measure and print all loads."""
    device = choose_device("gpu", "auto", 0)
    ops, flops, speed = device.kernels, *_speeds(device.kernels)
    print(f"{device.name}: {flops / 1e12:.1f} TFLOP/s in a product, {speed / 1e9:,.0f} GB/s in a copy")
    for load in loads:
        part = load.part("float32", ops)
        members = population_of_part(part).members
        units = sum(sum(member.widths) for member in members)
        print(
            f"\n{len(members):,} members, hidden layers {load.layers}, {units:,} units, {part.layout.count:,} weights,"
        )
        print(f"{load.features} features, batch {load.batch}")
        # first, while the weights are those that were drawn
        error = _error(load, part, ops)
        print(f"{'':24}{'time':>12}{'least: products':>18}{'least: memory':>16}")
        for row in [*_steps(load, part, ops), *_kernels(load, part, ops, flops, speed)]:
            least = "".join(f"{1e6 * each:>13,.1f} us" if each else " " * 16 for each in (row.products, row.memory))
            print(f"{row.name:24}{1e6 * row.seconds:>9,.1f} us  {least}")
        print(f"error of the gradient, as a share of its norm: {error:.1e}", flush=True)


def _seconds(work: Callable[[], object], ops: Any) -> float:
    for _ in range(3):
        work()
    ops.synchronize()
    begun = perf_counter()
    for _ in range(CALLS):
        work()
    ops.synchronize()
    return (perf_counter() - begun) / CALLS


def _speeds(ops: Any) -> tuple[float, float]:
    a, b, c = ops.LIBRARY.ones((3, LARGE, LARGE), np.float32)
    flops = 2 * LARGE**3 / _seconds(lambda: ops.matmul(a, b, c), ops)
    source, into = ops.LIBRARY.zeros((2, COPIED // 4), np.float32)
    return flops, 2 * COPIED / _seconds(lambda: np.copyto(into, source), ops)


def _steps(load: Load, part: Part, ops: Any) -> list[Row]:
    batch, schedule = load.batch_of("float32", ops), Members(part, CrossEntropy(), 0)
    update = MemberUpdate(Independent(NullChannel("bench")), OPTIMIZER, lambda step: RATE, 0.0, schedule.parts)
    return [
        Row("step, recorded", _seconds(lambda: schedule.step(batch, update), ops)),
        Row("gradient, not recorded", _seconds(lambda: schedule.gradient(batch), ops)),
    ]


def _kernels(load: Load, part: Part, ops: Any, flops: float, speed: float) -> list[Row]:
    population, pool, batch = population_of_part(part), part.pool, load.batch_of("float32", ops)
    names = [name for name, _ in population.panels]
    (fleet,) = fleets(population, part.layout, ops, names, units_of(load.batch, part.layout.dtype))
    context, loss, grads, weights = Pass(pool, ops), CrossEntropy(), part.grads, part.weights
    y, units = fleet.forward(weights, batch.x, context)
    rows, heads, segments = y.transpose(1, 2, 0), fleet.heads, ops.prepared(OPTIMIZER.segments(part.layout))
    # work, multiplications of a sample, and numbers in memory
    works: dict[str, tuple[Callable[[], object], float, float]] = {}
    for depth, layer in enumerate(fleet.layers):
        x, name = None if depth else batch.x, f"hidden {depth + 1}"
        matrix, own, before = _sizes(load, part, depth)
        touched = matrix + own + before
        works[name] = (partial(ops.ragged_hidden, weights, layer, x, units, pool), matrix, touched)
        works[f"{name}, gradient"] = (partial(ops.ragged_gradient, layer, x, units, grads, pool), matrix, touched)
        if depth:
            works[f"{name}, back"] = (
                partial(ops.ragged_backward, weights, layer, units, pool),
                matrix,
                touched + before,
            )
    last = sum(member.widths[-1] for member in population.members)
    kept, outputs = last * load.batch, last * OUTPUTS
    works["output"] = (partial(ops.ragged_output, weights, heads, units, rows, pool), outputs, kept + y.size)
    works["loss"] = (partial(loss.members, y, batch.target, context), 0, 2 * y.size)
    back = partial(ops.ragged_output_backward, weights, heads, units, rows, grads, pool)
    works["output, back"] = (back, 2 * outputs, 2 * kept + y.size)
    works["update"] = (partial(OPTIMIZER.apply, part, segments, RATE, 1.0), 0, 3 * part.layout.size)
    return [
        Row(name, _seconds(work, ops), 2 * load.batch * multiplied / flops, 4 * touched / speed)
        for name, (work, multiplied, touched) in works.items()
    ]


def _sizes(load: Load, part: Part, depth: int) -> tuple[int, int, int]:
    """Of a hidden layer of all members: weights, and numbers of its units and of those before."""
    widths = [member.widths for member in population_of_part(part).members if len(member.widths) > depth]
    own, before = (sum(each[depth + to] for each in widths) if depth + to >= 0 else load.features for to in (0, -1))
    weights = sum(each[depth] * (each[depth - 1] if depth else load.features) for each in widths)
    return weights, own * load.batch, before * load.batch


def _error(load: Load, part: Part, ops: Any) -> float:
    """Of the gradient, beside that in float64."""
    exact = load.part("float64", ops)
    found: list[Array] = []
    for one, dtype in ((exact, "float64"), (part, "float32")):
        for own, given in zip(one.layout, part.layout, strict=True):
            one.weights[own.slice] = part.weights[given.slice]
        Members(one, CrossEntropy(), 0).gradient(load.batch_of(dtype, ops))
        grads = ops.on_host(one.grads)
        found.append(np.concatenate([grads[entry.slice] for entry in one.layout]).astype(np.float64))
    return float(np.linalg.norm(found[1] - found[0]) / np.linalg.norm(found[0]))
