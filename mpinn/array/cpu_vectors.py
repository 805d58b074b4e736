"""Optimizer steps, sums and masks compiled: one pass over memory."""

from typing import Any

import numpy as np
from numba.extending import register_jitable

from mpinn.array.jit import kernel, sums

ROWS = 64
"""Rows that are added up in the precision of the array before they join the total in float64."""


@kernel
def descend(
    weights: Any, grads: Any, starts: Any, stops: Any, decays: Any, factors: Any, scale: float, rate: float
) -> None:
    """w <- w - rate (scale g + decay w), segment by segment."""
    number = weights.dtype.type
    scale_ = number(scale)
    for s in range(starts.size):
        if factors[s] == 0:
            continue
        decay_, rate_ = number(decays[s]), number(rate * factors[s])
        w, g = weights[starts[s] : stops[s]], grads[starts[s] : stops[s]]
        for i in range(w.size):
            gradient = g[i] * scale_
            if decay_:
                gradient += w[i] * decay_
            w[i] -= gradient * rate_


@kernel
def descend_with_momentum(
    weights: Any,
    grads: Any,
    velocity: Any,
    starts: Any,
    stops: Any,
    decays: Any,
    factors: Any,
    scale: float,
    rate: float,
    momentum: float,
    nesterov: bool,
) -> None:
    """The same with v <- momentum v + g in place of g, or g + momentum v with Nesterov's look-ahead."""
    number = weights.dtype.type
    scale_, momentum_ = number(scale), number(momentum)
    for s in range(starts.size):
        if factors[s] == 0:
            continue
        decay_, rate_ = number(decays[s]), number(rate * factors[s])
        own = slice(starts[s], stops[s])
        w, g, moving = weights[own], grads[own], velocity[own]
        for i in range(w.size):
            gradient = g[i] * scale_
            if decay_:
                gradient += w[i] * decay_
            v = moving[i] * momentum_ + gradient
            moving[i] = v
            w[i] -= (gradient + v * momentum_ if nesterov else v) * rate_


@kernel
def adapt(
    weights: Any,
    grads: Any,
    first: Any,
    second: Any,
    starts: Any,
    stops: Any,
    decays: Any,
    factors: Any,
    scale: float,
    rate: float,
    decoupled: bool,
    beta1: float,
    beta2: float,
    epsilon: float,
    pace: float,
) -> None:
    """m and v follow g and g^2; w <- w - pace m / (sqrt(v) + epsilon).

    The weight decay is part of g, unless it is ``decoupled`` from it: then w <- (1 - rate decay) w first.
    """
    number = weights.dtype.type
    scale_, epsilon_ = number(scale), number(epsilon)
    b1, b2, rest1, rest2 = number(beta1), number(beta2), number(1 - beta1), number(1 - beta2)
    for s in range(starts.size):
        if factors[s] == 0:
            continue
        decay_ = number(0 if decoupled else decays[s])
        shrink_ = number(1 - rate * factors[s] * decays[s] if decoupled else 1.0)
        pace_ = number(pace * factors[s])
        own = slice(starts[s], stops[s])
        w, g, m, v = weights[own], grads[own], first[own], second[own]
        for i in range(w.size):
            gradient = g[i] * scale_
            if decay_:
                gradient += w[i] * decay_
            mean = m[i] * b1 + gradient * rest1
            square = v[i] * b2 + gradient * gradient * rest2
            m[i] = mean
            v[i] = square
            w[i] = w[i] * shrink_ - mean / (np.sqrt(square) + epsilon_) * pace_


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
