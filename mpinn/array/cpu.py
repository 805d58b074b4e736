"""The kernels compiled for the CPU: faster twins of those in `mpinn.array.ops`; what has none here is the plain one."""

from collections.abc import Sequence
from importlib import import_module
from math import prod
from typing import Any

import numpy as np

from mpinn.array import ops as plain
from mpinn.array.activations import ACTIVATIONS as PLAIN
from mpinn.array.cpu_activations import ACTIVATIONS, loops
from mpinn.array.cpu_losses import half_square, half_square_of_classes, softmax_cross_entropy
from mpinn.array.cpu_vectors import (
    adapt,
    add_rows,
    descend,
    descend_with_momentum,
    draw,
    masked,
    none_has,
    squares,
)
from mpinn.array.moments import bias_corrected
from mpinn.array.pool import Pool
from mpinn.array.steps import Segments
from mpinn.array.typing import Array

_BITS = {4: (np.dtype(np.int32), 0x7F800000), 8: (np.dtype(np.int64), 0x7FF0000000000000)}


ON_DEMAND = {
    "conv": "cpu_conv",
    "conv_backward_input": "cpu_conv",
    "conv_backward_weight": "cpu_conv",
    "batch_norm": "cpu_norms",
    "batch_norm_backward": "cpu_norms",
    "column_moments": "cpu_norms",
    "layer_norm": "cpu_layer_norm",
    "layer_norm_backward": "cpu_layer_norm",
    "max_pool": "cpu_pooling",
    "max_pool_backward": "cpu_pooling",
    "packed_activate": "cpu_packed",
    "packed_cross_entropy": "cpu_packed",
    "packed_output": "cpu_packed",
    "packed_output_backward": "cpu_packed",
    "packed_scale": "cpu_packed",
    "packed_slope": "cpu_packed",
    "packed_squared_error": "cpu_packed",
    "packed_squares": "cpu_packed",
}
"""Kernels that few networks need, and the modules in which they are made at their first use."""


def __getattr__(name: str) -> Any:
    if name in ON_DEMAND:
        found = getattr(import_module(f"mpinn.array.{ON_DEMAND[name]}"), name)
        globals()[name] = found
        return found
    return getattr(plain, name)


def bias_activation(z: Array, bias: Array | None, name: str, pool: Pool) -> tuple[Array, Array]:
    """The twin of `ops.bias_activation` in one pass; gelu is the plain one."""
    if bias is None and name == "identity":
        return z, z
    if name not in ACTIVATIONS or not z.flags.c_contiguous:
        return plain.bias_activation(z, bias, name, pool)
    keeps_input = PLAIN[name].keeps_input
    y = pool.empty(z.shape, z.dtype) if keeps_input else z
    if bias is None:
        loops(name).activate(z.reshape(-1), y.reshape(-1))
    elif keeps_input:
        loops(name).forward(_rows(z), bias, _rows(y))
    else:
        loops(name).forward(_rows(z), bias)
    return y, (z if keeps_input else y)


def activate(name: str, x: Array, pool: Pool) -> Array:
    """The twin of `ops.activate`; gelu is the plain one."""
    if name not in ACTIVATIONS:
        return plain.activate(name, x, pool)
    y = pool.empty(x.shape, x.dtype)
    loops(name).activate(x.reshape(-1), y.reshape(-1))
    return y


def activation_backward(name: str, kept: Array, dy: Array, pool: Pool) -> Array:
    """The twin of `ops.activation_backward` in one pass; gelu is the plain one."""
    if name == "identity" or name not in ACTIVATIONS:
        return plain.activation_backward(name, kept, dy, pool)
    dz = pool.empty(dy.shape, dy.dtype)
    loops(name).backward(kept.reshape(-1), dy.reshape(-1), dz.reshape(-1))
    return dz


def affine(x: Array, weight: Array, bias: Array | None, name: str, pool: Pool) -> tuple[Array, Array]:
    """The twin of `ops.affine`."""
    z = pool.empty((len(x), weight.shape[1]), x.dtype)
    plain.matmul(x, weight, z)
    return bias_activation(z, bias, name, pool)


def affine_gradients(x: Array, dz: Array, weight: Array, bias: Array | None, pool: Pool) -> None:
    """The twin of `ops.affine_gradients`."""
    plain.matmul(x.T, dz, weight)
    if bias is not None:
        bias[...] = column_sums(dz)


def batch_statistics(
    x: Array, running: tuple[Array, Array], momentum: float, epsilon: float, pool: Pool
) -> tuple[Array, Array]:
    """The twin of `ops.batch_statistics`."""
    moments = import_module("mpinn.array.cpu_norms").column_moments(x, pool)
    return plain.followed(x, moments, running, momentum, epsilon)


def column_sums(x: Array) -> Array:
    """The twin of `ops.column_sums`."""
    total = np.zeros(x.shape[-1])
    add_rows(_rows(x), total)
    return total


def cross_entropy(logits: Array, target: Array, smoothing: float, pool: Pool) -> tuple[Array, Array]:
    """The twin of `ops.cross_entropy`, row by row."""
    dy = pool.empty(logits.shape, logits.dtype)
    return np.asarray(softmax_cross_entropy(logits, target, smoothing, dy)), dy


def squared_error(y: Array, target: Array, pool: Pool) -> tuple[Array, Array]:
    """The twin of `ops.squared_error` in one pass."""
    dy = pool.empty(y.shape, y.dtype)
    if target.ndim == 1 and np.issubdtype(target.dtype, np.integer):
        return np.asarray(half_square_of_classes(y, target, dy)), dy
    return np.asarray(half_square(y.reshape(-1), target.reshape(-1), dy.reshape(-1))), dy


def dropout(x: Array, keep: Array, rate: float, pool: Pool) -> Array:
    """The twin of `ops.dropout` in one pass."""
    y = pool.empty(x.shape, x.dtype)
    masked(x.reshape(-1), keep.reshape(-1), 1 / (1 - rate), y.reshape(-1))
    return y


def dropout_mask(keep: Array, rate: float, key: tuple[int, int], rows: tuple[int, int], pool: Pool) -> None:
    """The twin of `ops.dropout_mask`, which draws the same mask."""
    limit = min(int(rate * 2**32), 2**32 - 1)
    low, high = (word & 0xFFFFFFFF for word in key)
    draw(keep.reshape(len(keep), prod(keep.shape[1:])), limit, low, high, *rows)


def sgd(
    weights: Array,
    grads: Array,
    velocity: Array | None,
    segments: Segments,
    scale: float,
    rate: float,
    momentum: float,
    nesterov: bool,
    pool: Pool,
) -> None:
    """The twin of `ops.sgd`: each number is read and written once."""
    if velocity is None:
        descend(weights, grads, *segments, scale, rate)
    else:
        descend_with_momentum(weights, grads, velocity, *segments, scale, rate, momentum, nesterov)


def adam(
    weights: Array,
    grads: Array,
    first: Array,
    second: Array,
    segments: Segments,
    scale: float,
    rate: float,
    betas: tuple[float, float],
    epsilon: float,
    updates: int,
    decoupled: bool,
    pool: Pool,
) -> None:
    """The twin of `ops.adam`: each number is read and written once."""
    pace, epsilon = bias_corrected(rate, betas, epsilon, updates)
    adapt(weights, grads, first, second, *segments, scale, rate, decoupled, *betas, epsilon, pace)


def sum_of_squares(vector: Array) -> float:
    """The twin of `ops.sum_of_squares`; the sum is a number of Python's."""
    total: float = squares(vector)
    return total


def squares_of(vector: Array, spans: Sequence[slice]) -> list[float]:
    """The twin of `ops.squares_of`."""
    return [sum_of_squares(vector[span]) for span in spans]


def all_finite(vector: Array) -> bool:
    """The twin of `ops.all_finite`: it looks at exponents, and stops at the first block that is not finite."""
    number, exponent = _BITS[vector.itemsize]
    return bool(none_has(vector.view(number), exponent))


def _rows(x: Array) -> Array:
    return x.reshape(x.size // x.shape[-1], x.shape[-1])
