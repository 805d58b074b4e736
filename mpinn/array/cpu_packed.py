"""The kernels of packed networks compiled: rows of samples are what every inner loop runs over, whatever the widths."""

from functools import cache
from math import erf, pi, sqrt
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from mpinn.array.cpu_activations import ACTIVATIONS, Function
from mpinn.array.cpu_math import exp
from mpinn.array.jit import kernel, sums
from mpinn.array.packed import Runs
from mpinn.array.pool import Pool
from mpinn.array.typing import Array

LOGS = 32
"""Factors whose product has one logarithm: each is at most the number of outputs."""


def normal(z: Any, density: Any) -> Any:
    """The normal distribution function at z, where exp(-z^2 / 2) is ``density``."""
    raise NotImplementedError("for use in kernels")


@overload(normal)
def _normal(z: Any, density: Any) -> Any:
    return {types.float32: _normal_32, types.float64: _normal_64}.get(z)


def _normal_32(z: Any, density: Any) -> Any:
    # Abramowitz & Stegun 7.1.26: erfc(x) = (a1 t + ... + a5 t^5) exp(-x^2) to 1.5e-7, t = 1 / (1 + 0.3275911 x)
    f = np.float32
    t = f(1) / (f(1) + abs(z) * f(0.3275911 / sqrt(2)))
    tail = ((f(1.061405429) * t + f(-1.453152027)) * t + f(1.421413741)) * t
    tail = ((tail + f(-0.284496736)) * t + f(0.254829592)) * t * density * f(0.5)
    return tail if z < 0 else f(1) - tail


def _normal_64(z: Any, density: Any) -> Any:
    return 0.5 * (1.0 + erf(z / sqrt(2)))


@register_jitable
def _gelu(z: Any) -> Any:
    return z * normal(z, exp(z * z * type(z)(-0.5)))


@register_jitable
def _gelu_backward(z: Any, dy: Any) -> Any:
    density = exp(z * z * type(z)(-0.5))
    return dy * (normal(z, density) + z * density * type(z)(1 / sqrt(2 * pi)))


@cache
def _rows(name: str) -> tuple[Function, Function]:
    """The loops over rows of one activation: alone, and with its slope."""
    if name == "gelu":
        return _activate(_gelu), _with_slope(_gelu, _gelu_backward, True)
    function, derivative, keeps_input = ACTIVATIONS[name]
    return _activate(function), _with_slope(function, derivative, keeps_input)


def _activate(function: Function) -> Function:
    @kernel
    def activate(z: Any, bias: Any) -> None:
        for h in range(z.shape[0]):
            row, add = z[h], bias[h]
            for i in range(row.size):
                row[i] = function(row[i] + add)

    return activate


def _with_slope(function: Function, derivative: Function, keeps_input: bool) -> Function:
    @kernel
    def activate(z: Any, bias: Any, slope: Any) -> None:
        for h in range(z.shape[0]):
            row, slopes, add = z[h], slope[h], bias[h]
            for i in range(row.size):
                v = row[i] + add
                y = function(v)
                slopes[i] = derivative(v if keeps_input else y, z.dtype.type(1))
                row[i] = y

    return activate


def packed_activate(z: Array, bias: Array, runs: Runs, slope: Array | None, pool: Pool) -> None:
    """The twin of `packed.packed_activate`: each number is read and written once."""
    for name, start, stop in runs:
        alone, with_slope = _rows(name)
        if slope is None:
            alone(z[start:stop], bias[start:stop])
        else:
            with_slope(z[start:stop], bias[start:stop], slope[start:stop])


@kernel
def packed_output(a: Any, weight: Any, bias: Any, starts: Any, y: Any) -> None:
    """The twin of `packed.packed_output`: four rows are added at a time."""
    samples = a.shape[1]
    for m in range(y.shape[0]):
        start, stop = starts[m], starts[m + 1]
        whole = start + (stop - start) // 4 * 4
        for o in range(y.shape[1]):
            row = y[m, o]
            for i in range(samples):
                row[i] = bias[m, o]
            for h in range(start, whole, 4):
                w0, w1, w2, w3 = weight[h, o], weight[h + 1, o], weight[h + 2, o], weight[h + 3, o]
                a0, a1, a2, a3 = a[h], a[h + 1], a[h + 2], a[h + 3]
                for i in range(samples):
                    row[i] += (w0 * a0[i] + w1 * a1[i]) + (w2 * a2[i] + w3 * a3[i])
            for h in range(whole, stop):
                w0, a0 = weight[h, o], a[h]
                for i in range(samples):
                    row[i] += w0 * a0[i]


@sums
def packed_output_backward(a: Any, weight: Any, starts: Any, dy: Any, da: Any, dweight: Any, dbias: Any) -> None:
    """The twin of `packed.packed_output_backward`."""
    samples = a.shape[1]
    number = a.dtype.type
    for m in range(dy.shape[0]):
        for o in range(dy.shape[1]):
            total = number(0)
            for i in range(samples):
                total += dy[m, o, i]
            dbias[m, o] = total
        for h in range(starts[m], starts[m + 1]):
            kept, back = a[h], da[h]
            for o in range(dy.shape[1]):
                row, w, total = dy[m, o], weight[h, o], number(0)
                if o == 0:
                    for i in range(samples):
                        back[i] = w * row[i]
                        total += kept[i] * row[i]
                else:
                    for i in range(samples):
                        back[i] += w * row[i]
                        total += kept[i] * row[i]
                dweight[h, o] = total


@sums
def packed_slope(da: Any, slope: Any, dbias: Any) -> None:
    """The twin of `packed.packed_slope`."""
    for h in range(da.shape[0]):
        row, slopes, total = da[h], slope[h], da.dtype.type(0)
        for i in range(row.size):
            row[i] *= slopes[i]
            total += row[i]
        dbias[h] = total


def packed_cross_entropy(y: Array, target: Array, smoothing: float, dy: Array, losses: Array) -> None:
    """The twin of `packed.packed_cross_entropy`."""
    scratch = np.empty((2, y.shape[2]), y.dtype)
    _cross_entropy(y, target, smoothing, dy, losses, scratch[0], scratch[1])


@kernel  # not `sums`: exp rounds by adding a large number and taking it away again
def _cross_entropy(y: Any, target: Any, smoothing: float, dy: Any, losses: Any, most: Any, total: Any) -> None:
    number = y.dtype.type
    outputs, samples = y.shape[1], y.shape[2]
    share, chosen = number(smoothing / outputs), number(1 - smoothing)
    for i in range(samples):
        if target[i] < 0 or target[i] >= outputs:
            raise IndexError("a target is not the number of a class")
    for m in range(y.shape[0]):
        first = y[m, 0]
        for i in range(samples):
            most[i] = first[i]
            total[i] = 0
        for o in range(1, outputs):
            row = y[m, o]
            for i in range(samples):
                most[i] = row[i] if row[i] > most[i] or row[i] != row[i] else most[i]
        for o in range(outputs):
            row, out = y[m, o], dy[m, o]
            for i in range(samples):
                e = exp(row[i] - most[i])
                out[i] = e
                total[i] += e
        losses[m] = _loss(y[m], target, smoothing, most, total)
        for i in range(samples):
            total[i] = number(1) / total[i]
        for o in range(outputs):
            out = dy[m, o]
            for i in range(samples):
                out[i] = out[i] * total[i] - share
        for i in range(samples):
            dy[m, target[i], i] -= chosen


@register_jitable
def _loss(y: Any, target: Any, smoothing: float, most: Any, total: Any) -> float:
    loss, product, factors = 0.0, 1.0, 0
    for i in range(target.size):
        loss -= (1 - smoothing) * np.float64(y[target[i], i] - most[i])
        product *= np.float64(total[i])
        factors += 1
        if factors == LOGS:
            loss += np.log(product)
            product, factors = 1.0, 0
    if smoothing:
        for o in range(y.shape[0]):
            for i in range(target.size):
                loss -= np.float64(y[o, i] - most[i]) * (smoothing / y.shape[0])
    found: float = loss + np.log(product)
    return found


@sums
def packed_squares(vector: Any, starts: Any, stops: Any, owners: Any, squares: Any) -> None:
    """The twin of `packed.packed_squares`."""
    for piece in range(starts.size):
        total = 0.0
        for i in range(starts[piece], stops[piece]):
            total += np.float64(vector[i]) * np.float64(vector[i])
        squares[owners[piece]] += total


@kernel
def packed_scale(vector: Any, starts: Any, stops: Any, factors: Any) -> None:
    """The twin of `packed.packed_scale`."""
    for piece in range(starts.size):
        if factors[piece] != 1:
            factor = vector.dtype.type(factors[piece])
            for i in range(starts[piece], stops[piece]):
                vector[i] *= factor
