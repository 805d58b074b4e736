"""Sums over rows against exact arithmetic."""

from math import fsum

import numpy as np
import pytest

from mpinn.array.ops import sum_of_squares
from mpinn.array.pool import Pool
from mpinn.array.sums import BLOCK, column_dots, column_moments, column_sums, spread

SHAPES = [(0, 3), (1, 1), (7, 3), (5, 4, 6, 2), (3000, 16), (70, BLOCK + 5), (BLOCK + 1, 1)]


def columns(x):
    return x.astype(np.float64).reshape(-1, x.shape[-1]).T


@pytest.mark.parametrize(("dtype", "error"), [("f8", 1e-14), ("f4", 2e-7)])
@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_sums_and_dots(shape, dtype, error):
    # errors are stated against the sum of absolute values
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    picks = [0, shape[-1] // 2, shape[-1] - 1]
    total, dots = column_sums(a), column_dots(a, b, Pool())
    assert total.dtype == dots.dtype == np.float64
    for c in picks:
        one, other = columns(a)[c], columns(b)[c]
        assert abs(total[c] - fsum(one)) <= error * fsum(abs(one))
        assert abs(dots[c] - fsum(one * other)) <= error * fsum(abs(one * other))


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4, 1e6])
def test_moments_of_float32(offset):
    x = (np.random.default_rng(1).normal(size=(5000, 6)) + offset).astype(np.float32)
    mean, variance = column_moments(x, Pool())
    np.testing.assert_allclose(mean, columns(x).mean(axis=1), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(variance, columns(x).var(axis=1), rtol=1e-6)


def test_moments_of_nothing_are_zero():
    mean, variance = column_moments(np.empty((0, 3)), Pool())
    assert mean.tolist() == variance.tolist() == [0, 0, 0]


def test_spread_repeats_a_vector_over_the_axis_before_the_last():
    vector = np.arange(3.0)
    assert spread(vector, np.empty((2, 3)), Pool()) is vector
    np.testing.assert_array_equal(spread(vector, np.empty((2, 5, 4, 3)), Pool()), np.tile(vector, (4, 1)))


@pytest.mark.parametrize("size", [0, 1, BLOCK, 3 * BLOCK + 7])
def test_sum_of_squares(size):
    vector = np.random.default_rng(2).normal(size=size).astype(np.float32)
    exact = fsum(float(value) ** 2 for value in vector)
    assert float(sum_of_squares(vector)) == pytest.approx(exact, rel=1e-6)
