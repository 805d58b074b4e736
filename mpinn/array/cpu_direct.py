"""Convolution in vector registers, without columns: for strides, for few channels, and where precision matters most.

Each sum stands in two registers for six pixels at once, which keeps all sixteen busy; what a kernel of the network
reads and writes is listed beforehand as `Taps`.
"""

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

from mpinn.array.cpu_vector import BYTES, lanes, load, spread, spread_from, store
from mpinn.array.im2col import Pair, extent
from mpinn.array.jit import kernel
from mpinn.array.pool import Pool
from mpinn.array.typing import Array, Shape

ROWS = 6
"""Pixels, or rows of a weight, that a kernel handles at once."""
TERMS = 48
"""About so many terms of a sum are added up one after another; fewer in a row lose fewer digits."""
PIXELS = 128
"""Pixels whose part of the weight's gradient is added up before it joins the total."""


class Taps(NamedTuple):
    """Where the sums of one sample are read and written, as places in flat vectors.

    Pixels of the output fall into groups that see the same places of the kernel: one group, or one for each phase of
    the stride in the gradient by the input. Group g has pixels ``pixels[g]`` to ``pixels[g + 1]``; its part of the
    weight, one row for each term of a sum, meets runs ``runs[g]`` to ``runs[g + 1]`` of numbers that lie side by side.
    """

    padded: tuple[int, int, int, int]
    """Rows and columns of the padded sample, and those above and left of the image."""
    bases: Array
    """Of each pixel of the output: its first pixel of the padded sample."""
    places: Array
    """And where it is written."""
    pixels: Array
    reads: Array
    """Of each run: how far from its base a pixel reads."""
    lengths: Array
    last: Array
    """And whether what was added up so far joins the total after it."""
    runs: Array
    order: Array
    """The places of the kernel in the order of the weight's rows."""


@register_jitable
def _pad(x: Any, start: int, high: int, line: int, above: int, left: int, rows: int, row: int, padded: Any) -> None:
    """Copy ``high`` lines of an image into an image of ``rows`` lines of zeros."""
    padded[: above * row] = 0
    padded[(above + high) * row : rows * row] = 0
    for i in range(high):
        at = (above + i) * row
        padded[at : at + left] = 0
        for k in range(line):
            padded[at + left + k] = x[start + i * line + k]
        padded[at + left + line : at + row] = 0


@kernel
def correlate(
    x: Any, samples: int, high: int, wide: int, channels: int, padded_: Any, bases: Any, places: Any, pixels: Any,
    reads: Any, lengths: Any, last: Any, runs: Any, weight: Any, outputs: int, padded: Any, y: Any,
) -> None:  # fmt: skip
    """x: (B, H, W, C) to y: (B, ..., O) by a weight (places of the kernel, C, O), as the taps say."""
    width, zero = lanes(x), spread(x.dtype.type(0))
    line, size = wide * channels, y.size // max(1, samples)
    for n in range(samples):
        source, origin = x, n * high * line
        if padded.size:
            _pad(x, origin, high, line, padded_[2], padded_[3] * channels, padded_[0], padded_[1] * channels, padded)
            source, origin = padded, 0
        top = 0
        for g in range(pixels.size - 1):
            for o in range(0, outputs, 2 * width):
                for pixel in range(pixels[g], pixels[g + 1], ROWS):
                    p = min(pixel, pixels[g + 1] - ROWS)
                    a0 = b0 = c0 = d0 = e0 = f0 = a1 = b1 = c1 = d1 = e1 = f1 = zero
                    at, new = top + o, True
                    for r in range(runs[g], runs[g + 1]):
                        from_ = origin + reads[r]
                        x0, x1, x2 = from_ + bases[p], from_ + bases[p + 1], from_ + bases[p + 2]
                        x3, x4, x5 = from_ + bases[p + 3], from_ + bases[p + 4], from_ + bases[p + 5]
                        for k in range(lengths[r]):
                            w0, w1 = load(weight, at), load(weight, at + width)
                            at += outputs
                            v = spread_from(source, x0 + k)
                            a0, a1 = a0 + v * w0, a1 + v * w1
                            v = spread_from(source, x1 + k)
                            b0, b1 = b0 + v * w0, b1 + v * w1
                            v = spread_from(source, x2 + k)
                            c0, c1 = c0 + v * w0, c1 + v * w1
                            v = spread_from(source, x3 + k)
                            d0, d1 = d0 + v * w0, d1 + v * w1
                            v = spread_from(source, x4 + k)
                            e0, e1 = e0 + v * w0, e1 + v * w1
                            v = spread_from(source, x5 + k)
                            f0, f1 = f0 + v * w0, f1 + v * w1
                        if last[r]:
                            m = n * size + o
                            _join(y, m + places[p], width, a0, a1, new)
                            _join(y, m + places[p + 1], width, b0, b1, new)
                            _join(y, m + places[p + 2], width, c0, c1, new)
                            _join(y, m + places[p + 3], width, d0, d1, new)
                            _join(y, m + places[p + 4], width, e0, e1, new)
                            _join(y, m + places[p + 5], width, f0, f1, new)
                            a0 = b0 = c0 = d0 = e0 = f0 = a1 = b1 = c1 = d1 = e1 = f1 = zero
                            new = False
            for r in range(runs[g], runs[g + 1]):
                top += lengths[r] * outputs


@register_jitable
def _join(y: Any, at: int, width: int, a0: Any, a1: Any, new: bool) -> None:
    """Store two registers, or add them to what is there."""
    if not new:
        a0, a1 = load(y, at) + a0, load(y, at + width) + a1
    store(y, at, a0)
    store(y, at + width, a1)


@kernel
def add_gradient(
    x: Any, samples: int, high: int, wide: int, channels: int, margins: Any, bases: Any, rows: Any, dz: Any,
    outputs: int, padded: Any, grad: Any,
) -> None:  # fmt: skip
    """Add the gradient by the weight up in grad: (rows, O); row r of the weight meets what lies ``rows[r]`` from a base."""
    width, zero = lanes(x), spread(x.dtype.type(0))
    line = wide * channels
    for n in range(samples):
        source, origin = x, n * high * line
        if padded.size:
            _pad(x, origin, high, line, margins[2], margins[3] * channels, margins[0], margins[1] * channels, padded)
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
                        w0, w1 = load(dz, at), load(dz, at + width)
                        at += outputs
                        v = spread_from(source, x0 + k)
                        a0, a1 = a0 + v * w0, a1 + v * w1
                        v = spread_from(source, x1 + k)
                        b0, b1 = b0 + v * w0, b1 + v * w1
                        v = spread_from(source, x2 + k)
                        c0, c1 = c0 + v * w0, c1 + v * w1
                        v = spread_from(source, x3 + k)
                        d0, d1 = d0 + v * w0, d1 + v * w1
                        v = spread_from(source, x4 + k)
                        e0, e1 = e0 + v * w0, e1 + v * w1
                        v = spread_from(source, x5 + k)
                        f0, f1 = f0 + v * w0, f1 + v * w1
                    into = r * outputs + o
                    _join(grad, into, width, a0, a1, False)
                    _join(grad, into + outputs, width, b0, b1, False)
                    _join(grad, into + 2 * outputs, width, c0, c1, False)
                    _join(grad, into + 3 * outputs, width, d0, d1, False)
                    _join(grad, into + 4 * outputs, width, e0, e1, False)
                    _join(grad, into + 5 * outputs, width, f0, f1, False)


def suits(x: Array, weight: Shape, stride: Pair, padding: Pair) -> bool:
    """Whether the numbers of a pixel of the output fill registers and its pixels a block."""
    high, wide = _output(x.shape[1:], weight, stride, padding)
    return x.flags.c_contiguous and weight[3] % (2 * BYTES // x.itemsize) == 0 and high * wide >= ROWS


def suits_backward(dz: Array, shape: Shape, weight: Shape, stride: Pair) -> bool:
    """The same for the gradient by the input."""
    fewest = (shape[0] // stride[0]) * (shape[1] // stride[1])
    return dz.flags.c_contiguous and weight[2] % (2 * BYTES // dz.itemsize) == 0 and fewest >= ROWS


def conv(x: Array, weight: Array, stride: Pair, padding: Pair, pool: Pool) -> Array:
    """The twin of `im2col.conv`."""
    size = _output(x.shape[1:], weight.shape, stride, padding)
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
    read = _reads_of_rows(taps, rows)
    total = pool.empty((len(read), outputs), grad.dtype)
    total.fill(0)
    add_gradient(
        x.reshape(-1), len(x), *x.shape[1:], taps.padded, taps.bases, read, dz.reshape(-1), outputs,
        _room(x, taps, pool), total.reshape(-1),
    )  # fmt: skip
    np.copyto(grad, total[:rows].reshape(grad.shape))


def _correlate(x: Array, taps: Taps, weight: Array, y: Array, pool: Pool) -> None:
    correlate(
        x.reshape(-1), len(x), *x.shape[1:], *taps[:-1], weight.reshape(-1), y.shape[3], _room(x, taps, pool),
        y.reshape(-1),
    )  # fmt: skip


def _reads_of_rows(taps: Taps, rows: int) -> Array:
    """How far from its base a pixel reads for each row of the weight, and as often again the last as fills blocks."""
    reads = np.concatenate([start + np.arange(count) for start, count in zip(taps.reads, taps.lengths, strict=True)])
    return np.concatenate([reads, np.repeat(reads[-1:], -rows % ROWS)])


def _room(x: Array, taps: Taps, pool: Pool) -> Array:
    """Room for a padded sample, or nothing where none is needed."""
    rows, columns = taps.padded[:2]
    size = 0 if (rows, columns) == x.shape[1:3] else rows * columns * x.shape[3]
    return pool.empty((size,), x.dtype)


@lru_cache(maxsize=256)
def forward_taps(shape: Shape, weight: Shape, stride: Pair, padding: Pair) -> Taps:
    """The taps of a convolution of samples of ``shape`` (H, W, C)."""
    size = _output(shape, weight, stride, padding)
    rows, columns = (
        max(shape[axis] + padding[axis], (size[axis] - 1) * stride[axis] + weight[axis]) for axis in (0, 1)
    )
    down, across = (np.arange(size[axis]) * stride[axis] for axis in (0, 1))
    group = _Group(
        _grid(down, across, columns) * shape[2],
        np.arange(size[0] * size[1]) * weight[3],
        np.arange(weight[0]) * columns * shape[2],
        weight[1] * shape[2],
        np.arange(weight[0] * weight[1]),
    )
    return _taps((rows, columns, *padding), [group])


@lru_cache(maxsize=256)
def backward_taps(dz: Shape, shape: Shape, weight: Shape, stride: Pair, padding: Pair) -> Taps:
    """Those of its gradient by the input, from samples dz of shape (OH, OW, O)."""
    phases = [_phases(shape[axis], weight[axis], stride[axis], padding[axis]) for axis in (0, 1)]
    least = [min([0, *(int(phase.first) for phase in axis)]) for axis in phases]
    most = [
        max([dz[axis], *(int(phase.first) + len(phase.places) - 1 + len(phase.pixels) for phase in phases[axis])])
        for axis in (0, 1)
    ]
    rows, columns = most[0] - least[0], most[1] - least[1]
    groups = [
        _Group(
            _grid(np.arange(len(i.pixels)) + i.first - least[0], np.arange(len(j.pixels)) + j.first - least[1], columns) * dz[2],
            _grid(i.pixels, j.pixels, shape[1]) * shape[2],
            np.arange(len(i.places)) * columns * dz[2],
            len(j.places) * dz[2],
            _grid(i.places, j.places, weight[1]),
        )
        for i in phases[0]
        for j in phases[1]
    ]
    return _taps((rows, columns, -least[0], -least[1]), groups)


class _Phase(NamedTuple):
    """Along an axis: pixels of x, the places of the kernel that they see, and where in dz the first one meets pixel 0."""

    pixels: Array
    places: Array
    first: int


def _phases(size: int, kernel: int, stride: int, padding: int) -> list[_Phase]:
    """Those that see any place. The further a place lies in the kernel, the nearer is the pixel of dz that it meets."""
    found = []
    for phase in range(min(stride, size)):
        places = np.arange((phase + padding) % stride, kernel, stride)[::-1]
        if len(places):
            found.append(_Phase(np.arange(phase, size, stride), places, int(phase + padding - places[0]) // stride))
    return found


class _Group(NamedTuple):
    """See `Taps`; runs, all of one length, are not yet cut."""

    bases: Array
    places: Array
    reads: Array
    length: int
    order: Array


def _taps(padded: tuple[int, int, int, int], groups: list[_Group]) -> Taps:
    bases, places, order = (np.concatenate([group[k] for group in groups]) for k in (0, 1, 4))
    runs = [_cut(group.reads, group.length) for group in groups]
    reads, lengths, last = (np.concatenate([run[k] for run in runs]) for k in range(3))
    pixels = np.cumsum([0, *(len(group.bases) for group in groups)])
    return Taps(padded, bases, places, pixels, reads, lengths, last, np.cumsum([0, *(len(run[0]) for run in runs)]), order)


def _cut(reads: Array, length: int) -> tuple[Array, Array, Array]:
    """Runs of at most `TERMS`, and where sums of about so many end."""
    starts = np.arange(0, length, TERMS)
    lengths = np.tile(np.minimum(TERMS, length - starts), len(reads))
    terms = np.cumsum(lengths)
    last = np.append(terms[:-1] // TERMS < terms[1:] // TERMS, True)
    return _grid(reads, starts, 1), lengths, last


def _grid(down: Array, across: Array, columns: int) -> Array:
    return (down[:, None] * columns + across).reshape(-1)


def _output(shape: Shape, weight: Shape, stride: Pair, padding: Pair) -> Pair:
    high, wide = (extent(shape[axis], weight[axis], stride[axis], padding[axis]) for axis in (0, 1))
    return high, wide
