"""Convolution as matrix products: the windows of a block of samples become rows, in a buffer that fits the cache.

Images are (B, H, W, C), the weight is (KH, KW, C, O). One sample too large for the buffer is cut into bands of rows.
"""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from mpinn.array.pool import Pool
from mpinn.array.typing import Array, Shape

COLUMN_BYTES = 1 << 20
"""Size of the buffer of columns, unless the product would become too flat for its speed."""
_LEAST_ROWS = 256

Pair: TypeAlias = tuple[int, int]
"""Something along the height and along the width."""


def extent(size: int, kernel: int, stride: int, padding: int) -> int:
    """How many windows fit along an axis."""
    return (size + 2 * padding - kernel) // stride + 1


def conv(x: Array, weight: Array, stride: Pair, padding: Pair, pool: Pool) -> Array:
    """z: (B, OH, OW, O), the correlation of x with the weight."""
    output = _output(x.shape, weight.shape, stride, padding)
    z = pool.empty(output, x.dtype)
    matrix = weight.reshape(-1, output[3])
    for samples, rows, columns in _columns(x, weight.shape, stride, padding, pool):
        np.matmul(columns, matrix, out=z[samples, rows].reshape(-1, output[3]))
    return z


def conv_backward_weight(x: Array, dz: Array, grad: Array, stride: Pair, padding: Pair, pool: Pool) -> None:
    """Write the gradient by the weight to ``grad``: (KH, KW, C, O)."""
    outputs = dz.shape[3]
    matrix = grad.reshape(-1, outputs)
    matrix.fill(0)
    part = pool.empty(matrix.shape, grad.dtype)
    for samples, rows, columns in _columns(x, grad.shape, stride, padding, pool):
        np.matmul(columns.T, dz[samples, rows].reshape(-1, outputs), out=part)
        np.add(matrix, part, out=matrix)


def conv_backward_input(dz: Array, weight: Array, shape: Shape, stride: Pair, padding: Pair, pool: Pool) -> Array:
    """dx: (B, H, W, C) for samples of ``shape`` (H, W, C)."""
    rest = weight.shape[0] - 1 - padding[0], weight.shape[1] - 1 - padding[1]
    if stride == (1, 1) and min(rest) >= 0:
        # the adjoint is a correlation too, with the kernel turned round: reading windows costs a third of adding them
        turned = pool.empty((*weight.shape[:2], weight.shape[3], weight.shape[2]), weight.dtype)
        np.copyto(turned, weight[::-1, ::-1].transpose(0, 1, 3, 2))
        return conv(dz, turned, stride, rest, pool)
    dx = pool.empty((len(dz), *shape), dz.dtype)
    _scatter(dz, weight, dx, stride, padding, pool)
    return dx


def _scatter(dz: Array, weight: Array, dx: Array, stride: Pair, padding: Pair, pool: Pool) -> None:
    high, wide, outputs = dz.shape[1:]
    matrix = weight.reshape(-1, outputs).T
    step, band = _cut(dz.shape, matrix.shape[1], dz.dtype.itemsize)
    buffer = pool.empty((step * band * wide, matrix.shape[1]), dz.dtype)
    padded = pool.empty((step, *_padded(dx.shape[1:], padding)), dz.dtype)
    for start in range(0, len(dz), step):
        block = dz[start : start + step]
        into = padded[: len(block)]
        into.fill(0)
        for top in range(0, high, band):
            part = block[:, top : top + band]
            columns = buffer[: part.size // outputs]
            np.matmul(part.reshape(-1, outputs), matrix, out=columns)
            windows = columns.reshape(*part.shape[:3], *weight.shape[:3])
            _add_windows(windows, into[:, top * stride[0] :], stride)
        np.copyto(dx[start : start + step], _inside(into, dx.shape[1:], padding))


def _add_windows(columns: Array, into: Array, stride: Pair) -> None:
    high, wide, rows, places = columns.shape[1:5]
    for i in range(rows):
        for j in range(places):
            down = slice(i, i + (high - 1) * stride[0] + 1, stride[0])
            across = slice(j, j + (wide - 1) * stride[1] + 1, stride[1])
            np.add(into[:, down, across], columns[:, :, :, i, j], out=into[:, down, across])


def _columns(x: Array, weight: Shape, stride: Pair, padding: Pair, pool: Pool) -> Iterator[tuple[slice, slice, Array]]:
    """(samples, output rows, their windows as rows of a matrix), block by block; every block has the same memory."""
    if _is_pointwise(weight, stride, padding):
        yield slice(None), slice(None), x.reshape(-1, x.shape[3])
        return
    output = _output(x.shape, weight, stride, padding)
    step, band = _cut(output, weight[0] * weight[1] * weight[2], x.dtype.itemsize)
    buffer = pool.empty((step * band * output[2], *weight[:3]), x.dtype)
    source = x
    if any(padding):
        source = pool.empty((step, *_padded(x.shape[1:], padding)), x.dtype)
        source.fill(0)
    windows = np.lib.stride_tricks.sliding_window_view(source, weight[:2], axis=(1, 2))
    windows = windows[:, :: stride[0], :: stride[1]].transpose(0, 1, 2, 4, 5, 3)
    for start in range(0, len(x), step):
        samples = slice(start, min(start + step, len(x)))
        if any(padding):
            np.copyto(_inside(source, x.shape[1:], padding)[: samples.stop - start], x[samples])
        chosen = windows[: samples.stop - start] if any(padding) else windows[samples]
        for top in range(0, output[1], band):
            part = chosen[:, top : top + band]
            columns = buffer[: part.shape[0] * part.shape[1] * part.shape[2]]
            np.copyto(columns.reshape(part.shape), part)
            yield samples, slice(top, top + band), columns.reshape(len(columns), -1)


def _cut(output: Shape, width: int, itemsize: int) -> Pair:
    """Samples per block and output rows per band for rows of ``width`` elements; bands only where a sample is alone."""
    samples, high, wide = output[:3]
    fitting = max(COLUMN_BYTES // (wide * width * itemsize), -(-_LEAST_ROWS // wide))
    return (min(samples, fitting // high), high) if fitting >= high else (1, fitting)


def _output(x: Shape, weight: Shape, stride: Pair, padding: Pair) -> Shape:
    return (
        x[0],
        extent(x[1], weight[0], stride[0], padding[0]),
        extent(x[2], weight[1], stride[1], padding[1]),
        weight[3],
    )


def _is_pointwise(weight: Shape, stride: Pair, padding: Pair) -> bool:
    return weight[:2] == (1, 1) and stride == (1, 1) and padding == (0, 0)


def _padded(shape: Shape, padding: Pair) -> Shape:
    return shape[0] + 2 * padding[0], shape[1] + 2 * padding[1], shape[2]


def _inside(padded: Array, shape: Shape, padding: Pair) -> Array:
    return padded[:, padding[0] : padding[0] + shape[0], padding[1] : padding[1] + shape[1]]
