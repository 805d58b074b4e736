"""Sums over the rows of a tall matrix: a block is one product with a row of ones, and blocks add up in float64."""

from collections.abc import Iterator

import numpy as np

from mpinn.array.pool import Pool
from mpinn.array.typing import Array

BLOCK = 1 << 14
"""Elements that a pass over a long array handles at once, so that its temporaries stay in the cache."""
_LEAST_ROWS = 64


def column_sums(x: Array) -> Array:
    """Sums of x: (..., C) over all axes but the last, in float64: (C,)."""
    total, rows, ones = _start(x)
    for part in _blocks(rows):
        total += ones[: len(rows[part])] @ rows[part]
    return total


def column_dots(a: Array, b: Array, pool: Pool) -> Array:
    """Sums of a * b, both (..., C), over all axes but the last, in float64: (C,)."""
    total, left, ones = _start(a)
    right = b.reshape(left.shape)
    scratch = pool.empty((len(ones), left.shape[1]), a.dtype)
    for part in _blocks(left):
        product = scratch[: len(left[part])]
        np.multiply(left[part], right[part], out=product)
        total += ones[: len(product)] @ product
    return total


def column_moments(x: Array, pool: Pool) -> tuple[Array, Array]:
    """Mean, in the precision of x, and variance, in float64, of each column of x: (..., C), in two passes."""
    total, rows, ones = _start(x)
    count = max(1, len(rows))
    mean = (column_sums(x) / count).astype(x.dtype)
    scratch = pool.empty((len(ones), rows.shape[1]), x.dtype)
    for part in _blocks(rows):
        centred = scratch[: len(rows[part])]
        np.subtract(rows[part], mean, out=centred)
        np.multiply(centred, centred, out=centred)
        total += ones[: len(centred)] @ centred
    return mean, total / count


def spread(vector: Array, x: Array, pool: Pool) -> Array:
    """The vector (C,) repeated to (W, C) for x: (..., W, C), so that an elementwise loop with x runs over W * C."""
    if x.ndim < 3:
        return vector
    wide = pool.empty(x.shape[-2:], vector.dtype)
    np.copyto(wide, vector)
    return wide


def _start(x: Array) -> tuple[Array, Array, Array]:
    columns = x.shape[-1]
    rows = x.reshape(x.size // columns, columns)
    return np.zeros(columns, np.float64, like=x), rows, np.ones(_step(rows), x.dtype, like=x)


def _step(rows: Array) -> int:
    columns: int = rows.shape[1]
    return max(_LEAST_ROWS, BLOCK // columns)


def _blocks(rows: Array) -> Iterator[slice]:
    step = _step(rows)
    for start in range(0, len(rows), step):
        yield slice(start, start + step)
