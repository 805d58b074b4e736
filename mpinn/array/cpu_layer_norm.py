"""Layer norm compiled: each row is read from memory once, and all its sums are made while it is in the cache."""

from typing import Any

import numpy as np

from mpinn.array.jit import sums
from mpinn.array.pool import Pool
from mpinn.array.typing import Array

ROWS = 64
"""Rows that are added up in the precision of the array before they join the total in float64."""


@sums
def normalise_rows(x: Any, scale: Any, shift: Any, epsilon: float, y: Any, mean: Any, inverse: Any) -> None:
    """x and y: (N, F); scale and shift: (F,); mean and inverse deviation: (N,)."""
    number, width = x.dtype.type, x.shape[1]
    share = number(1) / number(width)
    for r in range(x.shape[0]):
        total = number(0)
        for c in range(width):
            total += x[r, c]
        middle, square = total * share, number(0)
        for c in range(width):
            square += (x[r, c] - middle) * (x[r, c] - middle)
        factor = number(1) / np.sqrt(square * share + number(epsilon))
        mean[r], inverse[r] = middle, factor
        for c in range(width):
            y[r, c] = (x[r, c] - middle) * factor * scale[c] + shift[c]


@sums
def gradient_of_rows(
    x: Any, mean: Any, inverse: Any, scale: Any, dy: Any, dx: Any, part: Any, dscale: Any, dshift: Any
) -> None:
    """The formula of `norms.layer_norm_backward`, row by row; part: (2, F) is room for sums over a few rows."""
    number, width = x.dtype.type, x.shape[1]
    share = number(1) / number(width)
    for top in range(0, x.shape[0], ROWS):
        part[:] = 0
        for r in range(top, min(top + ROWS, x.shape[0])):
            middle, factor = mean[r], inverse[r]
            total = product = number(0)
            for c in range(width):
                normal, g = (x[r, c] - middle) * factor, dy[r, c] * scale[c]
                total += g
                product += g * normal
            for c in range(width):
                normal = (x[r, c] - middle) * factor
                part[0, c] += dy[r, c] * normal
                part[1, c] += dy[r, c]
                dx[r, c] = factor * (dy[r, c] * scale[c] - total * share - normal * (product * share))
        for c in range(width):
            dscale[c] += np.float64(part[0, c])
            dshift[c] += np.float64(part[1, c])


def layer_norm(x: Array, scale: Array, shift: Array, epsilon: float, pool: Pool) -> tuple[Array, Array, Array]:
    """The twin of `norms.layer_norm`."""
    y = pool.empty(x.shape, x.dtype)
    mean, inverse = (pool.empty((*x.shape[:-1], 1), x.dtype) for _ in range(2))
    normalise_rows(_rows(x), scale, shift, epsilon, _rows(y), mean.reshape(-1), inverse.reshape(-1))
    return y, mean, inverse


def layer_norm_backward(
    x: Array, mean: Array, inverse: Array, scale: Array, dy: Array, pool: Pool
) -> tuple[Array, Array, Array]:
    """The twin of `norms.layer_norm_backward`."""
    dx = pool.empty(x.shape, x.dtype)
    dscale, dshift = np.zeros((2, x.shape[-1]))
    part = np.empty((2, x.shape[-1]), x.dtype)
    gradient_of_rows(_rows(x), mean.reshape(-1), inverse.reshape(-1), scale, _rows(dy), _rows(dx), part, dscale, dshift)
    return dx, dscale, dshift


def _rows(x: Array) -> Array:
    return x.reshape(x.size // x.shape[-1], x.shape[-1])
