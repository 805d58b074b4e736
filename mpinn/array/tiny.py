"""Convolution of images of a few pixels: a product for each pixel of x and of y that a place of the kernel joins.

Columns of such images are mostly padding: for 2x2 pixels and a 3x3 kernel, 20 places of 36.
"""

from collections.abc import Iterator

import numpy as np

from mpinn.array.im2col import Pair, extent
from mpinn.array.pool import Pool
from mpinn.array.typing import Array, Shape

Joined = Iterator[tuple[Pair, Pair, Pair]]


def suits(x: Shape, weight: Shape) -> bool:
    """Whether x: (B, H, W, C) has so few pixels, and the weight so many channels that the products are large."""
    return x[1] * x[2] <= 4 and min(weight[2:]) >= 64 and weight[0] * weight[1] > 1


def conv(x: Array, weight: Array, stride: Pair, padding: Pair, pool: Pool) -> Array:
    """The twin of `im2col.conv`."""
    sizes = [extent(x.shape[axis + 1], weight.shape[axis], stride[axis], padding[axis]) for axis in (0, 1)]
    z = pool.empty((len(x), *sizes, weight.shape[3]), x.dtype)
    part = pool.empty((len(x), weight.shape[3]), x.dtype)
    z.fill(0)
    for (i, j), (k, m), place in _joined(x.shape, z.shape, weight.shape, stride, padding):
        np.matmul(x[:, i, j], weight[place], out=part)
        np.add(z[:, k, m], part, out=z[:, k, m])
    return z


def conv_backward_input(dz: Array, weight: Array, shape: Shape, stride: Pair, padding: Pair, pool: Pool) -> Array:
    """The twin of `im2col.conv_backward_input`."""
    dx = pool.empty((len(dz), *shape), dz.dtype)
    part = pool.empty((len(dz), shape[2]), dz.dtype)
    dx.fill(0)
    for (i, j), (k, m), place in _joined(dx.shape, dz.shape, weight.shape, stride, padding):
        np.matmul(dz[:, k, m], weight[place].T, out=part)
        np.add(dx[:, i, j], part, out=dx[:, i, j])
    return dx


def conv_backward_weight(x: Array, dz: Array, grad: Array, stride: Pair, padding: Pair, pool: Pool) -> None:
    """The twin of `im2col.conv_backward_weight`."""
    part = pool.empty(grad.shape[2:], grad.dtype)
    grad.fill(0)
    for (i, j), (k, m), place in _joined(x.shape, dz.shape, grad.shape, stride, padding):
        np.matmul(x[:, i, j].T, dz[:, k, m], out=part)
        np.add(grad[place], part, out=grad[place])


def _joined(x: Shape, z: Shape, weight: Shape, stride: Pair, padding: Pair) -> Joined:
    """(pixel of x, pixel of z, place of the kernel)."""
    for k, m in np.ndindex(*z[1:3]):
        for a, b in np.ndindex(*weight[:2]):
            i, j = k * stride[0] + a - padding[0], m * stride[1] + b - padding[1]
            if 0 <= i < x[1] and 0 <= j < x[2]:
                yield (i, j), (k, m), (a, b)
