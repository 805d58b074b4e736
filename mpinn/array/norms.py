"""Normalisation over the batch (per channel) and over the channels (per position).

Backward passes keep x rather than its normalised form: the layer below keeps x as well, so it costs no memory.
"""

import numpy as np

from mpinn.array.activations import ACTIVATIONS
from mpinn.array.pool import Pool
from mpinn.array.sums import column_dots, column_moments, column_sums, spread
from mpinn.array.typing import Array, Dtype


def batch_norm(
    x: Array, mean: Array, inverse: Array, scale: Array, shift: Array, activation: str, pool: Pool
) -> tuple[Array, Array]:
    """y = f((x - mean) * inverse * scale + shift) for x: (..., C), ``inverse`` being 1 / deviation.

    Returns y and what the backward pass keeps for the activation.
    """
    z = pool.empty(x.shape, x.dtype)
    np.subtract(x, spread(mean, x, pool), out=z)
    np.multiply(z, spread(inverse * scale, x, pool), out=z)
    np.add(z, spread(shift, x, pool), out=z)
    if activation == "identity":
        return z, z
    keeps_input = ACTIVATIONS[activation].keeps_input
    y = pool.empty(z.shape, z.dtype) if keeps_input else z
    ACTIVATIONS[activation].forward(z, y, pool)
    return y, (z if keeps_input else y)


def batch_norm_backward(
    x: Array, mean: Array, inverse: Array, scale: Array, activation: str, kept: Array | None, dy: Array,
    of_batch: bool, pool: Pool,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """(dx, dscale, dshift); with ``of_batch`` the mean and the deviation are those of x and pass a gradient on.

    dx = inverse scale (dz - dshift/n - xhat dscale/n) with xhat = (x - mean) inverse, over n rows, and dz = dy f'.
    """
    dz = dy
    if kept is not None and activation != "identity":
        dz = pool.empty(dy.shape, dy.dtype)
        ACTIVATIONS[activation].backward(kept, dy, dz, pool)
    dx = pool.empty(x.shape, x.dtype)
    np.subtract(x, spread(mean, x, pool), out=dx)
    dscale = column_dots(dz, dx, pool) * inverse
    dshift = column_sums(dz)
    if of_batch:
        rows = max(1, x.size // x.shape[-1])
        np.multiply(dx, spread((inverse * dscale / -rows).astype(x.dtype), x, pool), out=dx)
        np.add(dx, dz, out=dx)
        np.subtract(dx, spread((dshift / rows).astype(x.dtype), x, pool), out=dx)
        np.multiply(dx, spread(scale * inverse, x, pool), out=dx)
    else:
        np.multiply(dz, spread(scale * inverse, x, pool), out=dx)
    return dx, dscale, dshift


def batch_statistics(
    x: Array, running: tuple[Array, Array], momentum: float, epsilon: float, pool: Pool
) -> tuple[Array, Array]:
    """Mean and 1 / deviation of each column of x: (..., C), each (C,) in the type of x.

    ``running``, the mean and the unbiased variance so far, move towards those of x by ``momentum``, unless x is empty.
    """
    return followed(x, column_moments(x, pool), running, momentum, epsilon)


def followed(
    x: Array, moments: tuple[Array, Array], running: tuple[Array, Array], momentum: float, epsilon: float
) -> tuple[Array, Array]:
    """`batch_statistics`, from the mean and the variance of x in float64."""
    rows = x.size // x.shape[-1]
    if momentum and rows:
        mean, variance = moments
        unbiased = variance * (rows / max(1, rows - 1))
        for own, new in zip(running, (mean, unbiased), strict=True):
            own[...] += momentum * (new - own)
    return known_statistics(moments, epsilon, x.dtype, pool=None)


def known_statistics(
    moments: tuple[Array, Array], epsilon: float, dtype: Dtype, pool: Pool | None
) -> tuple[Array, Array]:
    """Mean and 1 / deviation in ``dtype``, from a mean and a variance."""
    mean, variance = moments
    return mean.astype(dtype), (1 / np.sqrt(variance + epsilon)).astype(dtype)


def layer_norm(x: Array, scale: Array, shift: Array, epsilon: float, pool: Pool) -> tuple[Array, Array, Array]:
    """y = xhat * scale + shift with xhat normalised over the last axis; and the mean and 1 / deviation: (..., 1)."""
    y, scratch = pool.empty(x.shape, x.dtype), pool.empty(x.shape, x.dtype)
    mean, inverse = pool.empty((*x.shape[:-1], 1), x.dtype), pool.empty((*x.shape[:-1], 1), x.dtype)
    np.mean(x, axis=-1, keepdims=True, out=mean)
    np.subtract(x, mean, out=y)
    np.multiply(y, y, out=scratch)
    np.mean(scratch, axis=-1, keepdims=True, out=inverse)
    np.add(inverse, epsilon, out=inverse)
    np.sqrt(inverse, out=inverse)
    np.divide(1, inverse, out=inverse)
    np.multiply(y, inverse, out=y)
    np.multiply(y, spread(scale, x, pool), out=y)
    np.add(y, spread(shift, x, pool), out=y)
    return y, mean, inverse


def layer_norm_backward(
    x: Array, mean: Array, inverse: Array, scale: Array, dy: Array, pool: Pool
) -> tuple[Array, Array, Array]:
    """(dx, dscale, dshift), where dx = inverse (g - mean(g) - xhat mean(g xhat)) and g = dy scale.

    Means are over the last axis.
    """
    normal, dx, product = (pool.empty(x.shape, x.dtype) for _ in range(3))
    average = pool.empty(mean.shape, mean.dtype)
    np.subtract(x, mean, out=normal)
    np.multiply(normal, inverse, out=normal)
    dscale, dshift = column_dots(dy, normal, pool), column_sums(dy)
    np.multiply(dy, spread(scale, x, pool), out=dx)
    np.multiply(dx, normal, out=product)
    np.mean(product, axis=-1, keepdims=True, out=average)
    np.multiply(normal, average, out=normal)
    np.mean(dx, axis=-1, keepdims=True, out=average)
    np.subtract(dx, average, out=dx)
    np.subtract(dx, normal, out=dx)
    np.multiply(dx, inverse, out=dx)
    return dx, dscale, dshift
