"""Which kernels are measured alone, at the sizes of a perceptron, of VGG-16 and of residual networks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from mpinn.array.im2col import Pair
from mpinn.array.steps import Segments
from mpinn.array.typing import Shape
from mpinn.bench.gpu_bench import Bench, Call, Maker
from mpinn.bench.gpu_layers import layers
from mpinn.bench.gpu_roofline import PRECISIONS, Demand

VGG: tuple[Shape, ...] = ((32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512), (2, 2, 512))
RESNET: tuple[Shape, ...] = ((32, 32, 16), (16, 16, 32), (8, 8, 64))
PERCEPTRON = ((784, 512), (512, 512), (512, 10))
VECTORS = (1_000_000, 20_000_000)
HIDDEN, ROWS = 512, 16_384
"""Columns, and rows of what a layer norm is measured with."""


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
    for bench in _all(batch, quick):
        for precision in PRECISIONS:
            # products are done in each, and what only moves numbers is no faster with TF32
            if (bench.demand.operations or precision != "TF32") and (
                bench.demand.activations or precision == "float32"
            ):
                yield replace(bench, precision=precision)


def _all(batch: int, quick: bool) -> Iterator[Bench]:
    yield from _products(batch)
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
        yield from _convolutions(batch, own)


def _moved(activations: float) -> Demand:
    return Demand(0.0, activations)


def _name(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _products(batch: int) -> Iterator[Bench]:
    for inputs, outputs in PERCEPTRON:
        demand = Demand(2.0 * batch * inputs * outputs, batch * (inputs + outputs), inputs * outputs)
        size = f"{batch}x{inputs}x{outputs}"

        def forward(m: Maker, inputs: int = inputs, outputs: int = outputs) -> Call:
            x, weight, z = m.activations(batch, inputs), m.parameters(inputs, outputs), m.activations(batch, outputs)
            return lambda: m.ops.matmul(x, weight, z)

        def backward(m: Maker, inputs: int = inputs, outputs: int = outputs) -> Call:
            dz, weight, dx = m.activations(batch, outputs), m.parameters(inputs, outputs), m.activations(batch, inputs)
            return lambda: m.ops.matmul(dz, weight.T, dx)

        def gradient(m: Maker, inputs: int = inputs, outputs: int = outputs) -> Call:
            x, dz, grad = m.activations(batch, inputs), m.activations(batch, outputs), m.zeros(inputs, outputs)
            return lambda: m.ops.matmul(x.T, dz, grad)

        yield Bench("product", size, demand, forward)
        yield Bench("product, dx", size, demand, backward)
        yield Bench("product, dW", size, demand, gradient)
        yield from layers(batch, inputs, outputs, demand)


def _dense(batch: int) -> Iterator[Bench]:
    """What a perceptron does besides products."""
    shape = (batch, HIDDEN)
    yield from _elementwise(shape)

    def cross_entropy(m: Maker) -> Call:
        logits, target = m.activations(batch, 10), m.ops.on_device(np.arange(batch) % 10)
        return lambda: m.ops.cross_entropy(logits, target, 0.0, m.pool)

    yield Bench("cross entropy", f"{batch}x10", _moved(2 * batch * 10), cross_entropy)
    wide = (ROWS, HIDDEN)

    def normed(m: Maker) -> Call:
        x, scale, shift = m.activations(*wide), m.parameters(HIDDEN), m.parameters(HIDDEN)
        return lambda: m.ops.layer_norm(x, scale, shift, 1e-5, m.pool)

    def backward(m: Maker) -> Call:
        x, scale, dy = m.activations(*wide), m.parameters(HIDDEN), m.activations(*wide)
        _, mean, inverse = m.ops.layer_norm(x, scale, scale, 1e-5, m.pool)
        return lambda: m.ops.layer_norm_backward(x, mean, inverse, scale, dy, m.pool)

    yield Bench("layer norm", _name(wide), _moved(2 * prod(wide)), normed)
    yield Bench("layer norm, backward", _name(wide), _moved(3 * prod(wide)), backward)


def _elementwise(shape: Shape) -> Iterator[Bench]:
    n, size, columns = prod(shape), _name(shape), shape[-1]

    def bias(m: Maker) -> Call:
        z, own = m.activations(*shape), m.parameters(columns)
        return lambda: m.ops.bias_activation(z, own, "relu", m.pool)

    def activated(name: str) -> Callable[[Maker], Call]:
        def make(m: Maker) -> Call:
            x = m.activations(*shape)
            return lambda: m.ops.activate(name, x, m.pool)

        return make

    def backward(m: Maker) -> Call:
        kept, dy = m.activations(*shape), m.activations(*shape)
        return lambda: m.ops.activation_backward("relu", kept, dy, m.pool)

    def added(m: Maker) -> Call:
        a, b = m.activations(*shape), m.activations(*shape)
        return lambda: m.ops.add(a, b, m.pool)

    def summed(m: Maker) -> Call:
        x = m.activations(*shape)
        return lambda: m.ops.column_sums(x)

    def dropped(m: Maker) -> Call:
        x, keep = m.activations(*shape), m.ops.LIBRARY.ones(shape, np.bool_)
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
    yield Bench("dropout", size, Demand(0.0, 2 * n, other=n), dropped)
    yield Bench("dropout mask", size, Demand(0.0, other=n), mask)


def _norms(shape: Shape) -> Iterator[Bench]:
    """Both passes read their input twice, once for sums; relu's slope could be found from it, so y is not counted."""
    n, size, columns = prod(shape), _name(shape), shape[-1]

    def statistics(m: Maker) -> Call:
        x, running = m.activations(*shape), (m.zeros(columns), m.parameters(columns))
        return lambda: m.ops.batch_statistics(x, running, 0.1, 1e-5, m.pool)

    def normed(m: Maker) -> Call:
        x, numbers = m.activations(*shape), [m.parameters(columns) for _ in range(4)]
        return lambda: m.ops.batch_norm(x, *numbers, "relu", m.pool)

    def backward(m: Maker) -> Call:
        x, y, dy = (m.activations(*shape) for _ in range(3))
        numbers = [m.parameters(columns) for _ in range(3)]
        return lambda: m.ops.batch_norm_backward(x, *numbers, "relu", y, dy, True, m.pool)

    yield Bench("batch norm, statistics", size, _moved(n), statistics)
    yield Bench("batch norm and relu", size, _moved(2 * n), normed)
    yield Bench("batch norm, backward", size, _moved(5 * n), backward)


def _pools(shape: Shape) -> Iterator[Bench]:
    n, size, none, two = prod(shape), _name(shape), (0, 0), (2, 2)

    def largest(m: Maker) -> Call:
        x = m.activations(*shape)
        return lambda: m.ops.max_pool(x, two, two, none, m.pool)

    def backward(m: Maker) -> Call:
        y, place = m.ops.max_pool(m.activations(*shape), two, two, none, m.pool)
        return lambda: m.ops.max_pool_backward(place, y, shape[1:], two, two, none, m.pool)

    def means(m: Maker) -> Call:
        x = m.activations(*shape)
        return lambda: m.ops.channel_means(x, m.pool)

    def spread(m: Maker) -> Call:
        dy = m.activations(shape[0], shape[-1])
        return lambda: m.ops.channel_means_backward(dy, shape[1:], m.pool)

    if shape[1:] in VGG:
        yield Bench("max pool", size, Demand(0.0, 1.25 * n, other=n / 4), largest)
        yield Bench("max pool, backward", size, Demand(0.0, 1.25 * n, other=n / 4), backward)
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
        w, g, v, cut = m.parameters(size), m.parameters(size), m.zeros(size), pieces(m)
        return lambda: m.ops.sgd(w, g, v, cut, 0.01, 1e-3, 0.9, False, pool=m.pool)

    def adam(m: Maker) -> Call:
        w, g, first, second, cut = m.parameters(size), m.parameters(size), m.zeros(size), m.zeros(size), pieces(m)
        return lambda: m.ops.adam(w, g, first, second, cut, 0.01, 1e-3, (0.9, 0.999), 1e-8, 10, True, pool=m.pool)

    def squares(m: Maker) -> Call:
        g = m.parameters(size)
        return lambda: m.ops.sum_of_squares(g)

    def layers(m: Maker) -> Call:
        g, cuts = m.parameters(size), np.linspace(0, size, 41).astype(int).tolist()
        spans = [slice(*ends) for ends in pairwise(cuts)]
        return lambda: m.ops.squares_of(g, spans)

    yield Bench("sgd, momentum", name, Demand(0.0, parameters=5 * size), sgd)
    yield Bench("adamw", name, Demand(0.0, parameters=7 * size), adam)
    yield Bench("sum of squares", name, Demand(0.0, parameters=size), squares)
    yield Bench("sums of squares of 40 layers", name, Demand(0.0, parameters=size), layers)


def _convolutions(batch: int, own: Filter) -> Iterator[Bench]:
    x, weight = (batch, own.side, own.side, own.inputs), (own.kernel, own.kernel, own.inputs, own.outputs)
    side = -(-own.side // own.stride)
    z = (batch, side, side, own.outputs)
    demand = Demand(2.0 * prod(z) * prod(weight[:3]), prod(x) + prod(z), prod(weight))

    def forward(m: Maker) -> Call:
        image, kernel = m.activations(*x), m.parameters(*weight)
        return lambda: m.ops.conv(image, kernel, *own.steps, m.pool)

    def backward(m: Maker) -> Call:
        dz, kernel = m.activations(*z), m.parameters(*weight)
        return lambda: m.ops.conv_backward_input(dz, kernel, x[1:], *own.steps, m.pool)

    def gradient(m: Maker) -> Call:
        image, dz, grad = m.activations(*x), m.activations(*z), m.zeros(*weight)
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

        source, target = m.parameters(rows, columns), m.activations(columns, rows)
        return lambda: transposed(source, rows, target)

    return Bench("transpose", f"{rows}x{columns}", Demand(0.0, rows * columns, rows * columns), make)
