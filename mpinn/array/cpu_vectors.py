"""Optimizer steps, sums and masks compiled: one pass over memory."""

from typing import Any

import numpy as np
from numba.extending import register_jitable

from mpinn.array.jit import kernel, sums

ROWS = 64
"""Rows that are added up in the precision of the array before they join the total in float64."""


@kernel
def descend(weights: Any, grads: Any, scale: float, decay: float, rate: float) -> None:
    """w <- w - rate (scale g + decay w)."""
    number = weights.dtype.type
    scale_, decay_, rate_ = number(scale), number(decay), number(rate)
    for i in range(weights.size):
        g = grads[i] * scale_
        if decay:
            g += weights[i] * decay_
        weights[i] -= g * rate_


@kernel
def descend_with_momentum(
    weights: Any, grads: Any, velocity: Any, scale: float, decay: float, rate: float, momentum: float, nesterov: bool
) -> None:
    """The same with v <- momentum v + g in place of g, or g + momentum v with Nesterov's look-ahead."""
    number = weights.dtype.type
    scale_, decay_, rate_, momentum_ = number(scale), number(decay), number(rate), number(momentum)
    for i in range(weights.size):
        g = grads[i] * scale_
        if decay:
            g += weights[i] * decay_
        v = velocity[i] * momentum_ + g
        velocity[i] = v
        weights[i] -= (g + v * momentum_ if nesterov else v) * rate_


@kernel
def adapt(
    weights: Any,
    grads: Any,
    first: Any,
    second: Any,
    scale: float,
    decay: float,
    shrink: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    pace: float,
) -> None:
    """m and v follow g and g^2; w <- shrink w - pace m / (sqrt(v) + epsilon)."""
    number = weights.dtype.type
    scale_, decay_, shrink_, epsilon_, pace_ = (
        number(scale), number(decay), number(shrink), number(epsilon), number(pace)
    )  # fmt: skip
    b1, b2, rest1, rest2 = number(beta1), number(beta2), number(1 - beta1), number(1 - beta2)
    for i in range(weights.size):
        g = grads[i] * scale_
        if decay:
            g += weights[i] * decay_
        m = first[i] * b1 + g * rest1
        v = second[i] * b2 + g * g * rest2
        first[i] = m
        second[i] = v
        weights[i] = weights[i] * shrink_ - m / (np.sqrt(v) + epsilon_) * pace_


@sums
def squares(vector: Any) -> float:
    """The sum of the squares, in float64."""
    total = 0.0
    for i in range(vector.size):
        total += np.float64(vector[i]) * np.float64(vector[i])
    return total


@kernel
def none_has(bits: Any, exponent: int) -> bool:
    """Whether no element has all the bits of ``exponent`` set, which is how infinity and NaN are written."""
    for start in range(0, bits.size, 4096):
        bad = 0
        for i in range(start, min(start + 4096, bits.size)):
            bad |= (bits[i] & exponent) == exponent
        if bad:
            return False
    return True


@kernel
def add_rows(x: Any, total: Any) -> None:
    """Add the columns of x: (N, C) up to total: (C,), float64."""
    part = np.empty(x.shape[1], x.dtype)
    for top in range(0, x.shape[0], ROWS):
        for j in range(x.shape[1]):  # a slice would make the compiler compile the text of an error as well
            part[j] = x[top, j]
        for i in range(top + 1, min(top + ROWS, x.shape[0])):
            for j in range(x.shape[1]):
                part[j] += x[i, j]
        for j in range(x.shape[1]):
            total[j] += part[j]


@kernel
def masked(x: Any, keep: Any, factor: float, y: Any) -> None:
    """y = x * keep * factor, for vectors."""
    number = x.dtype.type
    for i in range(x.size):
        y[i] = x[i] * number(keep[i]) * number(factor)


@register_jitable
def _mix(bits: Any) -> Any:
    # the 32-bit finaliser "lowbias32" of C. Wellons' hash prospector
    bits = np.uint32((bits ^ (bits >> np.uint32(16))) * np.uint32(0x7FEB352D))
    bits = np.uint32((bits ^ (bits >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(bits ^ (bits >> np.uint32(16)))


@kernel
def draw(keep: Any, limit: int, low: int, high: int, row: int, step: int) -> None:
    """Fill keep: (B, W) from the hash of the key and of each element's place, modulo 2^32."""
    width = keep.shape[1]
    for i in range(keep.shape[0]):
        start = np.uint32((row + i * step) * width)
        for j in range(width):
            bits = _mix(np.uint32(np.uint32(start + j) ^ np.uint32(low)))
            bits = _mix(np.uint32(bits ^ np.uint32(high)))
            keep[i, j] = bits >= np.uint32(limit)
