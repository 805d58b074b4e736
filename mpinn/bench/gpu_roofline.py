"""The least that a training step takes on a device: its operations and bytes, at speeds that were measured on it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from mpinn.array.typing import Array, Shape
from mpinn.bench.timing import Operation
from mpinn.nn.activation import Activation
from mpinn.nn.bounds import pair
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.flatten import Flatten
from mpinn.nn.layer import Layer
from mpinn.nn.layout import Layout
from mpinn.nn.network import Network
from mpinn.nn.residual import Residual

TF32 = {"float32": False, "TF32": True}
"""The precisions of products, and whether float32 is multiplied as TF32 in them."""
COPIED = 1 << 30
"""Bytes of the array that is copied to know the bandwidth."""
SIDE = 8192
"""Rows and columns of the matrices that are multiplied to know the speed of products."""
PASSES = 5
"""An activation is written and read forward, read again backward, and its gradient is written and read."""
VECTORS = 8
"""A weight is read forward, backward and by the update, its gradient is written and read, its momentum is read and
written, and it is written itself."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a device reached: bytes per second, read and written, of a large copy; operations per second of a large
    product, by precision.
    """

    bandwidth: float
    products: Mapping[str, float]

    def seconds(self, demand: "Demand", precision: str) -> float:
        """The least that so much takes."""
        return max(demand.operations / self.products[precision], demand.bytes / self.bandwidth)


@dataclass(frozen=True, slots=True)
class Demand:
    """Operations, where a multiplication and an addition are two, and bytes of the device's memory."""

    operations: float
    bytes: float


def measure(kernels: Any, copied: int = COPIED, side: int = SIDE, rounds: int = 5) -> Ceilings:
    """Of the current device, by its ``kernels``; the fastest of some rounds, as these are to be limits."""

    bandwidth = _bandwidth(kernels, copied, rounds)
    a, b, out = (random((side, side), kernels) for _ in range(3))
    before, products = kernels.Choices.tf32, {}
    for precision, tf32 in TF32.items():
        kernels.Choices.tf32 = tf32
        products[precision] = 2 * side**3 / _fastest(lambda: kernels.matmul(a, b, out), rounds, 2)
    kernels.Choices.tf32 = before
    return Ceilings(bandwidth, products)


def _bandwidth(kernels: Any, copied: int, rounds: int) -> float:
    from mpinn.array import cuda_timing

    source, target = (kernels.LIBRARY.zeros(copied // 4, np.float32) for _ in range(2))
    copies: tuple[Operation, ...] = (lambda: cuda_timing.copy(target, source), lambda: np.copyto(target, source))
    return max(2 * copied / _fastest(operation, rounds, 5) for operation in copies)


def _fastest(operation: Operation, rounds: int, calls: int) -> float:
    from mpinn.array import cuda_timing

    operation()
    return min(cuda_timing.seconds(operation, calls) for _ in range(rounds))


BLOCK = 1 << 20


def random(shape: Shape, kernels: Any) -> Array:
    """Normal numbers on the device, those of a block over and over: zeros would be multiplied faster."""
    block = kernels.on_device(np.random.default_rng(0).standard_normal(BLOCK, np.float32))
    found: Array = kernels.LIBRARY.empty(shape, np.float32)
    flat = found.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        piece = flat[start : start + BLOCK]
        piece[...] = block[: piece.size]
    return found


def demand(network: Network, shape: Shape, batch: int) -> Demand:
    """The least of a training step with SGD and momentum in float32.

    The first matrix or kernel has no input gradient to make. What an activation function makes costs nothing: it may be
    made where its input is.
    """
    found = list(_layers(network, shape))
    products = [count for count, _ in found if count]
    operations = 2.0 * batch * (3 * sum(products) - products[0])
    activations = PASSES * sum(elements for _, elements in found) + 2 * prod(shape)
    weights = Layout(network.parameters(shape), np.dtype(np.float32)).count
    return Demand(operations, 4.0 * (batch * activations + VECTORS * weights))


def _layers(layer: Layer, shape: Shape) -> Iterator[tuple[int, int]]:
    """(multiplications, elements of the output) of each layer, for one sample."""
    after = layer.output_shape(shape)
    match layer:
        case Network():
            for _, inner in layer.layers:
                yield from _layers(inner, shape)
                shape = inner.output_shape(shape)
        case Residual():
            yield from _layers(layer.body, shape)
            if layer.projection is not None:
                yield from _layers(layer.projection, shape)
            yield 0, prod(after)
        case Conv2d():
            yield prod(after) * prod(pair("kernel", layer.kernel, 1)) * shape[-1], prod(after)
        case Dense():
            yield prod(after) * shape[-1], prod(after)
        case Activation() | Flatten():
            yield 0, 0
        case _:
            yield 0, prod(after)
