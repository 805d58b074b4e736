"""The least that a training step takes on a device: its operations and bytes, at speeds that were measured on it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np

from mpinn.array.precision import bfloat16
from mpinn.array.typing import Array, Dtype, Shape
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


class Precision(NamedTuple):
    """Whether float32 is multiplied as TF32, and whether activations are bfloat16."""

    tf32: bool
    bf16: bool

    @property
    def dtype(self) -> Dtype:
        """Of activations."""
        return bfloat16() if self.bf16 else np.dtype(np.float32)


PRECISIONS = {
    "float32": Precision(tf32=False, bf16=False),
    "TF32": Precision(tf32=True, bf16=False),
    "bfloat16": Precision(tf32=False, bf16=True),
}
PARAMETER = 4
"""Bytes of a weight, and of all that belongs to it."""
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
        return max(demand.operations / self.products[precision], demand.bytes(precision) / self.bandwidth)


@dataclass(frozen=True, slots=True)
class Demand:
    """Operations, where a multiplication and an addition are two; numbers that are moved in the device's memory.

    ``activations`` are of the type of the precision, ``parameters`` in float32; ``other`` are bytes.
    """

    operations: float
    activations: float = 0.0
    parameters: float = 0.0
    other: float = 0.0

    def bytes(self, precision: str) -> float:
        """Bytes that are moved."""
        size = 2 if PRECISIONS[precision].bf16 else PARAMETER
        return size * self.activations + PARAMETER * self.parameters + self.other


def measure(kernels: Any, copied: int = COPIED, side: int = SIDE, rounds: int = 5) -> Ceilings:
    """Of the current device, by its ``kernels``; the fastest of some rounds, as these are to be limits."""

    bandwidth = _bandwidth(kernels, copied, rounds)
    before, products = kernels.Choices.tf32, {}
    for name, precision in PRECISIONS.items():
        kernels.Choices.tf32 = precision.tf32
        products[name] = 2 * side**3 / _product_seconds(kernels, side, precision.dtype, rounds)
    kernels.Choices.tf32 = before
    return Ceilings(bandwidth, products)


def _product_seconds(kernels: Any, side: int, dtype: Dtype, rounds: int) -> float:
    a, b, out = (random((side, side), kernels, dtype) for _ in range(3))
    return _fastest(lambda: kernels.matmul(a, b, out), rounds, 2)


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


def random(shape: Shape, kernels: Any, dtype: Dtype) -> Array:
    """Normal numbers on the device, those of a block over and over: zeros would be multiplied faster."""
    block = kernels.on_device(np.random.default_rng(0).standard_normal(BLOCK, np.float32).astype(dtype))
    found: Array = kernels.LIBRARY.empty(shape, dtype)
    flat = found.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        piece = flat[start : start + BLOCK]
        piece[...] = block[: piece.size]
    return found


def demand(network: Network, shape: Shape, batch: int) -> Demand:
    """The least of a training step with SGD and momentum.

    The first matrix or kernel has no input gradient to make. What an activation function makes costs nothing: it may be
    made where its input is.
    """
    found = list(_layers(network, shape))
    products = [count for count, _ in found if count]
    operations = 2.0 * batch * (3 * sum(products) - products[0])
    activations = PASSES * sum(elements for _, elements in found) + 2 * prod(shape)
    weights = Layout(network.parameters(shape), np.dtype(np.float32)).count
    return Demand(operations, float(batch * activations), float(VECTORS * weights))


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
