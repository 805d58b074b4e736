"""Activations and their derivatives against the formulas of their papers, one number at a time."""

from math import erf, exp, expm1, log1p, pi, sqrt, tanh

import numpy as np
import pytest

from mpinn.array import ops
from mpinn.array.activations import ACTIVATIONS
from mpinn.array.erf import erf as erf_of_arrays
from mpinn.array.pool import Pool

ALPHA, SCALE = 1.6732632423543772, 1.0507009873554805


def sigmoid(z):
    return 1 / (1 + exp(-z))


def softplus(z):
    return max(z, 0) + log1p(exp(-abs(z)))


FORMULAS = {
    "identity": (lambda z: z, lambda z: 1),
    "sigmoid": (sigmoid, lambda z: sigmoid(z) * sigmoid(-z)),
    "tanh": (tanh, lambda z: 1 - tanh(z) ** 2),
    "relu": (lambda z: max(z, 0), lambda z: z > 0),
    "leaky_relu": (lambda z: z if z > 0 else 0.01 * z, lambda z: 1 if z > 0 else 0.01),
    "elu": (lambda z: z if z > 0 else expm1(z), lambda z: 1 if z > 0 else exp(z)),
    "selu": (
        lambda z: SCALE * (z if z > 0 else ALPHA * expm1(z)),
        lambda z: SCALE * (1 if z > 0 else ALPHA * exp(z)),
    ),
    "gelu": (
        lambda z: z * (1 + erf(z / sqrt(2))) / 2,
        lambda z: (1 + erf(z / sqrt(2))) / 2 + z * exp(-z * z / 2) / sqrt(2 * pi),
    ),
    "hardshrink": (lambda z: z if abs(z) > 0.5 else 0, lambda z: abs(z) > 0.5),
    "mish": (
        lambda z: z * tanh(softplus(z)),
        lambda z: tanh(softplus(z)) + z * sigmoid(z) * (1 - tanh(softplus(z)) ** 2),
    ),
}
POINTS = np.concatenate([np.linspace(-6.01, 6.02, 101), [-0.5, 0.0, 0.5, 30.0, -30.0]])


def test_every_activation_has_its_formula():
    assert set(FORMULAS) == set(ACTIVATIONS)


@pytest.mark.parametrize(("dtype", "tolerance"), [("f8", 1e-13), ("f4", 3e-6)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_slopes(name, dtype, tolerance):
    value, slope = FORMULAS[name]
    z = POINTS.astype(dtype)
    y, kept = ops.bias_activation(z.copy(), None, name, Pool())
    dy = np.linspace(0.5, 2, len(z)).astype(dtype)
    dz = ops.activation_backward(name, kept, dy, Pool())
    np.testing.assert_allclose(y, [value(float(v)) for v in z], rtol=tolerance, atol=tolerance)
    expected = np.array([slope(float(v)) for v in z], float) * dy
    np.testing.assert_allclose(dz, expected, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_large_arguments_stay_finite(name, dtype):
    z = np.array([-1e4, -800, -90, 90, 800, 1e4], dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y, kept = ops.bias_activation(z.copy(), None, name, Pool())
        dz = ops.activation_backward(name, kept, np.ones_like(z), Pool())
    assert np.isfinite(y).all()
    assert np.isfinite(dz).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_is_not_a_number_stays_so(name):
    with np.errstate(invalid="ignore"):
        y, _ = ops.bias_activation(np.full(3, np.nan), None, name, Pool())
    assert np.isnan(y).all()


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 7, 3)])
def test_the_bias_is_added_to_every_row(shape):
    z, bias = np.random.default_rng(0).normal(size=shape), np.array([1.0, -2.0, 3.0])
    expected = np.maximum(z + bias, 0)
    np.testing.assert_array_equal(ops.bias_activation(z, bias, "relu", Pool())[0], expected)


def test_error_function():
    x = np.linspace(-4, 4, 50)
    out = np.empty_like(x)
    erf_of_arrays(x, out=out)
    np.testing.assert_allclose(out, [erf(value) for value in x], rtol=1e-14)
