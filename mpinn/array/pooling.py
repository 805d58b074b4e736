"""Pooling over windows of images (B, H, W, C); padding takes no part in a maximum and counts as zero in a mean."""

from collections.abc import Iterator

import numpy as np

from mpinn.array.im2col import Pair, extent
from mpinn.array.pool import Pool
from mpinn.array.typing import Array, Shape


def max_pool(x: Array, kernel: Pair, stride: Pair, padding: Pair, pool: Pool) -> tuple[Array, Array]:
    """The maxima y: (B, OH, OW, C), and the place in its window, counted by rows, where each one was found first."""
    shape = output_shape(x.shape, kernel, stride, padding)
    y, place = pool.empty(shape, x.dtype), pool.empty(shape, place_type(kernel))
    greater = pool.empty(shape, np.dtype(bool))
    y.fill(-np.inf)
    place.fill(0)
    for index, inner, outer in _places(x.shape, kernel, stride, padding):
        best, above = y[outer], greater[outer]
        np.greater(x[inner], best, out=above)
        np.copyto(place[outer], index, where=above, casting="unsafe")
        np.maximum(x[inner], best, out=best)
    return y, place


def max_pool_backward(
    place: Array, dy: Array, shape: Shape, kernel: Pair, stride: Pair, padding: Pair, pool: Pool
) -> Array:
    """dx: (B, H, W, C) for samples of ``shape`` (H, W, C): each dy goes to the place of its maximum."""
    dx = pool.empty((len(dy), *shape), dy.dtype)
    chosen, share = pool.empty(dy.shape, np.dtype(bool)), pool.empty(dy.shape, dy.dtype)
    dx.fill(0)
    for index, inner, outer in _places(dx.shape, kernel, stride, padding):
        np.equal(place[outer], index, out=chosen[outer])
        np.multiply(dy[outer], chosen[outer], out=share[outer])
        np.add(dx[inner], share[outer], out=dx[inner])
    return dx


def average_pool(x: Array, kernel: Pair, stride: Pair, padding: Pair, pool: Pool) -> Array:
    """The means y: (B, OH, OW, C) of whole windows, padding included."""
    y = pool.empty(output_shape(x.shape, kernel, stride, padding), x.dtype)
    y.fill(0)
    for _, inner, outer in _places(x.shape, kernel, stride, padding):
        np.add(y[outer], x[inner], out=y[outer])
    np.multiply(y, 1 / (kernel[0] * kernel[1]), out=y)
    return y


def average_pool_backward(dy: Array, shape: Shape, kernel: Pair, stride: Pair, padding: Pair, pool: Pool) -> Array:
    """dx: (B, H, W, C) for samples of ``shape`` (H, W, C)."""
    dx, share = pool.empty((len(dy), *shape), dy.dtype), pool.empty(dy.shape, dy.dtype)
    np.multiply(dy, 1 / (kernel[0] * kernel[1]), out=share)
    dx.fill(0)
    for _, inner, outer in _places(dx.shape, kernel, stride, padding):
        np.add(dx[inner], share[outer], out=dx[inner])
    return dx


def _places(
    x: Shape, kernel: Pair, stride: Pair, padding: Pair
) -> Iterator[tuple[int, tuple[slice, ...], tuple[slice, ...]]]:
    """For each place in the window: its index, the pixels that stand there, and the windows that have a pixel there."""
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            down, across = (
                _axis(x[1], i, kernel[0], stride[0], padding[0]),
                _axis(x[2], j, kernel[1], stride[1], padding[1]),
            )
            if down and across:
                yield i * kernel[1] + j, (slice(None), down[0], across[0]), (slice(None), down[1], across[1])


def _axis(size: int, place: int, kernel: int, stride: int, padding: int) -> tuple[slice, slice] | None:
    first = max(0, -((place - padding) // stride))
    last = min(extent(size, kernel, stride, padding), (size - 1 + padding - place) // stride + 1)
    if last <= first:
        return None
    start = first * stride + place - padding
    return slice(start, start + (last - 1 - first) * stride + 1, stride), slice(first, last)


def output_shape(x: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Shape:
    """The shape of what is pooled from x: (B, H, W, C)."""
    high, wide = (extent(x[axis + 1], kernel[axis], stride[axis], padding[axis]) for axis in (0, 1))
    return x[0], high, wide, x[3]


def channel_means(x: Array, pool: Pool) -> Array:
    """The mean of each channel: x: (B, H, W, C) to y: (B, C)."""
    y = pool.empty((len(x), x.shape[3]), x.dtype)
    np.mean(x, axis=(1, 2), out=y)
    return y


def channel_means_backward(dy: Array, shape: Shape, pool: Pool) -> Array:
    """dx: (B, H, W, C) for samples of ``shape`` (H, W, C)."""
    dx = pool.empty((len(dy), *shape), dy.dtype)
    np.multiply(dy[:, None, None, :], 1 / (shape[0] * shape[1]), out=dx)
    return dx


def place_type(kernel: Pair) -> np.dtype[np.unsignedinteger]:
    """The smallest type that counts the places of a window."""
    return np.dtype(np.uint8 if kernel[0] * kernel[1] <= 256 else np.uint32)
