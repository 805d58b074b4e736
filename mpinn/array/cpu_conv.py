"""Convolution by Winograd's algorithm, directly in registers, pixel by pixel for tiny images, or by columns.

The shapes alone decide. Winograd's algorithm rounds four times as much as the direct one. In a backward pass that is
lost among other roundings; in the forward pass it decides which units near zero are on, and the first layers, which
have few channels and many pixels, pass what they round on to all others: there the direct one stands.
"""

from types import ModuleType

import numpy as np

from mpinn.array import cpu_direct as direct
from mpinn.array import im2col as plain
from mpinn.array import tiny
from mpinn.array.cpu_products import ROWS
from mpinn.array.cpu_vector import widest
from mpinn.array.cpu_winograd import (
    POINTS,
    add_gradients,
    convolve,
    gradients_into_points,
    images_from_points,
    images_into_points,
    weight_from_points,
    weight_into_points,
)
from mpinn.array.im2col import Pair
from mpinn.array.pool import Pool
from mpinn.array.typing import Array, Shape

SMALL_CHANNELS = 128
"""Up to so many channels, matrices are multiplied by a kernel of ours, not by BLAS."""
BLOCK_BYTES, BLAS_BYTES = 400_000, 1 << 24
"""Of the transformed tiles of a block, which stay in the cache; for BLAS there are more, so that weights, which do not,
are read less often.
"""
PRECISE_CHANNELS = 16
"""Up to so many input channels, a forward pass is direct though Winograd's algorithm would suit."""
FULL = 0.625
"""Share of the pixels of tiles that must be there, or else there are not fewer products to pay for the transforms."""
DIRECT_WEIGHT = 64 * 64
"""Up to so many numbers at each place of the kernel, sums in registers are as fast as columns and BLAS."""


def conv(x: Array, weight: Array, stride: Pair, padding: Pair, pool: Pool) -> Array:
    """The twin of `im2col.conv`."""
    if not _suits_winograd(x.shape, weight.shape, stride, padding) or weight.shape[2] <= PRECISE_CHANNELS:
        way = direct if _suits_direct(x, weight.shape, stride, padding) else _other(x.shape, weight.shape)
        y: Array = way.conv(x, weight, stride, padding, pool)
        return y
    points = _weight_points(weight, False, pool)
    return _winograd(x, points, _tile(weight.shape), padding, pool)


def conv_backward_input(dz: Array, weight: Array, shape: Shape, stride: Pair, padding: Pair, pool: Pool) -> Array:
    """The twin of `im2col.conv_backward_input`."""
    if not _suits_winograd((len(dz), *shape), weight.shape, stride, padding):
        suits = weight.shape[2] * weight.shape[3] <= 4 * DIRECT_WEIGHT
        suits = suits and direct.suits_backward(dz, shape, weight.shape, stride)
        way = direct if suits else _other((len(dz), *shape), weight.shape)
        dx: Array = way.conv_backward_input(dz, weight, shape, stride, padding, pool)
        return dx
    points = _weight_points(weight, True, pool).transpose(0, 2, 1)
    if max(weight.shape[2:]) <= SMALL_CHANNELS:
        turned = pool.empty(points.shape, points.dtype)
        np.copyto(turned, points)
        points = turned
    reach = len(weight) - 1
    return _winograd(dz, points, _tile(weight.shape), (reach - padding[0], reach - padding[1]), pool)


def conv_backward_weight(x: Array, dz: Array, grad: Array, stride: Pair, padding: Pair, pool: Pool) -> None:
    """The twin of `im2col.conv_backward_weight`."""
    if not _suits_winograd(x.shape, grad.shape, stride, padding):
        way = direct if _suits_direct(x, grad.shape, stride, padding) else _other(x.shape, grad.shape)
        way.conv_backward_weight(x, dz, grad, stride, padding, pool)
        return
    channels, outputs = grad.shape[2:]
    tile = _tile(grad.shape)
    down, across = _tiles(dz.shape, tile)
    total = len(x) * down * across
    small = max(channels, outputs) <= SMALL_CHANNELS
    rows = _rows(channels, outputs, total, x.itemsize, BLOCK_BYTES) if small else min(total, 512)
    points, gradients = pool.empty((POINTS, rows, channels), x.dtype), pool.empty((POINTS, rows, outputs), x.dtype)
    whole = pool.empty((POINTS, channels, outputs), x.dtype)
    pixels, errors, flat = x.reshape(-1), dz.reshape(-1), (points.reshape(-1), gradients.reshape(-1))
    tiles = (tile, padding, down, across)
    if small:
        whole.fill(0)
        place = (whole.reshape(-1), widest(outputs, x.itemsize, 2))
        add_gradients(pixels, *x.shape[1:], *tiles, total, rows, errors, *dz.shape[1:], *flat, *place)
    else:
        part = pool.empty(whole.shape, x.dtype)
        for first in range(0, total, rows):
            count = min(rows, total - first)
            images_into_points(pixels, *x.shape[1:], *tiles, first, count, rows, flat[0])
            gradients_into_points(errors, *dz.shape[1:], tile, down, across, first, count, rows, flat[1])
            np.matmul(points[:, :count].transpose(0, 2, 1), gradients[:, :count], out=part if first else whole)
            if first:
                np.add(whole, part, out=whole)
    weight_from_points(whole.reshape(-1), tile, channels, outputs, grad.reshape(-1))


def _winograd(x: Array, weight: Array, tile: int, padding: Pair, pool: Pool) -> Array:
    """weight: (36, C, O)."""
    channels, outputs = weight.shape[1:]
    z = pool.empty((*_output(x.shape, tile, padding), outputs), x.dtype)
    down, across = _tiles(z.shape, tile)
    total = len(x) * down * across
    small = weight.flags.c_contiguous and max(channels, outputs) <= SMALL_CHANNELS
    rows = _rows(channels, outputs, total, x.itemsize, BLOCK_BYTES if small else BLAS_BYTES)
    points, sums = pool.empty((POINTS, rows, channels), x.dtype), pool.empty((POINTS, rows, outputs), x.dtype)
    pixels, tiles, flat = x.reshape(-1), (tile, padding, down, across), (points.reshape(-1), sums.reshape(-1))
    if small:
        factors = (weight.reshape(-1), outputs)
        place = (z.reshape(-1), widest(outputs, x.itemsize, 2))
        convolve(pixels, *x.shape[1:], *tiles, total, rows, *factors, *flat, *z.shape[1:3], *place)
        return z
    for first in range(0, total, rows):
        count = min(rows, total - first)
        images_into_points(pixels, *x.shape[1:], *tiles, first, count, rows, flat[0])
        np.matmul(points[:, :count], weight, out=sums[:, :count])
        images_from_points(flat[1], rows, *z.shape[1:], tile, down, across, first, count, z.reshape(-1))
    return z


def _weight_points(weight: Array, turned: bool, pool: Pool) -> Array:
    points = pool.empty((POINTS, *weight.shape[2:]), weight.dtype)
    weight_into_points(weight.reshape(-1), _tile(weight.shape), turned, *weight.shape[2:], points.reshape(-1))
    return points


def _suits_winograd(x: Shape, weight: Shape, stride: Pair, padding: Pair) -> bool:
    """A kernel of 3x3 or 5x5 with stride 1, channels that fill registers, and tiles that are mostly full."""
    if weight[:2] not in ((3, 3), (5, 5)) or stride != (1, 1) or weight[2] % 16 or weight[3] % 16 or not x[0]:
        return False
    if max(padding) >= weight[0]:
        return False
    tile = _tile(weight)
    _, high, wide = _output(x, tile, padding)
    down, across = _tiles((x[0], high, wide), tile)
    return high * wide >= FULL * tile**2 * down * across


def _suits_direct(x: Array, weight: Shape, stride: Pair, padding: Pair) -> bool:
    pointwise = weight[:2] == (1, 1) and stride == (1, 1)
    few = weight[2] * weight[3] <= DIRECT_WEIGHT
    return few and not pointwise and direct.suits(x, weight, stride, padding)


def _other(x: Shape, weight: Shape) -> ModuleType:
    return tiny if tiny.suits(x, weight) else plain


def _tile(weight: Shape) -> int:
    """Height and width of the outputs that a tile has of a square kernel (taps, taps, C, O)."""
    return 7 - weight[0]


def _output(x: Shape, tile: int, padding: Pair) -> Shape:
    """(B, OH, OW) of images (B, H, W, C)."""
    return x[0], x[1] + 2 * padding[0] + tile - 6, x[2] + 2 * padding[1] + tile - 6


def _tiles(y: Shape, tile: int) -> Pair:
    """Tiles down and across an output (B, OH, OW, ...)."""
    return -(-y[1] // tile), -(-y[2] // tile)


def _rows(channels: int, outputs: int, total: int, itemsize: int, size: int) -> int:
    """Tiles of a block of about ``size`` bytes, a multiple of `ROWS`."""
    fitting = max(48, size // (POINTS * itemsize * (channels + outputs)))
    return -(-min(total, fitting) // ROWS) * ROWS
