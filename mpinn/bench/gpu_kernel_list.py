"""Which kernels are measured alone, at the sizes of a perceptron, of VGG-16 and of residual networks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any, TypeAlias

import numpy as np

from mpinn.array.im2col import Pair
from mpinn.array.pool import Pool
from mpinn.array.steps import Segments
from mpinn.array.typing import Array, Shape
from mpinn.bench.gpu_roofline import TF32, Demand, random

FLOAT = 4
"""Bytes."""
VGG: tuple[Shape, ...] = ((32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512), (2, 2, 512))
RESNET: tuple[Shape, ...] = ((32, 32, 16), (16, 16, 32), (8, 8, 64))
PERCEPTRON = ((784, 512), (512, 512), (512, 10))
VECTORS = (1_000_000, 20_000_000)
HIDDEN, ROWS = 512, 16_384
"""Columns, and rows of what a layer norm is measured with."""

Call: TypeAlias = Callable[[], object]


@dataclass(frozen=True, eq=False)
class Maker:
    """Makes arrays on the device, and lends the kernels its buffers."""

    ops: Any
    pool: Pool

    def random(self, *shape: int) -> Array:
        """Normal numbers."""
        return random(shape, self.ops)

    def zeros(self, *shape: int) -> Array:
        """Zeros."""
        found: Array = self.ops.LIBRARY.zeros(shape, np.float32)
        return found


@dataclass(frozen=True, eq=False)
class Bench:
    """A kernel at a size: ``make`` makes arrays and gives what works with them."""

    kernel: str
    size: str
    demand: Demand
    make: Callable[[Maker], Call]
    precision: str = "float32"


@dataclass(frozen=True, slots=True)
class Filter:
    """A convolution of square images that keeps their size, but for its stride."""

    side: int
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1

    @property
    def steps(self) -> tuple[Pair, Pair]:
        """Stride and padding."""
        return (self.stride, self.stride), (self.kernel // 2, self.kernel // 2)

    @property
    def name(self) -> str:
        """Such as ``3x3/2 32x32 16 to 32``."""
        stride = f"/{self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}x{self.kernel}{stride} {self.side}x{self.side} {self.inputs} to {self.outputs}"


TYPICAL = (Filter(32, 64, 64), Filter(8, 256, 256), Filter(2, 512, 512), Filter(32, 16, 16), Filter(32, 16, 32, 3, 2))
ALL = (
    Filter(32, 3, 64), Filter(32, 64, 64), Filter(16, 64, 128), Filter(16, 128, 128), Filter(8, 128, 256),
    Filter(8, 256, 256), Filter(4, 256, 512), Filter(4, 512, 512), Filter(2, 512, 512),
    Filter(32, 3, 16), Filter(32, 16, 16), Filter(32, 16, 32, 3, 2), Filter(32, 16, 32, 1, 2), Filter(16, 32, 32),
    Filter(16, 32, 64, 3, 2), Filter(16, 32, 64, 1, 2), Filter(8, 64, 64),
)  # fmt: skip


def benches(batch: int, quick: bool = False) -> Iterator[Bench]:
    """All of them; ``quick``: convolutions of a few shapes only."""
    for bench in _products(batch):
        yield from _both(bench)
    yield from _dense(batch)
    images = [(batch, *shape) for shape in (*VGG, *RESNET)]
    for shape in images:
        yield from _norms(shape)
    for shape in images:
        yield from _pools(shape)
    for shape in images[:1] if quick else (images[0], images[len(VGG)]):
        yield from _elementwise(shape)
    for size in VECTORS:
        yield from _vectors(size)
    chosen = TYPICAL if quick else ALL
    yield from map(_transpose, dict.fromkeys((own.kernel**2 * own.inputs, own.outputs) for own in chosen))
    for own in chosen:
        for bench in _convolutions(batch, own):
            yield from _both(bench)


def _both(bench: Bench) -> Iterator[Bench]:
    """A product in both precisions."""
    yield from (replace(bench, precision=precision) for precision in TF32)


def _moved(elements: float) -> Demand:
    return Demand(0.0, FLOAT * elements)


def _name(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _products(batch: int) -> Iterator[Bench]:
    for inputs, outputs in PERCEPTRON:
        demand = Demand(2.0 * batch * inputs * outputs, FLOAT * (batch * inputs + inputs * outputs + batch * outputs))
        size = f"{batch}x{inputs}x{outputs}"

        def forward(m: Maker, inputs: int = inputs, outputs: int = outputs) -> Call:
            x, weight, z = m.random(batch, inputs), m.random(inputs, outputs), m.zeros(batch, outputs)
            return lambda: m.ops.matmul(x, weight, z)

        def backward(m: Maker, inputs: int = inputs, outputs: int = outputs) -> Call:
            dz, weight, dx = m.random(batch, outputs), m.random(inputs, outputs), m.zeros(batch, inputs)
            return lambda: m.ops.matmul(dz, weight.T, dx)

        def gradient(m: Maker, inputs: int = inputs, outputs: int = outputs) -> Call:
            x, dz, grad = m.random(batch, inputs), m.random(batch, outputs), m.zeros(inputs, outputs)
            return lambda: m.ops.matmul(x.T, dz, grad)

        yield Bench("product", size, demand, forward)
        yield Bench("product, dx", size, demand, backward)
        yield Bench("product, dW", size, demand, gradient)


def _dense(batch: int) -> Iterator[Bench]:
    """What a perceptron does besides products."""
    shape = (batch, HIDDEN)
    yield from _elementwise(shape)

    def cross_entropy(m: Maker) -> Call:
        logits, target = m.random(batch, 10), m.ops.on_device(np.arange(batch) % 10)
        return lambda: m.ops.cross_entropy(logits, target, 0.0, m.pool)

    yield Bench("cross entropy", f"{batch}x10", _moved(2 * batch * 10), cross_entropy)
    wide = (ROWS, HIDDEN)

    def normed(m: Maker) -> Call:
        x, scale, shift = m.random(*wide), m.random(HIDDEN), m.random(HIDDEN)
        return lambda: m.ops.layer_norm(x, scale, shift, 1e-5, m.pool)

    def backward(m: Maker) -> Call:
        x, scale, dy = m.random(*wide), m.random(HIDDEN), m.random(*wide)
        _, mean, inverse = m.ops.layer_norm(x, scale, scale, 1e-5, m.pool)
        return lambda: m.ops.layer_norm_backward(x, mean, inverse, scale, dy, m.pool)

    yield Bench("layer norm", _name(wide), _moved(2 * prod(wide)), normed)
    yield Bench("layer norm, backward", _name(wide), _moved(3 * prod(wide)), backward)


def _elementwise(shape: Shape) -> Iterator[Bench]:
    n, size, columns = prod(shape), _name(shape), shape[-1]

    def bias(m: Maker) -> Call:
        z, own = m.random(*shape), m.random(columns)
        return lambda: m.ops.bias_activation(z, own, "relu", m.pool)

    def activated(name: str) -> Callable[[Maker], Call]:
        def make(m: Maker) -> Call:
            x = m.random(*shape)
            return lambda: m.ops.activate(name, x, m.pool)

        return make

    def backward(m: Maker) -> Call:
        kept, dy = m.random(*shape), m.random(*shape)
        return lambda: m.ops.activation_backward("relu", kept, dy, m.pool)

    def added(m: Maker) -> Call:
        a, b = m.random(*shape), m.random(*shape)
        return lambda: m.ops.add(a, b, m.pool)

    def summed(m: Maker) -> Call:
        x = m.random(*shape)
        return lambda: m.ops.column_sums(x)

    def dropped(m: Maker) -> Call:
        x, keep = m.random(*shape), m.ops.LIBRARY.ones(shape, np.bool_)
        return lambda: m.ops.dropout(x, keep, 0.5, m.pool)

    def mask(m: Maker) -> Call:
        keep = m.ops.LIBRARY.ones(shape, np.bool_)
        return lambda: m.ops.dropout_mask(keep, 0.5, (1, 2), (0, 1), m.pool)

    yield Bench("bias and relu", size, _moved(2 * n), bias)
    yield Bench("relu", size, _moved(2 * n), activated("relu"))
    yield Bench("gelu", size, _moved(2 * n), activated("gelu"))
    yield Bench("relu, backward", size, _moved(3 * n), backward)
    yield Bench("add", size, _moved(3 * n), added)
    yield Bench("column sums", size, _moved(n), summed)
    yield Bench("dropout", size, Demand(0.0, (2 * FLOAT + 1) * n), dropped)
    yield Bench("dropout mask", size, Demand(0.0, n), mask)


def _norms(shape: Shape) -> Iterator[Bench]:
    """Both passes read their input twice, once for sums; relu's slope could be found from it, so y is not counted."""
    n, size, columns = prod(shape), _name(shape), shape[-1]

    def statistics(m: Maker) -> Call:
        x, running = m.random(*shape), (m.zeros(columns), m.random(columns))
        return lambda: m.ops.batch_statistics(x, running, 0.1, 1e-5, m.pool)

    def normed(m: Maker) -> Call:
        x, numbers = m.random(*shape), [m.random(columns) for _ in range(4)]
        return lambda: m.ops.batch_norm(x, *numbers, "relu", m.pool)

    def backward(m: Maker) -> Call:
        x, y, dy = (m.random(*shape) for _ in range(3))
        numbers = [m.random(columns) for _ in range(3)]
        return lambda: m.ops.batch_norm_backward(x, *numbers, "relu", y, dy, True, m.pool)

    yield Bench("batch norm, statistics", size, _moved(n), statistics)
    yield Bench("batch norm and relu", size, _moved(2 * n), normed)
    yield Bench("batch norm, backward", size, _moved(5 * n), backward)


def _pools(shape: Shape) -> Iterator[Bench]:
    n, size, none, two = prod(shape), _name(shape), (0, 0), (2, 2)

    def largest(m: Maker) -> Call:
        x = m.random(*shape)
        return lambda: m.ops.max_pool(x, two, two, none, m.pool)

    def backward(m: Maker) -> Call:
        y, place = m.ops.max_pool(m.random(*shape), two, two, none, m.pool)
        return lambda: m.ops.max_pool_backward(place, y, shape[1:], two, two, none, m.pool)

    def means(m: Maker) -> Call:
        x = m.random(*shape)
        return lambda: m.ops.channel_means(x, m.pool)

    def spread(m: Maker) -> Call:
        dy = m.random(shape[0], shape[-1])
        return lambda: m.ops.channel_means_backward(dy, shape[1:], m.pool)

    if shape[1:] in VGG:
        yield Bench("max pool", size, Demand(0.0, FLOAT * 1.25 * n + n / 4), largest)
        yield Bench("max pool, backward", size, Demand(0.0, FLOAT * 1.25 * n + n / 4), backward)
    if shape[1:] == RESNET[-1]:
        yield Bench("channel means", size, _moved(n), means)
        yield Bench("channel means, backward", size, _moved(n), spread)


def _vectors(size: int) -> Iterator[Bench]:
    name = f"{size:,} parameters"

    def pieces(m: Maker) -> Any:
        """As of a network: weights with a decay, and what is between them without."""
        cuts = np.linspace(0, size, 41).astype(int)
        ends = pairwise(cuts.tolist())
        return m.ops.prepared(Segments.of([(*own, 1e-4 * (i % 2), 1.0) for i, own in enumerate(ends)]))

    def sgd(m: Maker) -> Call:
        w, g, v, cut = m.random(size), m.random(size), m.zeros(size), pieces(m)
        return lambda: m.ops.sgd(w, g, v, cut, 0.01, 1e-3, 0.9, False, pool=m.pool)

    def adam(m: Maker) -> Call:
        w, g, first, second, cut = m.random(size), m.random(size), m.zeros(size), m.zeros(size), pieces(m)
        return lambda: m.ops.adam(w, g, first, second, cut, 0.01, 1e-3, (0.9, 0.999), 1e-8, 10, True, pool=m.pool)

    def squares(m: Maker) -> Call:
        g = m.random(size)
        return lambda: m.ops.sum_of_squares(g)

    yield Bench("sgd, momentum", name, _moved(5 * size), sgd)
    yield Bench("adamw", name, _moved(7 * size), adam)
    yield Bench("sum of squares", name, _moved(size), squares)


def _convolutions(batch: int, own: Filter) -> Iterator[Bench]:
    x, weight = (batch, own.side, own.side, own.inputs), (own.kernel, own.kernel, own.inputs, own.outputs)
    side = -(-own.side // own.stride)
    z = (batch, side, side, own.outputs)
    moved = FLOAT * (prod(x) + prod(weight) + prod(z))
    demand = Demand(2.0 * prod(z) * prod(weight[:3]), moved)

    def forward(m: Maker) -> Call:
        image, kernel = m.random(*x), m.random(*weight)
        return lambda: m.ops.conv(image, kernel, *own.steps, m.pool)

    def backward(m: Maker) -> Call:
        dz, kernel = m.random(*z), m.random(*weight)
        return lambda: m.ops.conv_backward_input(dz, kernel, x[1:], *own.steps, m.pool)

    def gradient(m: Maker) -> Call:
        image, dz, grad = m.random(*x), m.random(*z), m.zeros(*weight)
        return lambda: m.ops.conv_backward_weight(image, dz, grad, *own.steps, m.pool)

    yield Bench("conv", own.name, demand, forward)
    if own.inputs > 3:
        yield Bench("conv, dx", own.name, demand, backward)
    yield Bench("conv, dW", own.name, demand, gradient)


def _transpose(shape: tuple[int, int]) -> Bench:
    """Of a weight, which cuDNN wants in another order."""
    rows, columns = shape

    def make(m: Maker) -> Call:
        from mpinn.array.cuda_conv import transposed

        source, target = m.random(rows, columns), m.zeros(columns, rows)
        return lambda: transposed(source, rows, target)

    return Bench("transpose", f"{rows}x{columns}", _moved(2 * rows * columns), make)
