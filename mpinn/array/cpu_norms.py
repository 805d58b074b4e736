"""Batch norm compiled, for channels that fill registers: one pass for the sums and one for the result."""

from typing import Any

import numpy as np
from numba.extending import register_jitable

from mpinn.array import norms as plain
from mpinn.array import sums as plain_sums
from mpinn.array.cpu_vector import BYTES, lanes, load, rectified, register, spread, store, where_positive, widest
from mpinn.array.jit import kernel
from mpinn.array.pool import Pool
from mpinn.array.typing import Array

ROWS = 64
"""Rows that are added up in the precision of the array before they join the total in float64."""


@register_jitable
def _add_up(part: Any, total: Any) -> None:
    for c in range(part.size):
        total[c] += np.float64(part[c])


@register_jitable
def _add(array: Any, c: int, value: Any) -> None:
    store(array, c, load(array, c, value) + value)


@register_jitable
def _rows(x: Any, at: int, channels: int, like: Any) -> Any:
    """A register's columns of four rows."""
    return (
        load(x, at, like),
        load(x, at + channels, like),
        load(x, at + 2 * channels, like),
        load(x, at + 3 * channels, like),
    )


@register_jitable
def _sums(x: Any, top: int, stop: int, sums: Any, like: Any) -> None:
    """The sums of the columns over the rows from ``top`` to ``stop``: four rows at a time, in the order of memory."""
    width, channels = lanes(like), sums.size
    sums[:] = 0
    fours = stop - (stop - top) % 4
    for r in range(top, fours, 4):
        for c in range(0, channels, width):
            x0, x1, x2, x3 = _rows(x, r * channels + c, channels, like)
            _add(sums, c, (x0 + x1) + (x2 + x3))
    for r in range(fours, stop):
        for c in range(0, channels, width):
            _add(sums, c, load(x, r * channels + c, like))


@register_jitable
def _squares(x: Any, top: int, stop: int, centre: Any, sums: Any, squares: Any, like: Any) -> None:
    """The sums of x - centre, and of their squares."""
    width, channels = lanes(like), sums.size
    sums[:] = 0
    squares[:] = 0
    fours = stop - (stop - top) % 4
    for r in range(top, fours, 4):
        for c in range(0, channels, width):
            middle = load(centre, c, like)
            x0, x1, x2, x3 = _rows(x, r * channels + c, channels, like)
            x0, x1, x2, x3 = x0 - middle, x1 - middle, x2 - middle, x3 - middle
            _add(sums, c, (x0 + x1) + (x2 + x3))
            _add(squares, c, (x0 * x0 + x1 * x1) + (x2 * x2 + x3 * x3))
    for r in range(fours, stop):
        for c in range(0, channels, width):
            x0 = load(x, r * channels + c, like) - load(centre, c, like)
            _add(sums, c, x0)
            _add(squares, c, x0 * x0)


@kernel
def moments(x: Any, rows: int, mean: Any, variance: Any, kind: Any) -> None:
    """Mean and variance, both float64 (C,), of the columns of x: (rows, C).

    Each block is centred by its own mean while it is in the cache, and joins the others by the formula of Chan, Golub
    and LeVeque (Updating formulae and a pairwise algorithm for computing sample variances, 1979).
    """
    like, channels = register(x, kind), mean.size
    width = lanes(like)
    sums, squares = np.empty(channels, x.dtype), np.empty(channels, x.dtype)
    centre = np.empty(channels, x.dtype)
    mean[:] = 0
    variance[:] = 0
    for top in range(0, rows, ROWS):
        stop = min(top + ROWS, rows)
        _sums(x, top, stop, sums, like)
        for c in range(0, channels, width):
            store(centre, c, load(sums, c, like) * spread(like, 1 / (stop - top)))
        _squares(x, top, stop, centre, sums, squares, like)
        share = (stop - top) / stop
        for c in range(channels):
            drift = np.float64(sums[c]) / (stop - top)
            away = np.float64(centre[c]) + drift - mean[c]
            mean[c] += away * share
            variance[c] += squares[c] - drift * drift * (stop - top) + away * away * share * top
    if rows:
        variance /= rows


@kernel
def normalise(
    x: Any, rows: int, mean: Any, inverse: Any, scale: Any, shift: Any, rectify: bool, y: Any, kind: Any
) -> None:
    """y = (x - mean) * inverse * scale + shift, and zero where that is negative if ``rectify``."""
    like, channels = register(x, kind), mean.size
    width = lanes(like)
    factor = np.empty(channels, x.dtype)
    for c in range(channels):
        factor[c] = inverse[c] * scale[c]
    for r in range(0, rows * channels, channels):
        for c in range(0, channels, width):
            value = (load(x, r + c, like) - load(mean, c, like)) * load(factor, c, like) + load(shift, c, like)
            store(y, r + c, rectified(value) if rectify else value)


@kernel
def sums_of_gradient(
    x: Any, y: Any, dy: Any, rows: int, mean: Any, rectified_: bool, products: Any, sums: Any, kind: Any
) -> None:
    """The sums of dy (x - mean) and of dy over the rows, where y is positive if ``rectified_``; float64 (C,)."""
    like, channels = register(x, kind), mean.size
    width = lanes(like)
    part, other = np.empty(channels, x.dtype), np.empty(channels, x.dtype)
    products[:] = 0
    sums[:] = 0
    for top in range(0, rows, ROWS):
        stop = min(top + ROWS, rows)
        fours = stop - (stop - top) % 4
        part[:] = 0
        other[:] = 0
        for r in range(top, fours, 4):
            for c in range(0, channels, width):
                at, middle = r * channels + c, load(mean, c, like)
                d0, d1, d2, d3 = _rows(dy, at, channels, like)
                if rectified_:
                    y0, y1, y2, y3 = _rows(y, at, channels, like)
                    d0, d1 = where_positive(y0, d0), where_positive(y1, d1)
                    d2, d3 = where_positive(y2, d2), where_positive(y3, d3)
                _add(other, c, (d0 + d1) + (d2 + d3))
                x0, x1, x2, x3 = _rows(x, at, channels, like)
                first, second = d0 * (x0 - middle) + d1 * (x1 - middle), d2 * (x2 - middle) + d3 * (x3 - middle)
                _add(part, c, first + second)
        for r in range(fours, stop):
            for c in range(0, channels, width):
                at = r * channels + c
                d0 = load(dy, at, like)
                if rectified_:
                    d0 = where_positive(load(y, at, like), d0)
                _add(other, c, d0)
                _add(part, c, d0 * (load(x, at, like) - load(mean, c, like)))
        _add_up(part, products)
        _add_up(other, sums)


@kernel
def gradient(
    x: Any, y: Any, dy: Any, rows: int, mean: Any, rectified_: bool, factor: Any, slope: Any, offset: Any, dx: Any,
    kind: Any,
) -> None:  # fmt: skip
    """dx = factor dy + slope (x - mean) + offset, dy being zero where y is not positive if ``rectified_``."""
    like, channels = register(x, kind), mean.size
    width = lanes(like)
    for r in range(0, rows * channels, channels):
        for c in range(0, channels, width):
            value = load(dy, r + c, like)
            if rectified_:
                value = where_positive(load(y, r + c, like), value)
            centred = load(x, r + c, like) - load(mean, c, like)
            store(dx, r + c, load(factor, c, like) * value + (load(slope, c, like) * centred + load(offset, c, like)))


def column_moments(x: Array, pool: Pool) -> tuple[Array, Array]:
    """The twin of `sums.column_moments`."""
    if not _fills_registers(x):
        return plain_sums.column_moments(x, pool)
    mean, variance = np.empty((2, x.shape[-1]))
    moments(x.reshape(-1), x.size // x.shape[-1], mean, variance, _kind(x))
    return mean, variance


def batch_norm(
    x: Array, mean: Array, inverse: Array, scale: Array, shift: Array, activation: str, pool: Pool
) -> tuple[Array, Array]:
    """The twin of `norms.batch_norm`: one pass."""
    if not _fills_registers(x) or activation not in ("identity", "relu"):
        return plain.batch_norm(x, mean, inverse, scale, shift, activation, pool)
    y = pool.empty(x.shape, x.dtype)
    rows = x.size // x.shape[-1]
    normalise(x.reshape(-1), rows, mean, inverse, scale, shift, activation == "relu", y.reshape(-1), _kind(x))
    return y, y


def batch_norm_backward(
    x: Array, mean: Array, inverse: Array, scale: Array, activation: str, kept: Array | None, dy: Array,
    of_batch: bool, pool: Pool,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The twin of `norms.batch_norm_backward`: two passes."""
    if not _fills_registers(x) or activation not in ("identity", "relu"):
        return plain.batch_norm_backward(x, mean, inverse, scale, activation, kept, dy, of_batch, pool)
    rows = x.size // x.shape[-1]
    flat, flat_dy = x.reshape(-1), dy.reshape(-1)
    flat_y = flat if kept is None else kept.reshape(-1)
    rectified_, kind = activation == "relu", _kind(x)
    dscale, dshift = np.empty((2, x.shape[-1]))
    sums_of_gradient(flat, flat_y, flat_dy, rows, mean, rectified_, dscale, dshift, kind)
    dscale *= inverse
    factor = scale * inverse
    slope, offset = np.zeros((2, x.shape[-1]), x.dtype)
    if of_batch:
        slope[:] = factor * inverse * dscale / -max(1, rows)
        offset[:] = factor * dshift / -max(1, rows)
    dx = pool.empty(x.shape, x.dtype)
    gradient(flat, flat_y, flat_dy, rows, mean, rectified_, factor, slope, offset, dx.reshape(-1), kind)
    return dx, dscale, dshift


def _fills_registers(x: Array) -> bool:
    return x.flags.c_contiguous and x.shape[-1] % (BYTES // x.itemsize) == 0


def _kind(x: Array) -> tuple[int, ...]:
    return widest(x.shape[-1], x.itemsize)
