"""The kernels of populations on a device beside the plain ones, for members of many widths and depths."""

from typing import Any

import cupy
import numpy as np
import pytest
from packs import members, outputs_of, own, population

from mpinn.array import cuda
from mpinn.array import ops as plain
from mpinn.array.pool import Pool
from mpinn.nn import fleet
from mpinn.nn.fleet import fleets
from mpinn.nn.layer import Pass
from mpinn.nn.part import Part
from mpinn.schedules.members import population_of_part

WIDE = [(width,) for width in (1, 2, 31, 32, 33, 63, 64, 65, 100)]
DEEP = [(1, 1), (33, 40), (64, 3), (3, 100), (7, 7, 2), (40, 1, 33)]
SHAPES = [(1, 1, 1), (10, 32, 2), (33, 31, 3), (5, 40, 4), (64, 33, 7), (70, 70, 10), (4, 45, 19)]
"""Features, samples, outputs."""
CLOSE = {"float32": 1e-5, "float64": 1e-13}
DTYPES = pytest.mark.parametrize("dtype", CLOSE)


def up(array: Any) -> Any:
    return cupy.asarray(np.ascontiguousarray(array))


def close(found: Any, expected: np.ndarray, dtype: str) -> None:
    """Beside the largest number, but for what is not finite."""
    found = found.get()
    assert found.dtype == expected.dtype
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=1)
    np.testing.assert_allclose(found, expected, rtol=CLOSE[dtype], atol=CLOSE[dtype] * scale)


@DTYPES
@pytest.mark.parametrize(("features", "samples", "outputs"), SHAPES)
def test_layers_are_those_of_the_plain_kernels(dtype: str, features: int, samples: int, outputs: int) -> None:
    """Each kernel is given what the plain one is given; one member is not finite."""
    part = population(members(WIDE + DEEP), (features,), outputs, dtype)
    own(part, 7)["hidden1"]["weight"].reshape(-1)[0] = np.nan
    rng, pool = np.random.default_rng(samples), Pool()
    pack, vector = population_of_part(part), part.weights
    names = [name for name, _ in pack.panels]
    (one,), (twin,) = (fleets(pack, part.layout, ops, names, fleet.MOST) for ops in (plain, cuda))
    x = rng.normal(size=(samples, features)).astype(dtype)
    units = np.full((one.units, samples), np.nan, dtype)
    there, weights = up(units), up(vector)
    with np.errstate(all="ignore"):
        for depth, (layer, tiles) in enumerate(zip(one.layers, twin.layers, strict=True)):
            plain.ragged_hidden(vector, layer, None if depth else x, units, pool)
            cuda.ragged_hidden(weights, tiles, None if depth else up(x), there, pool)
            close(there, units, dtype)
            there = up(units)
        assert 0 < np.isnan(units).any(axis=1).sum() < 200
        y = np.empty((len(pack.members), outputs, samples), dtype)
        found = up(y)
        plain.ragged_output(vector, one.heads, units, y, pool)
        cuda.ragged_output(weights, twin.heads, there, found, pool)
        close(found, y, dtype)
        dy = rng.normal(size=y.shape).astype(dtype)
        grads = np.zeros_like(vector)
        slopes = up(grads)
        plain.ragged_output_backward(vector, one.heads, units, dy, grads, pool)
        cuda.ragged_output_backward(weights, twin.heads, there, up(dy), slopes, pool)
        close(there, units, dtype)
        close(slopes, grads, dtype)
        for depth in range(len(one.layers) - 1, -1, -1):
            there = up(units)
            plain.ragged_gradient(one.layers[depth], None if depth else x, units, grads, pool)
            cuda.ragged_gradient(twin.layers[depth], None if depth else up(x), there, slopes, pool)
            close(slopes, grads, dtype)
            if depth:
                plain.ragged_backward(vector, one.layers[depth], units, pool)
                cuda.ragged_backward(weights, twin.layers[depth], there, pool)
                close(there, units, dtype)
    assert np.mean([grads[entry.slice].any() for entry in part.layout]) > 0.9


def outputs(dtype: str, members_: int = 5, classes: int = 3, samples: int = 70) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(classes)
    y = (rng.normal(size=(members_, classes, samples)) * 5).astype(dtype)
    y[1, 0, 3] = np.nan
    y[2, :, :5] = 1
    return y, rng.integers(0, classes, samples)


@DTYPES
@pytest.mark.parametrize("samples", [1, 32, 33, 300])
@pytest.mark.parametrize("smoothing", [None, 0.0, 0.1])
@pytest.mark.parametrize("classes", [1, 2, 11])
def test_losses_are_those_of_the_plain_kernels(dtype: str, samples: int, smoothing: float | None, classes: int) -> None:
    """``smoothing`` is None for the squared error."""
    y, target = outputs(dtype, classes=classes, samples=max(samples, 6))
    y, target = np.ascontiguousarray(y[:, :, :samples]), target[:samples]
    values = np.random.default_rng(1).normal(size=(samples, classes)).astype(dtype)
    for wanted in (target,) if smoothing is not None else (target, values):
        dy, losses = np.empty_like(y), np.empty(len(y))
        there, sums = up(y), up(losses)
        if smoothing is None:
            plain.packed_squared_error(y, wanted, dy, losses)
            cuda.packed_squared_error(there, up(wanted), there, sums)
        else:
            plain.packed_cross_entropy(y, wanted, smoothing, dy, losses)
            cuda.packed_cross_entropy(there, up(wanted), smoothing, there, sums)
        close(there, dy, dtype)
        np.testing.assert_allclose(sums.get(), losses, rtol=CLOSE[dtype], atol=CLOSE[dtype] * samples)
        right = cuda.packed_correct(up(y), up(wanted)).get()
        np.testing.assert_array_equal(right, plain.packed_correct(y, wanted))


def test_a_class_that_is_not_there_is_no_loss() -> None:
    y, target = outputs("float32")
    for wrong in (-1, 3):
        target[-1] = wrong
        sums = cupy.zeros((2, len(y)))
        cuda.packed_cross_entropy(up(y), up(target), 0.0, up(y), sums[0])
        cuda.packed_squared_error(up(y), up(target), up(y), sums[1])
        assert np.isnan(sums.get()).all()


@DTYPES
def test_norms_are_those_of_the_plain_kernels(dtype: str) -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([1, 700, 0, 3, 257, 31, 64])
    stops = np.cumsum(lengths + 2)
    starts, owners = stops - lengths, np.array([2, 0, 0, 4, 2, 1, 4])
    vector = rng.normal(size=stops[-1] + 5).astype(dtype)
    squares = np.ones(5)
    there, sums = up(vector), up(squares)
    pieces = cuda.prepared_pieces(starts, stops, owners)
    plain.packed_squares(vector, starts, stops, owners, squares)
    cuda.packed_squares(there, *pieces, sums)
    np.testing.assert_allclose(sums.get(), squares, rtol=1e-6 if dtype == "float32" else 1e-13)
    assert squares[3] == 1
    factors = np.array([0.5, 1.0, 0.25, 1.0, 3.0])
    plain.packed_scale(vector, starts, stops, factors[owners])
    cuda.packed_scale(there, *pieces[:2], up(factors)[pieces[2]])
    np.testing.assert_array_equal(there.get(), vector)


def test_only_what_is_finite_is_summed() -> None:
    numbers = np.random.default_rng(0).normal(size=1000)
    numbers[[3, 500, 999]] = np.nan, np.inf, -np.inf
    found = cuda.finite_sum(up(numbers))
    assert found.shape == ()
    assert float(found) == pytest.approx(float(plain.finite_sum(numbers)), rel=1e-13)
    assert float(cuda.finite_sum(up(numbers[:0]))) == 0


def test_one_panel_is_computed_by_the_plain_kernels() -> None:
    """As a layer like any other, which no training step needs."""
    several = members([(3,), (8,), (4, 2)])
    x = np.random.default_rng(1).normal(size=(20, 5))
    parts: list[Part] = [population(several, (5,), ops=ops) for ops in (plain, cuda)]
    found = outputs_of(parts[1], up(x))
    np.testing.assert_allclose(found.get(), outputs_of(parts[0], x), rtol=1e-12, atol=1e-13)
    pack = population_of_part(parts[1])
    twice = fleets(pack, parts[1].layout, cuda, [name for name, _ in pack.panels], fleet.MOST)
    y, _ = twice[0].forward(parts[1].weights, up(x), Pass(Pool(cupy), cuda))
    np.testing.assert_allclose(found.get(), y.get(), rtol=1e-12, atol=1e-13)
