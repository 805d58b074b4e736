"""Sums over the rows of a tall matrix: groups of rows times a row of ones, added up in float64.

A matrix product reads memory at full speed, where a sum along the first axis handles one short row at a time.
"""

from collections.abc import Iterator

import numpy as np

from mpinn.array.pool import Pool
from mpinn.array.typing import Array

BLOCK = 1 << 14
"""Elements that a pass over a long array handles at once, so that its temporaries stay in the cache."""
_GROUP = 256
"""Rows that are summed in the precision of the array; more would cost digits."""


def column_sums(x: Array) -> Array:
    """Sums of x: (..., C) over all axes but the last, in float64: (C,)."""
    rows = _rows(x)
    total = np.zeros(rows.shape[1], np.float64, like=x)
    for part in _blocks(rows):
        total += _sums(rows[part])
    return total


def column_dots(a: Array, b: Array, pool: Pool) -> Array:
    """Sums of a * b, both (..., C), over all axes but the last, in float64: (C,)."""
    left, right = _rows(a), _rows(b)
    total = np.zeros(left.shape[1], np.float64, like=a)
    scratch = _scratch(left, pool)
    for part in _blocks(left):
        product = scratch[: len(left[part])]
        np.multiply(left[part], right[part], out=product)
        total += _sums(product)
    return total


def column_moments(x: Array, pool: Pool) -> tuple[Array, Array]:
    """Mean and variance of each column of x: (..., C), in float64: (C,).

    The second pass centres x by the mean of the first one, and corrects what rounding left of it (Chan, Golub and
    LeVeque, Algorithms for computing the sample variance, 1983).
    """
    rows = _rows(x)
    count = max(1, len(rows))
    mean = (column_sums(x) / count).astype(x.dtype)
    drift, squares = np.zeros((2, rows.shape[1]), np.float64, like=x)
    scratch = _scratch(rows, pool)
    for part in _blocks(rows):
        centred = scratch[: len(rows[part])]
        np.subtract(rows[part], mean, out=centred)
        drift += _sums(centred)
        np.multiply(centred, centred, out=centred)
        squares += _sums(centred)
    drift /= count
    return mean + drift, squares / count - drift * drift


def spread(vector: Array, x: Array, pool: Pool) -> Array:
    """The vector (C,) repeated to (W, C) for x: (..., W, C), so that an elementwise loop with x runs over W * C."""
    if x.ndim < 3:
        return vector
    wide = pool.empty(x.shape[-2:], vector.dtype)
    np.copyto(wide, vector)
    return wide


def _sums(rows: Array) -> Array:
    whole = len(rows) // _GROUP * _GROUP
    ones = np.ones(_GROUP, rows.dtype, like=rows)
    rest: Array = (ones[: len(rows) - whole] @ rows[whole:]).astype(np.float64)
    if not whole:
        return rest
    groups = ones @ rows[:whole].reshape(-1, _GROUP, rows.shape[1])
    np.add(rest, groups.sum(axis=0, dtype=np.float64), out=rest)
    return rest


def _rows(x: Array) -> Array:
    return x.reshape(x.size // x.shape[-1], x.shape[-1])


def _step(rows: Array) -> int:
    """Rows per block: whole groups, of a few BLOCKs together."""
    columns: int = rows.shape[1]
    return max(1, 4 * BLOCK // (columns * _GROUP)) * _GROUP


def _scratch(rows: Array, pool: Pool) -> Array:
    step, columns = min(_step(rows), max(1, len(rows))), rows.shape[1]
    return pool.empty((max(BLOCK, step * columns),), rows.dtype)[: step * columns].reshape(step, columns)


def _blocks(rows: Array) -> Iterator[slice]:
    step = _step(rows)
    for start in range(0, len(rows), step):
        yield slice(start, start + step)
