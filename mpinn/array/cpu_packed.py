"""The kernels of packed networks compiled: rows of samples are what every inner loop runs over, whatever the widths."""

from functools import cache
from math import erf, pi, sqrt
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from mpinn.array import packed as plain
from mpinn.array.cpu_activations import ACTIVATIONS, Function
from mpinn.array.cpu_math import exp
from mpinn.array.cpu_vector import NARROW, lanes, load, register, spread, store, sum_of
from mpinn.array.jit import fused, kernel, sums
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
    @fused
    def activate(z: Any, bias: Any) -> None:
        for h in range(z.shape[0]):
            row, add = z[h], bias[h]
            for i in range(row.size):
                row[i] = function(row[i] + add)

    return activate


def _with_slope(function: Function, derivative: Function, keeps_input: bool) -> Function:
    @fused
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
    """The twin of `packed.packed_output`: two outputs of two registers of samples at a time."""
    samples, outputs = y.shape[2], y.shape[1]
    block = 2 * lanes(register(bias, NARROW))
    for m in range(y.shape[0]):
        for o in range(0, outputs, 2):
            p = min(o + 1, outputs - 1)
            for i in range(0, samples, block):
                # the last samples may be computed twice, to the same bits
                if samples >= block:
                    _two_outputs(a, weight, bias, starts, y, m, o, p, min(i, samples - block))
                else:
                    _one_by_one(a, weight, bias, starts, y, m, o)
                    _one_by_one(a, weight, bias, starts, y, m, p)


@register_jitable
def _two_outputs(a: Any, weight: Any, bias: Any, starts: Any, y: Any, m: Any, o: Any, p: Any, i: Any) -> None:
    like = register(bias, NARROW)
    j = i + lanes(like)
    y0 = y1 = spread(like, bias[m, o])
    y2 = y3 = spread(like, bias[m, p])
    for h in range(starts[m], starts[m + 1]):
        a0, a1 = load(a[h], i, like), load(a[h], j, like)
        w0, w1 = spread(like, weight[h, o]), spread(like, weight[h, p])
        y0, y1, y2, y3 = y0 + w0 * a0, y1 + w0 * a1, y2 + w1 * a0, y3 + w1 * a1
    store(y[m, o], i, y0)
    store(y[m, o], j, y1)
    store(y[m, p], i, y2)
    store(y[m, p], j, y3)


@register_jitable
def _one_by_one(a: Any, weight: Any, bias: Any, starts: Any, y: Any, m: Any, o: Any) -> None:
    row = y[m, o]
    for i in range(row.size):
        row[i] = bias[m, o]
    for h in range(starts[m], starts[m + 1]):
        for i in range(row.size):
            row[i] += weight[h, o] * a[h, i]


@kernel
def packed_output_backward(
    a: Any, weight: Any, starts: Any, dy: Any, slope: Any, dz: Any, dweight: Any, dbias: Any, dbefore: Any
) -> None:
    """The twin of `packed.packed_output_backward`: two outputs at a time, and row after row while it is near."""
    outputs, samples = dy.shape[1], dy.shape[2]
    width = lanes(register(dbefore, NARROW))
    whole = samples // width * width
    # flat, and inlined: a view of a row, or an array as an argument, costs more than what is done with a short row
    given, grads = dy.reshape(-1), dweight.reshape(-1)
    kept, slopes, back, weights = a.reshape(-1), slope.reshape(-1), dz.reshape(-1), weight.reshape(-1)
    for m in range(dy.shape[0]):
        first = m * outputs * samples
        for o in range(outputs):
            dbias[m, o] = _total(given, first + o * samples, samples)
        for h in range(starts[m], starts[m + 1]):
            at, row = h * outputs, h * samples
            for o in range(0, outputs - 1, 2):
                _back_two(kept, weights, given, back, grads, row, at + o, first + o * samples, samples, whole, o > 0)
            if outputs % 2:
                last = outputs - 1
                _back_one(kept, weights, given, back, grads, row, at + last, first + last * samples, whole, last > 0)
            dbefore[h] = _sloped(back, slopes, row, whole)
    if whole < samples:
        _back_rest(a, weight, starts, dy, slope, dz, dweight, dbefore, whole)


@register_jitable
def _total(vector: Any, start: Any, count: Any) -> Any:
    total = vector.dtype.type(0)
    for i in range(start, start + count):
        total += vector[i]
    return total


@register_jitable(inline="always")
def _back_two(
    a: Any,
    weight: Any,
    dy: Any,
    back: Any,
    dweight: Any,
    row: Any,
    at: Any,
    one: Any,
    samples: Any,
    whole: Any,
    more: Any,
) -> None:
    total0 = total1 = like = register(a, NARROW)
    w0, w1, other = spread(like, weight[at]), spread(like, weight[at + 1]), one + samples
    for i in range(0, whole, lanes(like)):
        x, d0, d1 = load(a, row + i, like), load(dy, one + i, like), load(dy, other + i, like)
        total0, total1 = total0 + x * d0, total1 + x * d1
        part = w0 * d0
        if more:
            part = load(back, row + i, like) + part
        store(back, row + i, part + w1 * d1)
    dweight[at], dweight[at + 1] = sum_of(total0), sum_of(total1)


@register_jitable(inline="always")
def _back_one(
    a: Any, weight: Any, dy: Any, back: Any, dweight: Any, row: Any, at: Any, one: Any, whole: Any, more: Any
) -> None:
    total = like = register(a, NARROW)
    w = spread(like, weight[at])
    for i in range(0, whole, lanes(like)):
        x, d = load(a, row + i, like), load(dy, one + i, like)
        total = total + x * d
        part = w * d
        if more:
            part = load(back, row + i, like) + part
        store(back, row + i, part)
    dweight[at] = sum_of(total)


@register_jitable(inline="always")
def _sloped(back: Any, slope: Any, start: Any, count: Any) -> Any:
    """Some numbers times their slopes, in place; and the sum of them."""
    total = like = register(back, NARROW)
    for i in range(start, start + count, lanes(like)):
        part = load(back, i, like) * load(slope, i, like)
        store(back, i, part)
        total = total + part
    return sum_of(total)


@register_jitable
def _back_rest(
    a: Any, weight: Any, starts: Any, dy: Any, slope: Any, dz: Any, dweight: Any, dbefore: Any, whole: Any
) -> None:
    """The samples that fill no register: in the loops over registers they would cost as much as all others."""
    for m in range(dy.shape[0]):
        for h in range(starts[m], starts[m + 1]):
            for i in range(whole, dy.shape[2]):
                back = dz.dtype.type(0)
                for o in range(dy.shape[1]):
                    back += weight[h, o] * dy[m, o, i]
                    dweight[h, o] += a[h, i] * dy[m, o, i]
                dz[h, i] = back * slope[h, i]
                dbefore[h] += dz[h, i]


@kernel
def packed_slope(da: Any, slope: Any, dbias: Any) -> None:
    """The twin of `packed.packed_slope`."""
    samples, back, slopes = da.shape[1], da.reshape(-1), slope.reshape(-1)
    width = lanes(register(dbias, NARROW))
    whole = samples // width * width
    for h in range(da.shape[0]):
        dbias[h] = _sloped(back, slopes, h * samples, whole)
    if whole < samples:
        for h in range(da.shape[0]):
            for i in range(whole, samples):
                da[h, i] *= slope[h, i]
                dbias[h] += da[h, i]


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
        losses[m] = _chosen(y[m], target, smoothing, most)
        for o in range(outputs):
            row, out = y[m, o], dy[m, o]
            for i in range(samples):
                e = exp(row[i] - most[i])
                out[i] = e
                total[i] += e
        losses[m] += _logarithms(total)
        for i in range(samples):
            total[i] = number(1) / total[i]
        for o in range(outputs):
            out = dy[m, o]
            for i in range(samples):
                out[i] = out[i] * total[i] - share
        for i in range(samples):
            dy[m, target[i], i] -= chosen


@register_jitable
def _chosen(y: Any, target: Any, smoothing: float, most: Any) -> float:
    """The part of the loss that is linear in y: (O, B), above the ``most`` of each sample."""
    loss = 0.0
    for i in range(target.size):
        loss -= (1 - smoothing) * np.float64(y[target[i], i] - most[i])
    if smoothing:
        for o in range(y.shape[0]):
            row = 0.0
            for i in range(target.size):
                row += np.float64(y[o, i] - most[i])
            loss -= row * (smoothing / y.shape[0])
    return loss


@register_jitable
def _logarithms(total: Any) -> float:
    """The sum of the logarithms of ``total``."""
    found, product, factors = 0.0, 1.0, 0
    for i in range(total.size):
        product *= np.float64(total[i])
        factors += 1
        if factors == LOGS:
            found += np.log(product)
            product, factors = 1.0, 0
    whole: float = found + np.log(product)
    return whole


def packed_squared_error(y: Array, target: Array, dy: Array, losses: Array) -> None:
    """The twin of `packed.packed_squared_error` in one pass; for classes it is the plain one."""
    if target.ndim == 1 and np.issubdtype(target.dtype, np.integer):
        plain.packed_squared_error(y, target, dy, losses)
    else:
        _squared_error(y, target.reshape(len(target), y.shape[1]), dy, losses)


@sums
def _squared_error(y: Any, target: Any, dy: Any, losses: Any) -> None:
    for m in range(y.shape[0]):
        total = 0.0
        for o in range(y.shape[1]):
            row = 0.0
            for i in range(y.shape[2]):
                dy[m, o, i] = y[m, o, i] - target[i, o]
                row += np.float64(dy[m, o, i]) * np.float64(dy[m, o, i])
            total += row
        losses[m] = 0.5 * total


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
