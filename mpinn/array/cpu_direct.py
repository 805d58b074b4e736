"""Convolution in vector registers, without columns: for strides, for few channels, and where precision matters most.

Each sum stands in two registers for six pixels at once, which keeps all sixteen busy; what a kernel of the network
reads and writes is listed beforehand as `Taps`.
"""

from math import prod
from typing import Any

import numpy as np
from numba.extending import register_jitable

from mpinn.array.cpu_vector import BYTES, WIDEST, lanes, load, register, spread_from, store, widest
from mpinn.array.im2col import Pair
from mpinn.array.jit import kernel
from mpinn.array.pool import Pool
from mpinn.array.taps import Taps, backward_taps, forward_taps, output_size, reads_of_rows
from mpinn.array.typing import Array, Shape

ROWS = 6
"""Pixels, or rows of a weight, that a kernel handles at once."""
PIXELS = 128
"""Pixels whose part of the weight's gradient is added up before it joins the total."""


@register_jitable
def _pad(x: Any, start: int, high: int, line: int, frame: Any, channels: int, padded: Any) -> None:
    """Copy ``high`` lines of an image into ``padded``, whose border is zero already."""
    zero, row = register(x, WIDEST), frame[1] * channels
    width = lanes(zero)
    whole = line - line % width
    for i in range(high):
        source, at = start + i * line, (frame[2] + i) * row + frame[3] * channels
        for k in range(0, whole, width):
            store(padded, at + k, load(x, source + k, zero))
        for k in range(whole, line):
            padded[at + k] = x[source + k]


@kernel
def correlate(
    x: Any, samples: int, high: int, wide: int, channels: int, frame: Any, bases: Any, places: Any, pixels: Any,
    reads: Any, lengths: Any, last: Any, runs: Any, weight: Any, outputs: int, padded: Any, y: Any, kind: Any,
) -> None:  # fmt: skip
    """x: (B, H, W, C) to y: (B, ..., O) by a weight (places of the kernel, C, O), as the taps say."""
    zero = register(x, kind)
    width = lanes(zero)
    line, size = wide * channels, y.size // max(1, samples)
    padded[:] = 0
    for n in range(samples):
        source, origin = x, n * high * line
        if padded.size:
            _pad(x, origin, high, line, frame, channels, padded)
            source, origin = padded, 0
        top = 0
        for g in range(pixels.size - 1):
            for pixel in range(pixels[g], pixels[g + 1], ROWS):
                for o in range(0, outputs, 2 * width):
                    p = min(pixel, pixels[g + 1] - ROWS)
                    a0 = b0 = c0 = d0 = e0 = f0 = a1 = b1 = c1 = d1 = e1 = f1 = zero
                    at, new = top + o, True
                    for r in range(runs[g], runs[g + 1]):
                        from_ = origin + reads[r]
                        x0, x1, x2 = from_ + bases[p], from_ + bases[p + 1], from_ + bases[p + 2]
                        x3, x4, x5 = from_ + bases[p + 3], from_ + bases[p + 4], from_ + bases[p + 5]
                        for k in range(lengths[r]):
                            w0, w1 = load(weight, at, zero), load(weight, at + width, zero)
                            at += outputs
                            v = spread_from(source, x0 + k, zero)
                            a0, a1 = a0 + v * w0, a1 + v * w1
                            v = spread_from(source, x1 + k, zero)
                            b0, b1 = b0 + v * w0, b1 + v * w1
                            v = spread_from(source, x2 + k, zero)
                            c0, c1 = c0 + v * w0, c1 + v * w1
                            v = spread_from(source, x3 + k, zero)
                            d0, d1 = d0 + v * w0, d1 + v * w1
                            v = spread_from(source, x4 + k, zero)
                            e0, e1 = e0 + v * w0, e1 + v * w1
                            v = spread_from(source, x5 + k, zero)
                            f0, f1 = f0 + v * w0, f1 + v * w1
                        if last[r]:
                            m = n * size + o
                            _join(y, m + places[p], a0, a1, new)
                            _join(y, m + places[p + 1], b0, b1, new)
                            _join(y, m + places[p + 2], c0, c1, new)
                            _join(y, m + places[p + 3], d0, d1, new)
                            _join(y, m + places[p + 4], e0, e1, new)
                            _join(y, m + places[p + 5], f0, f1, new)
                            a0 = b0 = c0 = d0 = e0 = f0 = a1 = b1 = c1 = d1 = e1 = f1 = zero
                            new = False
            for r in range(runs[g], runs[g + 1]):
                top += lengths[r] * outputs


@register_jitable
def _join(y: Any, at: int, a0: Any, a1: Any, new: bool) -> None:
    """Store two registers, or add them to what is there."""
    width = lanes(a0)
    if not new:
        a0, a1 = load(y, at, a0) + a0, load(y, at + width, a1) + a1
    store(y, at, a0)
    store(y, at + width, a1)


@kernel
def add_gradient(
    x: Any, samples: int, high: int, wide: int, channels: int, frame: Any, bases: Any, rows: Any, dz: Any,
    outputs: int, padded: Any, grad: Any, kind: Any,
) -> None:  # fmt: skip
    """Add to grad: (rows, O) the gradient by the weight, whose row r meets what lies ``rows[r]`` from a base."""
    zero = register(x, kind)
    width = lanes(zero)
    line = wide * channels
    padded[:] = 0
    for n in range(samples):
        source, origin = x, n * high * line
        if padded.size:
            _pad(x, origin, high, line, frame, channels, padded)
            source, origin = padded, 0
        for first in range(0, bases.size, PIXELS):
            last = min(first + PIXELS, bases.size)
            for o in range(0, outputs, 2 * width):
                for r in range(0, rows.size, ROWS):
                    a0 = b0 = c0 = d0 = e0 = f0 = a1 = b1 = c1 = d1 = e1 = f1 = zero
                    x0, x1, x2 = origin + rows[r], origin + rows[r + 1], origin + rows[r + 2]
                    x3, x4, x5 = origin + rows[r + 3], origin + rows[r + 4], origin + rows[r + 5]
                    at = (n * bases.size + first) * outputs + o
                    for p in range(first, last):
                        k = bases[p]
                        w0, w1 = load(dz, at, zero), load(dz, at + width, zero)
                        at += outputs
                        v = spread_from(source, x0 + k, zero)
                        a0, a1 = a0 + v * w0, a1 + v * w1
                        v = spread_from(source, x1 + k, zero)
                        b0, b1 = b0 + v * w0, b1 + v * w1
                        v = spread_from(source, x2 + k, zero)
                        c0, c1 = c0 + v * w0, c1 + v * w1
                        v = spread_from(source, x3 + k, zero)
                        d0, d1 = d0 + v * w0, d1 + v * w1
                        v = spread_from(source, x4 + k, zero)
                        e0, e1 = e0 + v * w0, e1 + v * w1
                        v = spread_from(source, x5 + k, zero)
                        f0, f1 = f0 + v * w0, f1 + v * w1
                    into = r * outputs + o
                    _join(grad, into, a0, a1, False)
                    _join(grad, into + outputs, b0, b1, False)
                    _join(grad, into + 2 * outputs, c0, c1, False)
                    _join(grad, into + 3 * outputs, d0, d1, False)
                    _join(grad, into + 4 * outputs, e0, e1, False)
                    _join(grad, into + 5 * outputs, f0, f1, False)


def suits(x: Array, weight: Shape, stride: Pair, padding: Pair) -> bool:
    """Whether the numbers of a pixel of the output fill registers and its pixels a block."""
    high, wide = output_size(x.shape[1:], weight, stride, padding)
    return x.flags.c_contiguous and weight[3] % (2 * BYTES // x.itemsize) == 0 and high * wide >= ROWS


def suits_backward(dz: Array, shape: Shape, weight: Shape, stride: Pair) -> bool:
    """The same for the gradient by the input."""
    fewest = (shape[0] // stride[0]) * (shape[1] // stride[1])
    return dz.flags.c_contiguous and weight[2] % (2 * BYTES // dz.itemsize) == 0 and fewest >= ROWS


def conv(x: Array, weight: Array, stride: Pair, padding: Pair, pool: Pool) -> Array:
    """The twin of `im2col.conv`."""
    size = output_size(x.shape[1:], weight.shape, stride, padding)
    y = pool.empty((len(x), *size, weight.shape[3]), x.dtype)
    _correlate(x, forward_taps(x.shape[1:], weight.shape, stride, padding), weight, y, pool)
    return y


def conv_backward_input(dz: Array, weight: Array, shape: Shape, stride: Pair, padding: Pair, pool: Pool) -> Array:
    """The twin of `im2col.conv_backward_input`."""
    dx = pool.empty((len(dz), *shape), dz.dtype)
    taps = backward_taps(dz.shape[1:], shape, weight.shape, stride, padding)
    if len(taps.places) < shape[0] * shape[1]:
        dx.fill(0)
    places = prod(weight.shape[:2])
    turned = pool.empty((places, weight.shape[3], weight.shape[2]), weight.dtype)
    flat = weight.reshape(places, *weight.shape[2:])
    for row, place in enumerate(taps.order):
        np.copyto(turned[row], flat[place].T)
    _correlate(dz, taps, turned, dx, pool)
    return dx


def conv_backward_weight(x: Array, dz: Array, grad: Array, stride: Pair, padding: Pair, pool: Pool) -> None:
    """The twin of `im2col.conv_backward_weight`."""
    taps, rows, outputs = forward_taps(x.shape[1:], grad.shape, stride, padding), prod(grad.shape[:3]), grad.shape[3]
    read = reads_of_rows(taps, ROWS)
    total = pool.empty((len(read), outputs), grad.dtype)
    total.fill(0)
    add_gradient(
        x.reshape(-1), len(x), *x.shape[1:], taps.frame, taps.bases, read, dz.reshape(-1), outputs,
        _room(x, taps, pool), total.reshape(-1), widest(outputs, x.itemsize, 2),
    )  # fmt: skip
    np.copyto(grad, total[:rows].reshape(grad.shape))


def _correlate(x: Array, taps: Taps, weight: Array, y: Array, pool: Pool) -> None:
    correlate(
        x.reshape(-1), len(x), *x.shape[1:], *taps[:-1], weight.reshape(-1), y.shape[3], _room(x, taps, pool),
        y.reshape(-1), widest(y.shape[3], x.itemsize, 2),
    )  # fmt: skip


def _room(x: Array, taps: Taps, pool: Pool) -> Array:
    """Room for a padded sample, or nothing where none is needed."""
    rows, columns = taps.frame[:2]
    size = 0 if (rows, columns) == x.shape[1:3] else rows * columns * x.shape[3]
    return pool.empty((size,), x.dtype)
