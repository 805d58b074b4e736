"""Losses, optimizer steps and sums of vectors on a CUDA device; see `mpinn.array.cuda`."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias, cast

import cupy
import numpy as np

from mpinn.array import ops as plain
from mpinn.array.cuda_kernels import NULL, THREADS, launch, power_of_two, rows_at_once, spread_over
from mpinn.array.cuda_memory import on_device
from mpinn.array.moments import bias_corrected
from mpinn.array.pool import Pool
from mpinn.array.steps import Segments
from mpinn.array.typing import Array

DOUBLE = np.dtype(np.float64)
FEW = 64
"""Blocks that add up one of several spans."""
PARTIAL = 256
"""Blocks that leave a partial sum of a vector."""

Scale: TypeAlias = float | Array
"""What a gradient is multiplied with: a number, or an array with one on the device."""


def cross_entropy(logits: Array, target: Array, smoothing: float, pool: Pool) -> tuple[Array, Array]:
    """The twin of `ops.cross_entropy`; a class that is not there makes the loss NaN."""
    rows, classes = logits.shape
    dy, losses = pool.empty(logits.shape, logits.dtype), pool.empty((rows,), DOUBLE)
    threads = power_of_two(classes, 32, THREADS)
    if rows:
        launch("cross_entropy", logits.dtype, (rows_at_once(rows),), (threads,), logits, target, dy, losses, rows,
               classes, float(smoothing), doubles=threads)  # fmt: skip
    return _total(losses), dy


def squared_error(y: Array, target: Array, pool: Pool) -> tuple[Array, Array]:
    """The twin of `ops.squared_error`."""
    rows, outputs = len(y), y.size // max(1, len(y))
    dy, losses = pool.empty(y.shape, y.dtype), pool.empty((rows,), DOUBLE)
    threads = power_of_two(outputs, 32, THREADS)
    if rows:
        launch("squared_error", y.dtype, (rows_at_once(rows),), (threads,), y, *wanted(target), dy, losses, rows,
               outputs, doubles=threads)  # fmt: skip
    return _total(losses), dy


def correct(y: Array, target: Array) -> Array:
    """The twin of `ops.correct`."""
    rows, outputs = y.shape
    right: Array = cupy.empty(rows, DOUBLE)
    spread_over("right_rows", y.dtype, rows, y, *wanted(target), right, rows, outputs, one=True)
    return _total(right)


def wanted(target: Array) -> tuple[Array | int, Array | int]:
    """Numbers, or else classes."""
    return (NULL, target) if target.ndim == 1 and target.dtype.kind in "iu" else (target, NULL)


def _total(numbers: Array) -> Array:
    """The sum of a vector of float64, of no dimensions."""
    found: Array = cupy.empty((), DOUBLE)
    launch("total", DOUBLE, (1,), (THREADS,), numbers, found, numbers.size, doubles=THREADS)
    return found


class Pieces(NamedTuple):
    """`Segments` on the device."""

    starts: Array
    stops: Array
    decays: Array
    factors: Array


def prepared(segments: Segments) -> Pieces:
    """The twin of `ops.prepared`: segments where kernels can read them."""
    return Pieces(*map(on_device, segments))


def sgd(
    weights: Array,
    grads: Array,
    velocity: Array | None,
    segments: Pieces,
    scale: Scale,
    rate: float,
    momentum: float,
    nesterov: bool,
    pool: Pool,
) -> None:
    """The twin of `ops.sgd` in one pass; ``segments`` are `prepared`."""
    pieces, shorten, factor = len(segments.starts), *_scaled(scale)
    if pieces:
        spread_over(
            "sgd", weights.dtype, weights.size, weights, grads, NULL if velocity is None else velocity, *segments,
            shorten, pieces, weights.size, factor, float(rate), float(momentum), int(nesterov),
        )  # fmt: skip


def adam(
    weights: Array,
    grads: Array,
    first: Array,
    second: Array,
    segments: Pieces,
    scale: Scale,
    rate: float,
    betas: tuple[float, float],
    epsilon: float,
    updates: int,
    decoupled: bool,
    pool: Pool,
) -> None:
    """The twin of `ops.adam` in one pass; ``segments`` are `prepared`."""
    pieces, shorten, factor = len(segments.starts), *_scaled(scale)
    pace, epsilon = bias_corrected(rate, betas, epsilon, updates)
    if pieces:
        spread_over(
            "adam", weights.dtype, weights.size, weights, grads, first, second, *segments, shorten, pieces,
            weights.size, factor, float(rate), float(betas[0]), float(betas[1]), epsilon, pace,
            int(decoupled),
        )  # fmt: skip


def _scaled(scale: Scale) -> tuple[Array | int, float]:
    return (NULL, float(scale)) if isinstance(scale, (int, float)) else (scale, 1.0)


def sum_of_squares(vector: Array) -> Array:
    """The twin of `ops.sum_of_squares`, on the device."""
    return squares_of(vector, [slice(0, vector.size)]).reshape(())


def squares_of(vector: Array, spans: Sequence[slice]) -> Array:
    """The twin of `ops.squares_of`: (N,), on the device."""
    ends = tuple((span.start, span.stop) for span in spans)
    blocks = power_of_two(max((stop - start) // THREADS for start, stop in ends), 1, PARTIAL if len(ends) == 1 else FEW)
    partial, sums = cupy.empty((len(ends), blocks), DOUBLE), cupy.empty(len(ends), DOUBLE)
    table = _table(ends, cupy.cuda.get_device_id())
    launch("squares_partial", vector.dtype, (blocks, len(ends)), (THREADS,), vector, table, partial, doubles=THREADS)
    launch("total", DOUBLE, (len(ends),), (THREADS,), partial, sums, blocks, doubles=THREADS)
    return cast("Array", sums)


@cache
def _table(ends: tuple[tuple[int, int], ...], device: int) -> Array:
    """Where spans start and stop, (N, 2), on the device."""
    return on_device(np.array(ends, np.int64))


def shortened(scale: float, sums: Any, limit: float) -> Scale:
    """The twin of `ops.shortened`: on the device where the sums are there."""
    if not isinstance(sums, cupy.ndarray):
        known: float = plain.shortened(scale, sums, limit)
        return known
    factor: Array = cupy.empty((), DOUBLE)
    launch("shortening", DOUBLE, (1,), (1,), sums, factor, sums.size, scale, float(limit))
    return np.multiply(factor, scale, out=factor)


def all_finite(vector: Array) -> bool:
    """The twin of `ops.all_finite`; waits for the device."""
    if not isinstance(vector, cupy.ndarray):
        return bool(np.isfinite(vector).all())
    flag = cupy.zeros(1, np.int32)
    spread_over("not_finite", vector.dtype, vector.size, vector, flag, vector.size)
    return not flag.get()[0]


def set_words(into: Array, words: Sequence[int]) -> None:
    """Write four words to the device: they travel with the launch, so no host memory has to stay as it is."""
    launch("set_words", DOUBLE, (1,), (1,), into, *(word & 0xFFFFFFFF for word in words))
