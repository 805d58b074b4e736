"""The compiled kernels of packed networks beside their plain twins and a wider type, for members of many widths."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import erfc, pi, sqrt
from typing import Any

import numpy as np
import pytest
from rounding import WIDER, Terms, excess, of_activation

from mpinn.array import cpu
from mpinn.array import ops as plain
from mpinn.array.activations import ACTIVATIONS
from mpinn.array.pool import Pool

WIDTHS = (1, 2, 3, 4, 5, 100, 1, 37)
BATCHES = (1, 3, 8, 15, 16, 31, 32, 33)
OUTPUTS = (1, 2, 3, 10)
GUARD = 40
"""Numbers before and after whatever is written, which stay as they are."""
DTYPES = ["float32", "float64"]


@dataclass(frozen=True)
class Case:
    """Arguments, places of those that are written, the terms of each from wide arguments, and whose elements are whose.

    ``owners`` have the shape of what is written, or one that broadcasts with it: numbers of members.
    """

    name: str
    arguments: list[Any]
    written: tuple[int, ...]
    terms: Callable[[list[Any], Terms], Terms]
    owners: tuple[np.ndarray, ...]

    def results(self, ops: Any, arguments: list[Any]) -> Terms:
        """What the kernel writes, each between guards; what it is not to read is NaN."""
        given = list(arguments)
        buffers = []
        for place in self.written:
            array = given[place]
            buffer = np.full(array.size + 2 * GUARD, np.nan, array.dtype)
            buffer[GUARD:-GUARD] = array.reshape(-1)
            given[place] = buffer[GUARD:-GUARD].reshape(array.shape)
            buffers.append(buffer)
        before = [one.copy() if isinstance(one, np.ndarray) else one for one in given]
        with np.errstate(all="ignore"):
            getattr(ops, self.name)(*given)
        for place, (one, other) in enumerate(zip(before, given, strict=True)):
            if isinstance(one, np.ndarray) and place not in self.written:
                np.testing.assert_array_equal(one, other)
        for buffer in buffers:
            assert np.isnan(buffer[:GUARD]).all()
            assert np.isnan(buffer[-GUARD:]).all()
        return [given[place] for place in self.written]

    def wide(self, dtype: str) -> list[Any]:
        """The arguments in a wider type; there is no error function of wider numbers than float64."""
        kind = np.float64 if "gelu" in str(self.arguments[2]) else WIDER[dtype]
        return [
            one.astype(kind) if isinstance(one, np.ndarray) and one.dtype == dtype else one for one in self.arguments
        ]


def numbers(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape) * 10.0 ** rng.integers(-2, 2, shape)).astype(dtype)


def unset(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.full(shape, np.nan, dtype)


STARTS = np.concatenate([[0], np.cumsum(WIDTHS)])
UNITS, MEMBERS = int(STARTS[-1]), len(WIDTHS)
UNIT_OWNERS, MEMBER_OWNERS = np.repeat(np.arange(MEMBERS), WIDTHS), np.arange(MEMBERS)


def rows(owners: np.ndarray, dimensions: int) -> np.ndarray:
    return owners.reshape(-1, *[1] * (dimensions - 1))


def spread_out(values: np.ndarray) -> np.ndarray:
    """(M, O, B) to (H, O, B)."""
    return np.repeat(values, WIDTHS, axis=0)


def of_activate(given: list[Any], results: Terms) -> Terms:
    z, _, runs, slope, _ = given
    terms = np.concatenate([of_activation(name, z[a:b], results[0][a:b]) for name, a, b in runs])
    # of a sigmoid, a tanh or a normal distribution, which is at most 1; and slopes change by about 1 at the most
    return [terms + np.abs(z)] if slope is None else [terms + np.abs(z), 2 * (1 + np.abs(z))]


def on_activate(dtype: str) -> Iterator[Case]:
    for name in ACTIVATIONS:
        for batch in BATCHES:
            for slope in (None, unset((UNITS, batch), dtype)):
                z, bias = numbers((UNITS, batch), dtype, 0), np.zeros(UNITS, dtype)
                runs = ((name, 0, 7), ("relu", 7, 15), (name, 15, UNITS))
                written = (0,) if slope is None else (0, 3)
                owners = (rows(UNIT_OWNERS, 2),) * len(written)
                yield Case("packed_activate", [z, bias, runs, slope, Pool()], written, of_activate, owners)


def of_output(given: list[Any], results: Terms) -> Terms:
    a, weight, bias = (np.abs(one) for one in given[:3])
    products = weight[:, :, None] * a[:, None, :]
    return [np.add.reduceat(products, STARTS[:-1], axis=0) + bias[:, :, None]]


def on_output(dtype: str) -> Iterator[Case]:
    for batch in BATCHES:
        for outputs in OUTPUTS:
            arrays = [numbers(s, dtype, 1) for s in ((UNITS, batch), (UNITS, outputs), (MEMBERS, outputs))]
            y = unset((MEMBERS, outputs, batch), dtype)
            yield Case("packed_output", [*arrays, STARTS, y], (4,), of_output, (rows(MEMBER_OWNERS, 3),))


def of_output_backward(given: list[Any], results: Terms) -> Terms:
    a, weight, dy, slope = (np.abs(given[place]) for place in (0, 1, 3, 4))
    own = spread_out(dy)
    dz = (weight[:, :, None] * own).sum(axis=1) * slope
    return [dz, (a[:, None, :] * own).sum(axis=2), dy.sum(axis=2), dz.sum(axis=1)]


def on_output_backward(dtype: str) -> Iterator[Case]:
    for batch in BATCHES:
        for outputs in OUTPUTS:
            a, slope, dz = numbers((UNITS, batch), dtype, 2), numbers((UNITS, batch), dtype, 3), (UNITS, batch)
            weight, dy = numbers((UNITS, outputs), dtype, 4), numbers((MEMBERS, outputs, batch), dtype, 5)
            into = [unset(shape, dtype) for shape in (dz, (UNITS, outputs), (MEMBERS, outputs), (UNITS,))]
            arguments = [a, weight, STARTS, dy, slope, *into]
            owners = (rows(UNIT_OWNERS, 2), rows(UNIT_OWNERS, 2), rows(MEMBER_OWNERS, 2), UNIT_OWNERS)
            yield Case("packed_output_backward", arguments, (5, 6, 7, 8), of_output_backward, owners)


def of_slope(given: list[Any], results: Terms) -> Terms:
    terms = np.abs(given[0] * given[1])
    return [terms, terms.sum(axis=1)]


def on_slope(dtype: str) -> Iterator[Case]:
    for batch in BATCHES:
        arrays = [numbers((UNITS, batch), dtype, seed) for seed in (6, 7)]
        owners = (rows(UNIT_OWNERS, 2), UNIT_OWNERS)
        yield Case("packed_slope", [*arrays, unset((UNITS,), dtype)], (0, 2), of_slope, owners)


def of_cross_entropy(given: list[Any], results: Terms) -> Terms:
    """Of d = logit - maximum, of p, which is made of an exponential and the sum of all, and of the sum's logarithm."""
    y, target, smoothing = given[:3]
    d = y - y.max(axis=1, keepdims=True)
    columns = np.arange(y.shape[2])
    p = np.exp(d)
    p /= p.sum(axis=1, keepdims=True)
    exponential = 1 + np.abs(d)
    dy = p * (exponential + (p * exponential).sum(axis=1, keepdims=True)) + smoothing / y.shape[1]
    dy[:, target, columns] += 1
    losses = 1 + np.abs(d[:, target, columns]) + smoothing * np.abs(d).mean(axis=1)
    return [dy, losses.sum(axis=1)]


def on_cross_entropy(dtype: str) -> Iterator[Case]:
    for batch in (*BATCHES, 70):
        for outputs in (1, 2, 3, 10):
            for smoothing in (0.0, 0.1):
                y = numbers((MEMBERS, outputs, batch), dtype, 8)
                target = np.random.default_rng(batch).integers(0, outputs, batch)
                arguments = [y, target, smoothing, unset(y.shape, dtype), np.full(MEMBERS, np.nan)]
                owners = (rows(MEMBER_OWNERS, 3), MEMBER_OWNERS)
                yield Case("packed_cross_entropy", arguments, (3, 4), of_cross_entropy, owners)


def of_squared_error(given: list[Any], results: Terms) -> Terms:
    return [np.abs(result) for result in results]


def on_squared_error(dtype: str) -> Iterator[Case]:
    for batch in BATCHES:
        for outputs in OUTPUTS:
            y, values = numbers((MEMBERS, outputs, batch), dtype, 10), numbers((batch, outputs), dtype, 11)
            for target in (values, np.arange(batch) % outputs, values[:, 0] if outputs == 1 else values):
                arguments = [y, target, unset(y.shape, dtype), np.full(MEMBERS, np.nan)]
                owners = (rows(MEMBER_OWNERS, 3), MEMBER_OWNERS)
                yield Case("packed_squared_error", arguments, (2, 3), of_squared_error, owners)


SIZES = np.array([*WIDTHS, 0, *WIDTHS[::-1]])
"""Of the pieces of a vector: two for each member, and one that is empty."""
PIECE_OWNERS = np.array([*range(MEMBERS), 0, *reversed(range(MEMBERS))])
STOPS = np.cumsum(SIZES)
ELEMENT_OWNERS = np.repeat(PIECE_OWNERS, SIZES)


def on_squares(dtype: str) -> Iterator[Case]:
    arguments = [numbers((int(STOPS[-1]),), dtype, 9), STOPS - SIZES, STOPS, PIECE_OWNERS, np.ones(MEMBERS)]
    yield Case("packed_squares", arguments, (4,), lambda given, results: results, (MEMBER_OWNERS,))


def on_scale(dtype: str) -> Iterator[Case]:
    factors = np.linspace(0.1, 2, MEMBERS)[PIECE_OWNERS]
    factors[2] = 1
    arguments = [numbers((int(STOPS[-1]),), dtype, 9), STOPS - SIZES, STOPS, factors]
    yield Case("packed_scale", arguments, (0,), lambda given, results: [np.abs(results[0])], (ELEMENT_OWNERS,))


OWNERS = {len(owners): owners for owners in (UNIT_OWNERS, MEMBER_OWNERS, PIECE_OWNERS, ELEMENT_OWNERS)}
"""Whose each row of an array is, by the number of rows."""
CASES: dict[str, Callable[[str], Iterator[Case]]] = {
    "packed_activate": on_activate,
    "packed_cross_entropy": on_cross_entropy,
    "packed_output": on_output,
    "packed_output_backward": on_output_backward,
    "packed_scale": on_scale,
    "packed_slope": on_slope,
    "packed_squared_error": on_squared_error,
    "packed_squares": on_squares,
}


def test_every_compiled_kernel_is_compared() -> None:
    compiled = {name for name in plain.__all__ if "packed" in name and getattr(cpu, name) is not getattr(plain, name)}
    assert compiled == {*CASES}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_is_as_exact_as_the_plain_kernel(name: str, dtype: str) -> None:
    for case in CASES[name](dtype):
        found, twins = (case.results(ops, case.arguments) for ops in (cpu, plain))
        wide = case.wide(dtype)
        references = case.results(plain, wide)
        with np.errstate(all="ignore"):
            terms = case.terms(wide, references)
        for one, twin, reference, term in zip(found, twins, references, terms, strict=True):
            assert np.isfinite(one).all()
            worst = excess(one, twin, reference, term, dtype)
            assert worst <= 1, f"{name} of {[np.shape(given) for given in case.arguments]}: {worst:.2f} times the bound"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_bias_is_added_before(name: str, dtype: str) -> None:
    z, bias = numbers((UNITS, 33), dtype, 0), numbers((UNITS,), dtype, 1)
    runs, slopes = ((name, 0, UNITS),), (unset(z.shape, dtype), unset(z.shape, dtype))
    added = z + bias[:, None]
    cpu.packed_activate(z, bias, runs, slopes[0], Pool())
    cpu.packed_activate(added, np.zeros_like(bias), runs, slopes[1], Pool())
    np.testing.assert_array_equal(z, added)
    np.testing.assert_array_equal(*slopes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CASES)
def test_what_is_not_finite_stays_with_its_member(name: str, odd: float, dtype: str) -> None:
    ill = 5
    for case in CASES[name](dtype):
        clean = case.results(cpu, case.arguments)
        for place, given in enumerate(case.arguments):
            if (
                not isinstance(given, np.ndarray)
                or given.dtype != dtype
                or np.isnan(given).any()
                or shared(case, place)
            ):
                continue
            arguments = list(case.arguments)
            arguments[place] = given.copy()
            arguments[place][np.flatnonzero(OWNERS[len(given)] == ill)[-1]] = odd
            found, twins = (case.results(ops, arguments) for ops in (cpu, plain))
            for one, twin, healthy, owners in zip(found, twins, clean, case.owners, strict=True):
                others = np.broadcast_to(owners != ill, one.shape)
                assert one[others].tobytes() == healthy[others].tobytes()
                np.testing.assert_array_equal(np.isfinite(one), np.isfinite(twin))


def shared(case: Case, place: int) -> bool:
    """Whether an argument belongs to no member."""
    return (case.name, place) == ("packed_squared_error", 1)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_class_that_is_not_there_is_an_error(wrong: int) -> None:
    y = np.zeros((2, 3, 4), np.float32)
    with pytest.raises(IndexError):
        cpu.packed_cross_entropy(y, np.array([0, 1, wrong, 2]), 0.0, np.empty_like(y), np.zeros(2))


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2.5e-7), ("float64", 4e-16)])
def test_gelu_is_accurate(dtype: str, bound: float) -> None:
    z = np.linspace(-12, 12, 20_001).astype(dtype)
    y, slope = z[None].copy(), np.empty((1, z.size), dtype)
    cpu.packed_activate(y, np.zeros(1, dtype), (("gelu", 0, 1),), slope, Pool())
    wide = z.astype(np.float64)
    normal = np.array([0.5 * erfc(-value / sqrt(2)) for value in wide.tolist()])
    exact_slope = normal + wide * np.exp(-wide * wide / 2) / sqrt(2 * pi)
    assert (np.abs(y[0] - wide * normal) / np.maximum(1, np.abs(wide))).max() < bound
    assert np.abs(slope[0] - exact_slope).max() < 2 * bound
