"""The kernels that layers call, written plainly with NumPy's functions, which CuPy's arrays obey too.

A faster twin has the same name and arguments; a test asserts that they agree. Scratch comes from the pool.
"""

from collections.abc import Sequence
from math import inf, prod, sqrt
from typing import Any

import numpy as np

from mpinn.array import steps
from mpinn.array.activations import ACTIVATIONS
from mpinn.array.im2col import conv, conv_backward_input, conv_backward_weight
from mpinn.array.norms import (
    batch_norm,
    batch_norm_backward,
    batch_statistics,
    followed,
    known_statistics,
    layer_norm,
    layer_norm_backward,
)
from mpinn.array.packed import (
    packed_activate,
    packed_correct,
    packed_cross_entropy,
    packed_output,
    packed_output_backward,
    packed_scale,
    packed_slope,
    packed_squared_error,
    packed_squares,
    prepared_pieces,
)
from mpinn.array.pool import Inbox, Pool
from mpinn.array.pooling import (
    average_pool,
    average_pool_backward,
    channel_means,
    channel_means_backward,
    max_pool,
    max_pool_backward,
)
from mpinn.array.ragged import (
    finite_sum,
    ragged_backward,
    ragged_gradient,
    ragged_heads,
    ragged_hidden,
    ragged_output,
    ragged_output_backward,
    ragged_products,
)
from mpinn.array.steps import Segments, adam, sgd
from mpinn.array.sums import BLOCK, column_moments, column_sums, spread
from mpinn.array.typing import Array, Dtype, Shape

LIBRARY = np
"""The library of the arrays that the kernels work on."""
STEP = steps.BLOCK
"""Elements of a vector that are worked on at once, where several passes over them follow."""
TOGETHER = False
"""Whether the members of a population are computed all at once, rather than some and then others in the cache."""

__all__ = [
    "activate",
    "activation_backward",
    "adam",
    "add",
    "affine",
    "affine_gradients",
    "all_finite",
    "average_pool",
    "average_pool_backward",
    "batch_norm",
    "batch_norm_backward",
    "batch_statistics",
    "bias_activation",
    "channel_means",
    "channel_means_backward",
    "column_moments",
    "column_sums",
    "contiguous",
    "conv",
    "conv_backward_input",
    "conv_backward_weight",
    "correct",
    "cross_entropy",
    "device_name",
    "dropout",
    "dropout_mask",
    "empty_pinned",
    "fill",
    "finite_sum",
    "followed",
    "inbox",
    "known_statistics",
    "layer_norm",
    "layer_norm_backward",
    "matmul",
    "max_pool",
    "max_pool_backward",
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


def bias_activation(z: Array, bias: Array | None, name: str, pool: Pool) -> tuple[Array, Array]:
    """Add the bias to z: (..., O) in place and activate; returns y and what the backward pass keeps (y or z)."""
    if bias is not None:
        np.add(z, spread(bias, z, pool), out=z)
    activation = ACTIVATIONS[name]
    y = pool.empty(z.shape, z.dtype) if activation.keeps_input else z
    activation.forward(z, y, pool)
    return y, (z if activation.keeps_input else y)


def activate(name: str, x: Array, pool: Pool) -> Array:
    """The activation alone: y = f(x)."""
    y = pool.empty(x.shape, x.dtype)
    ACTIVATIONS[name].forward(x, y, pool)
    return y


def activation_backward(name: str, kept: Array, dy: Array, pool: Pool) -> Array:
    """dz = dy * f'(z) for an activation whose forward pass kept ``kept``; dy itself for the identity."""
    if name == "identity":
        return dy
    dz = pool.empty(dy.shape, dy.dtype)
    ACTIVATIONS[name].backward(kept, dy, dz, pool)
    return dz


def affine(x: Array, weight: Array, bias: Array | None, name: str, pool: Pool) -> tuple[Array, Array]:
    """f(x W + b) for x: (B, I), weight: (I, O), bias: (O,), and what the backward pass keeps; see `bias_activation`."""
    z = pool.empty((len(x), weight.shape[1]), x.dtype)
    matmul(x, weight, z)
    return bias_activation(z, bias, name, pool)


def affine_gradients(x: Array, dz: Array, weight: Array, bias: Array | None, pool: Pool) -> None:
    """Write the gradients by the weight, x' dz, and by the bias, the sums of dz: (B, O) over the batch."""
    matmul(x.T, dz, weight)
    if bias is not None:
        bias[...] = column_sums(dz)


def cross_entropy(logits: Array, target: Array, smoothing: float, pool: Pool) -> tuple[Array, Array]:
    """Softmax and cross-entropy, summed over the samples, and its gradient by the logits.

    logits: (B, O), target: (B,) class numbers. With smoothing s the wanted distribution is (1 - s) on the class and
    s / O on every class. Returns the loss as a float64 array of no dimensions, and dy: (B, O).
    """
    samples, classes = logits.shape
    dy = pool.empty(logits.shape, logits.dtype)
    np.subtract(logits, logits.max(axis=1, keepdims=True), out=dy)
    rows = np.arange(samples, like=logits)
    chosen = dy[rows, target].sum(dtype=np.float64) * (1 - smoothing)
    if smoothing:
        chosen = chosen + dy.sum(dtype=np.float64) * (smoothing / classes)
    np.exp(dy, out=dy)
    total = dy.sum(axis=1, keepdims=True)
    loss = np.log(total).sum(dtype=np.float64) - chosen
    np.divide(dy, total, out=dy)
    if smoothing:
        np.subtract(dy, smoothing / classes, out=dy)
    dy[rows, target] -= 1 - smoothing
    return loss, dy


def squared_error(y: Array, target: Array, pool: Pool) -> tuple[Array, Array]:
    """Half the squared error, summed over samples and outputs, and its gradient y - target.

    y: (B, O); target: (B, O), or (B,) class numbers, which stand for one-hot rows.
    """
    dy = pool.empty(y.shape, y.dtype)
    if target.ndim == 1 and np.issubdtype(target.dtype, np.integer):
        np.copyto(dy, y)
        dy[np.arange(len(y), like=y), target] -= 1
    else:
        np.subtract(y, target.reshape(y.shape), out=dy)
    square = pool.empty(y.shape, y.dtype)
    np.multiply(dy, dy, out=square)
    return 0.5 * square.sum(dtype=np.float64), dy


def correct(y: Array, target: Array) -> Any:
    """How many rows of y: (B, O) have their maximum where target has it: (B, O), or (B,) class numbers."""
    classes = target if target.ndim == 1 else target.argmax(axis=1)
    return (y.argmax(axis=1) == classes).sum()


def add(a: Array, b: Array, pool: Pool) -> Array:
    """a + b for arrays of one shape."""
    total = pool.empty(a.shape, a.dtype)
    np.add(a, b, out=total)
    return total


def dropout(x: Array, keep: Array, rate: float, pool: Pool) -> Array:
    """x / (1 - rate) where ``keep`` is true, zero elsewhere."""
    y = pool.empty(x.shape, x.dtype)
    np.multiply(x, keep, out=y)
    np.multiply(y, 1 / (1 - rate), out=y)
    return y


def dropout_mask(keep: Array, rate: float, key: tuple[int, int], rows: tuple[int, int], pool: Pool) -> None:
    """Fill keep: (B, ...) of bool; an element is kept with probability 1 - rate.

    The choice is a hash of the key and of the element's place in the global batch, in which local row i is row
    ``rows[0] + i * rows[1]``, so it depends neither on how the batch is cut nor on the device.
    """
    width = prod(keep.shape[1:])
    flat = keep.reshape(len(keep), width)
    limit = np.uint32(min(int(rate * 2**32), 2**32 - 1))
    across = min(width, BLOCK)
    down = max(1, BLOCK // max(1, across))
    bits, shifted = (pool.empty((BLOCK,), np.dtype(np.uint32)) for _ in range(2))
    for top in range(0, len(flat), down):
        for left in range(0, width, across):
            block = flat[top : top + down, left : left + across]
            part = bits[: block.size].reshape(block.shape)
            _number(part, rows[0] + top * rows[1], rows[1], left, width)
            _hash(part, key, shifted[: block.size].reshape(block.shape))
            np.greater_equal(part, limit, out=block)


def _number(bits: Array, row: int, step: int, column: int, width: int) -> None:
    # the place of each element in the global batch, modulo 2^32
    down = np.arange(row, row + bits.shape[0] * step, step, dtype=np.uint32, like=bits)[: len(bits), None]
    across = np.arange(column, column + bits.shape[1], dtype=np.uint32, like=bits)
    np.add(down * np.uint32(width), across, out=bits)


def _hash(bits: Array, key: tuple[int, int], shifted: Array) -> None:
    for word in key:
        np.bitwise_xor(bits, np.uint32(word & 0xFFFFFFFF), out=bits)
        _mix(bits, shifted)


def _mix(bits: Array, shifted: Array) -> None:
    # the 32-bit finaliser "lowbias32" of C. Wellons' hash prospector
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        np.right_shift(bits, np.uint32(shift), out=shifted)
        np.bitwise_xor(bits, shifted, out=bits)
        np.multiply(bits, np.uint32(factor), out=bits)


def matmul(a: Array, b: Array, out: Array) -> None:
    """out = a b, for matrices or one batch of them."""
    np.matmul(a, b, out=out)


def prepared(segments: Segments) -> Any:
    """Segments as the kernels of optimizer steps take them."""
    return segments


def squares_of(vector: Array, spans: Sequence[slice]) -> Any:
    """The sum of squares of each span of a vector."""
    return [float(sum_of_squares(vector[span])) for span in spans]


def shortened(scale: float, sums: Any, limit: float) -> Any:
    """The ``scale`` of a gradient whose layers have these sums of squares, less where it is longer than ``limit``."""
    norm = sqrt(sum(sums)) * scale
    # a norm that is not finite is left alone, so that it shows
    return scale * (limit / norm) if limit < norm < inf else scale


def contiguous(array: Array) -> Array:
    """The array, or a copy, in one piece of memory in C order."""
    return np.ascontiguousarray(array)


def on_host(array: Array) -> Array:
    """The values in host memory; a copy only where the array is elsewhere."""
    return array


def on_device(array: Array) -> Array:
    """The values where the kernels work; a copy only where the array is elsewhere."""
    return array


def fill(into: Array, values: Array) -> None:
    """Copy the values of an array, from wherever it is, into another one of its shape."""
    if into is not values:
        into[...] = values


def synchronize() -> None:
    """Return when all that was asked for is done, as it is here."""


def empty_pinned(shape: Shape, dtype: Dtype) -> Array:
    """A host array that the device copies at full speed; its values are arbitrary."""
    return np.empty(shape, dtype)


def device_name() -> str:
    """Of the accelerator that the kernels work on: none here."""
    return ""


def uploads() -> None:
    """What copies batches to the device: nothing is needed for that here."""


def inbox(pool: Pool) -> Inbox:
    """Where messages arrive: anywhere, for nothing runs behind the program's back."""
    return Inbox(pool)


def recorder() -> None:
    """What records a step and repeats it: here, calls cost next to nothing."""


def sum_of_squares(vector: Array) -> Any:
    """The sum of the squares of a vector, accumulated in float64 block by block."""
    total: Any = 0.0
    for start in range(0, vector.size, BLOCK):
        block = vector[start : start + BLOCK]
        total = total + np.dot(block, block).astype(np.float64)
    return total


def all_finite(vector: Array) -> bool:
    """Whether no element is infinite or not a number."""
    return all(bool(np.isfinite(vector[start : start + BLOCK]).all()) for start in range(0, vector.size, BLOCK))
