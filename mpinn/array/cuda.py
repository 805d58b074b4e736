"""The kernels for a CUDA device: twins of those in `mpinn.array.ops`, on the current stream, without any wait.

Results repeat bit for bit. What only moves numbers about is left to CuPy, whose arrays obey NumPy's functions.
"""

from math import prod
from typing import Any

import cupy
import numpy as np

from mpinn.array import cuda_conv, cuda_epilogues, cuda_products
from mpinn.array.activations import ACTIVATIONS
from mpinn.array.cuda_graph import recorder
from mpinn.array.cuda_kernels import NULL, THREADS, launch, power_of_two, rows_at_once, spread_over, sum_columns
from mpinn.array.cuda_memory import contiguous, empty_pinned, fill, inbox, on_device, on_host, synchronize, uploads
from mpinn.array.cuda_packed import (
    finite_sum,
    packed_correct,
    packed_cross_entropy,
    packed_scale,
    packed_squared_error,
    packed_squares,
    prepared_pieces,
    ragged_backward,
    ragged_gradient,
    ragged_heads,
    ragged_hidden,
    ragged_output,
    ragged_output_backward,
    ragged_products,
)
from mpinn.array.cuda_vectors import (
    DOUBLE,
    adam,
    all_finite,
    correct,
    cross_entropy,
    prepared,
    set_words,
    sgd,
    shortened,
    squared_error,
    squares_of,
    sum_of_squares,
)
from mpinn.array.im2col import Pair
from mpinn.array.packed import packed_activate, packed_output, packed_output_backward, packed_slope
from mpinn.array.pool import Pool
from mpinn.array.pooling import output_shape, place_type
from mpinn.array.precision import wide
from mpinn.array.typing import Array, Dtype, Shape

__all__ = [
    "adam",
    "all_finite",
    "contiguous",
    "correct",
    "cross_entropy",
    "empty_pinned",
    "fill",
    "finite_sum",
    "inbox",
    "on_device",
    "on_host",
    "packed_activate",
    "packed_correct",
    "packed_cross_entropy",
    "packed_output",
    "packed_output_backward",
    "packed_scale",
    "packed_slope",
    "packed_squared_error",
    "packed_squares",
    "prepared",
    "prepared_pieces",
    "ragged_backward",
    "ragged_gradient",
    "ragged_heads",
    "ragged_hidden",
    "ragged_output",
    "ragged_output_backward",
    "ragged_products",
    "recorder",
    "sgd",
    "shortened",
    "squared_error",
    "squares_of",
    "sum_of_squares",
    "synchronize",
    "uploads",
]

POOLED = 1 << 31
"""Images that are pooled have fewer numbers: kernels find their way among them with 32 bits."""

LIBRARY = cupy
TOGETHER = True
STEP = 1 << 62
"""Elements of a vector that are worked on at once: all of them."""
NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}


class Choices:
    """What was chosen for all products of this process.

    ``tf32``: whether float32 may be multiplied as TF32; ``epilogues``: whether what follows a product may be its
    epilogue, which only what compares the two ways forbids.
    """

    tf32 = False
    epilogues = True


def matmul(a: Array, b: Array, out: Array) -> None:
    """The twin of `ops.matmul`."""
    cuda_products.matmul(a, b, out, Choices.tf32)


def conv(x: Array, weight: Array, stride: Pair, padding: Pair, pool: Pool) -> Array:
    """The twin of `ops.conv`."""
    return cuda_conv.conv(x, weight, stride, padding, pool, Choices.tf32)


def conv_backward_weight(x: Array, dz: Array, grad: Array, stride: Pair, padding: Pair, pool: Pool) -> None:
    """The twin of `ops.conv_backward_weight`."""
    cuda_conv.conv_backward_weight(x, dz, grad, stride, padding, pool, Choices.tf32)


def conv_backward_input(dz: Array, weight: Array, shape: Shape, stride: Pair, padding: Pair, pool: Pool) -> Array:
    """The twin of `ops.conv_backward_input`."""
    return cuda_conv.conv_backward_input(dz, weight, shape, stride, padding, pool, Choices.tf32)


def bias_activation(z: Array, bias: Array | None, name: str, pool: Pool) -> tuple[Array, Array]:
    """The twin of `ops.bias_activation` in one pass."""
    if bias is None and name == "identity":
        return z, z
    y = pool.empty(z.shape, z.dtype) if ACTIVATIONS[name].keeps_input else z
    columns = z.shape[-1]
    spread_over(
        "bias_activation", z.dtype, z.size, z, NULL if bias is None else bias, y, z.size, columns, NUMBERS[name]
    )
    return y, z


def affine(x: Array, weight: Array, bias: Array | None, name: str, pool: Pool) -> tuple[Array, Array]:
    """The twin of `ops.affine`, in one kernel where cuBLASLt can."""
    y = pool.empty((len(x), weight.shape[1]), x.dtype)
    if bias is not None and Choices.epilogues and cuda_epilogues.affine(x, weight, bias, name, y, pool, Choices.tf32):
        return y, y
    matmul(x, weight, y)
    return bias_activation(y, bias, name, pool)


def affine_gradients(x: Array, dz: Array, weight: Array, bias: Array | None, pool: Pool) -> None:
    """The twin of `ops.affine_gradients`, in one kernel where cuBLASLt can."""
    if bias is not None and Choices.epilogues and cuda_epilogues.gradients(x, dz, weight, bias, pool, Choices.tf32):
        return
    matmul(x.T, dz, weight)
    if bias is not None:
        sum_columns("column_sums", dz, (dz,), (bias,), pool)


def activate(name: str, x: Array, pool: Pool) -> Array:
    """The twin of `ops.activate`."""
    y = pool.empty(x.shape, x.dtype)
    spread_over("activation", x.dtype, x.size, x, y, x.size, NUMBERS[name])
    return y


def activation_backward(name: str, kept: Array, dy: Array, pool: Pool) -> Array:
    """The twin of `ops.activation_backward` in one pass."""
    if name == "identity":
        return dy
    dz = pool.empty(dy.shape, dy.dtype)
    spread_over("activation_backward", dy.dtype, dy.size, kept, dy, dz, dy.size, NUMBERS[name])
    return dz


def add(a: Array, b: Array, pool: Pool) -> Array:
    """The twin of `ops.add`."""
    total = pool.empty(a.shape, a.dtype)
    spread_over("add", a.dtype, a.size, a, b, total, a.size)
    return total


def dropout(x: Array, keep: Array, rate: float, pool: Pool) -> Array:
    """The twin of `ops.dropout` in one pass."""
    y = pool.empty(x.shape, x.dtype)
    spread_over("dropout", x.dtype, x.size, x, keep, y, x.size, 1 / (1 - rate))
    return y


def dropout_mask(keep: Array, rate: float, key: Any, rows: tuple[int, int], pool: Pool) -> None:
    """The twin of `ops.dropout_mask`, which draws the same mask.

    ``key`` may be an array of four words on the device, key and rows, which are then read when the kernel runs.
    """
    words = key
    if isinstance(key, tuple):
        words = cupy.empty(4, np.uint32)
        set_words(words, (*key, *rows))
    limit = min(int(rate * 2**32), 2**32 - 1)
    spread_over("dropout_mask", DOUBLE, keep.size, keep, words, keep.size, prod(keep.shape[1:]), limit)


def column_sums(x: Array) -> Array:
    """The twin of `ops.column_sums`, in the type of parameters."""
    sums: Array = cupy.empty(x.shape[-1], wide(x.dtype))
    sum_columns("column_sums", x, (x,), (sums,), Pool(cupy))
    return sums


def batch_statistics(
    x: Array, running: tuple[Array, Array], momentum: float, epsilon: float, pool: Pool
) -> tuple[Array, Array]:
    """The twin of `ops.batch_statistics` in one pass."""
    mean, inverse = (pool.empty((x.shape[-1],), wide(x.dtype)) for _ in range(2))
    sum_columns("batch_statistics", x, (x,), (mean, inverse, *running), pool, float(epsilon), float(momentum))
    return mean, inverse


def known_statistics(running: tuple[Array, Array], epsilon: float, dtype: Dtype, pool: Pool) -> tuple[Array, Array]:
    """The twin of `ops.known_statistics`."""
    mean, variance = running
    inverse = pool.empty(variance.shape, wide(dtype))
    spread_over("inverse_deviation", dtype, variance.size, variance, inverse, variance.size, float(epsilon), one=True)
    return mean, inverse


def batch_norm(
    x: Array, mean: Array, inverse: Array, scale: Array, shift: Array, activation: str, pool: Pool
) -> tuple[Array, Array]:
    """The twin of `ops.batch_norm` in one pass."""
    y = pool.empty(x.shape, x.dtype)
    z = pool.empty(x.shape, x.dtype) if ACTIVATIONS[activation].keeps_input else y
    spread_over(
        "batch_norm", x.dtype, x.size, x, mean, inverse, scale, shift, y, z, x.size, x.shape[-1], NUMBERS[activation]
    )
    return y, z


def batch_norm_backward(
    x: Array, mean: Array, inverse: Array, scale: Array, activation: str, kept: Array | None, dy: Array,
    of_batch: bool, pool: Pool,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The twin of `ops.batch_norm_backward` in two passes; dscale and dshift in the type of parameters."""
    columns, name = x.shape[-1], NUMBERS["identity" if kept is None else activation]
    kept = dy if kept is None else kept
    dscale, dshift, numbers = (pool.empty((size,), wide(x.dtype)) for size in (columns, columns, 3 * columns))
    inputs, outputs = (x, mean, inverse, scale, kept, dy), (dscale, dshift, numbers)
    sum_columns("batch_norm_sums", x, inputs, outputs, pool, name, int(of_batch))
    dx = pool.empty(x.shape, x.dtype)
    spread_over("batch_norm_backward", x.dtype, x.size, x, mean, numbers, kept, dy, dx, x.size, columns, name)
    return dx, dscale, dshift


def layer_norm(x: Array, scale: Array, shift: Array, epsilon: float, pool: Pool) -> tuple[Array, Array, Array]:
    """The twin of `ops.layer_norm`."""
    columns = x.shape[-1]
    rows, threads = x.size // columns, power_of_two(columns, 32, THREADS)
    y = pool.empty(x.shape, x.dtype)
    mean, inverse = (pool.empty((*x.shape[:-1], 1), wide(x.dtype)) for _ in range(2))
    if rows:
        launch("layer_norm", x.dtype, (rows_at_once(rows),), (threads,), x, scale, shift, y, mean, inverse, rows,
               columns, float(epsilon), doubles=threads)  # fmt: skip
    return y, mean, inverse


def layer_norm_backward(
    x: Array, mean: Array, inverse: Array, scale: Array, dy: Array, pool: Pool
) -> tuple[Array, Array, Array]:
    """The twin of `ops.layer_norm_backward`; dscale and dshift in the type of parameters."""
    columns = x.shape[-1]
    rows, threads = x.size // columns, power_of_two(columns, 32, THREADS)
    dx = pool.empty(x.shape, x.dtype)
    if rows:
        launch("layer_norm_backward", x.dtype, (rows_at_once(rows),), (threads,), x, mean, inverse, scale, dy, dx, rows,
               columns, doubles=threads)  # fmt: skip
    dshift, dscale = (pool.empty((columns,), wide(x.dtype)) for _ in range(2))
    sum_columns("layer_norm_sums", x, (x, mean, inverse, dy), (dscale, dshift), pool)
    return dx, dscale, dshift


def max_pool(x: Array, kernel: Pair, stride: Pair, padding: Pair, pool: Pool) -> tuple[Array, Array]:
    """The twin of `ops.max_pool`."""
    shape = output_shape(x.shape, kernel, stride, padding)
    y, place = pool.empty(shape, x.dtype), pool.empty(shape, place_type(kernel))
    numbers = _windows(x.shape, shape, kernel, stride, padding)
    spread_over("max_pool", x.dtype, y.size, x, y, place, y.size, *numbers, place.itemsize, one=True)
    return y, place


def max_pool_backward(
    place: Array, dy: Array, shape: Shape, kernel: Pair, stride: Pair, padding: Pair, pool: Pool
) -> Array:
    """The twin of `ops.max_pool_backward`: each pixel gathers what is its own, or each window has its own pixels."""
    dx = pool.empty((len(dy), *shape), dy.dtype)
    numbers = (*_windows(dx.shape, dy.shape, kernel, stride, padding), place.itemsize)
    apart = kernel == stride and tuple(pixels * size for pixels, size in zip(dy.shape[1:3], kernel, strict=True))
    if apart == shape[:2]:
        spread_over("max_pool_spread", dy.dtype, dy.size, place, dy, dx, dy.size, *numbers)
    else:
        spread_over("max_pool_backward", dy.dtype, dx.size, place, dy, dx, dx.size, *numbers, one=True)
    return dx


def average_pool(x: Array, kernel: Pair, stride: Pair, padding: Pair, pool: Pool) -> Array:
    """The twin of `ops.average_pool`."""
    y = pool.empty(output_shape(x.shape, kernel, stride, padding), x.dtype)
    numbers = _windows(x.shape, y.shape, kernel, stride, padding)
    spread_over("average_pool", x.dtype, y.size, x, y, y.size, *numbers, one=True)
    return y


def average_pool_backward(dy: Array, shape: Shape, kernel: Pair, stride: Pair, padding: Pair, pool: Pool) -> Array:
    """The twin of `ops.average_pool_backward`."""
    dx = pool.empty((len(dy), *shape), dy.dtype)
    numbers = _windows(dx.shape, dy.shape, kernel, stride, padding)
    spread_over("average_pool_backward", dy.dtype, dx.size, dy, dx, dx.size, *numbers, one=True)
    return dx


def _windows(x: Shape, y: Shape, kernel: Pair, stride: Pair, padding: Pair) -> tuple[int, ...]:
    _check_size(x)
    return (*x[1:], *y[1:3], *kernel, *stride, *padding)


def _check_size(images: Shape) -> None:
    if prod(images) >= POOLED:
        raise OverflowError(f"images {images} are too many to be pooled at once: fewer than {POOLED:,} numbers")


def channel_means(x: Array, pool: Pool) -> Array:
    """The twin of `ops.channel_means`."""
    y = pool.empty((len(x), x.shape[3]), x.dtype)
    spread_over("channel_means", x.dtype, y.size, x, y, y.size, prod(x.shape[1:3]), x.shape[3], one=True)
    return y


def channel_means_backward(dy: Array, shape: Shape, pool: Pool) -> Array:
    """The twin of `ops.channel_means_backward`."""
    dx = pool.empty((len(dy), *shape), dy.dtype)
    _check_size(dx.shape)
    spread_over("channel_means_backward", dy.dtype, dx.size, dy, dx, dx.size, prod(shape[:2]), shape[2])
    return dx


def device_name() -> str:
    """The twin of `ops.device_name`."""
    name: bytes = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"]
    return name.decode()
