"""exp(x) - 1 and what follows from it, in arithmetic alone, so that a loop over it runs in vector registers.

x = n log 2 + r with |r| <= log(2) / 2; the Taylor series of exp(r) - 1 = p; then exp(x) - 1 = 2^n p + (2^n - 1). Adding
1.5 * 2^23 (2^52 in float64) rounds to the integer n and leaves it in the low bits of the sum, from which the bits of
2^n are made. NaN stays NaN; exp errs by less than 1 ulp, expm1 by less than 1.5, tanh and sigmoid by less than 3, but a
sigmoid below the smallest normal number may be zero.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

LOG2_E = 1.4426950408889634
MAGIC_32, HIGH_32, LOW_32 = np.float32(12582912.0), np.float32(0.693359375), np.float32(-2.12194440e-4)
MAGIC_64, HIGH_64, LOW_64 = 6755399441055744.0, 6.93147180369123816490e-01, 1.90821492927058770002e-10


def split(x: Any) -> Any:
    """(p, 2^a, 2^b) with exp(x) = (1 + p) 2^a 2^b: two factors reach the whole range, as one would not."""
    raise NotImplementedError("for use in kernels")


@overload(split)
def _split(x: Any) -> Any:
    return {types.float32: _split_32, types.float64: _split_64}.get(x)


def _split_32(x: Any) -> Any:
    f = np.float32
    x = f(89) if x > f(89) else x
    x = f(-104) if x < f(-104) else x
    shifted = np.float32(x * f(LOG2_E) + MAGIC_32)
    n = shifted - MAGIC_32
    r = x - n * HIGH_32 - n * LOW_32
    p = ((((f(1 / 5040) * r + f(1 / 720)) * r + f(1 / 120)) * r + f(1 / 24)) * r + f(1 / 6)) * r + f(1 / 2)
    whole = np.int32(shifted.view(np.int32) - np.int32(0x4B400000))
    half = np.int32(whole >> 1)
    one = np.int32((half + 127) << 23)
    other = np.int32((whole - half + 127) << 23)
    return p * r * r + r, one.view(np.float32), other.view(np.float32)


def _split_64(x: Any) -> Any:
    x = 710.0 if x > 710.0 else x
    x = -746.0 if x < -746.0 else x
    shifted = np.float64(x * LOG2_E + MAGIC_64)
    n = shifted - MAGIC_64
    r = x - n * HIGH_64 - n * LOW_64
    p = (((1 / 6227020800 * r + 1 / 479001600) * r + 1 / 39916800) * r + 1 / 3628800) * r + 1 / 362880
    p = ((((p * r + 1 / 40320) * r + 1 / 5040) * r + 1 / 720) * r + 1 / 120) * r + 1 / 24
    p = (p * r + 1 / 6) * r + 1 / 2
    whole = shifted.view(np.int64) - np.int64(0x4338000000000000)
    half = whole >> 1
    one = np.int64((half + 1023) << 52)
    other = np.int64((whole - half + 1023) << 52)
    return p * r * r + r, one.view(np.float64), other.view(np.float64)


@register_jitable
def exp(x: Any) -> Any:
    """exp(x)."""
    p, one, other = split(x)
    return (p + type(x)(1)) * one * other


@register_jitable
def expm1(x: Any) -> Any:
    """exp(x) - 1 for x <= 0, accurate near zero."""
    p, one, other = split(x)
    return p * one * other + (one * other - type(x)(1))


@register_jitable
def tanh(x: Any) -> Any:
    """tanh(x) = e / (e + 2) with e = exp(2x) - 1, of -|x|, where it cannot overflow."""
    e = expm1(abs(x) * type(x)(-2))
    size = -e / (e + type(x)(2))
    return size if x >= 0 else -size


@register_jitable
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return type(x)(1) / (type(x)(1) + exp(-x))
