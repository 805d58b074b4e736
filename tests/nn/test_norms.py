"""Normalisation against its definition in float64."""

from fractions import Fraction

import numpy as np
import pytest
from layer_examples import build, noise, points

from mpinn.nn.norm import BatchNorm, LayerNorm


def exact_moments(column):
    """Mean and sum of squared deviations in exact arithmetic."""
    values = [Fraction(float(value)) for value in column]
    mean = sum(values) / len(values)
    return float(mean), float(sum((value - mean) ** 2 for value in values))


@pytest.mark.parametrize("shape", [(3,), (4, 5, 3)])
@pytest.mark.parametrize("samples", [1, 2, 9])
def test_training_normalises_by_the_batch_and_follows_it(shape, samples):
    layer = BatchNorm(momentum=0.3, epsilon=1e-3)
    built = build(layer, shape)
    before = {name: value.copy() for name, value in built.state.items()}
    x = points((samples, *shape))
    y, _, _ = built.forward(x)
    for channel in range(3):
        column = x[..., channel].ravel()
        mean, squares = exact_moments(column)
        variance = squares / len(column)
        unbiased = squares / max(1, len(column) - 1)
        expected = (x[..., channel] - mean) / np.sqrt(variance + 1e-3)
        expected = expected * built.weights["scale"][channel] + built.weights["shift"][channel]
        np.testing.assert_allclose(y[..., channel], expected, rtol=1e-12, atol=1e-13)
        running_mean = 0.7 * before["mean"][channel] + 0.3 * mean
        running_variance = 0.7 * before["variance"][channel] + 0.3 * unbiased
        assert built.state["mean"][channel] == pytest.approx(running_mean, rel=1e-12)
        assert built.state["variance"][channel] == pytest.approx(running_variance, rel=1e-12)


@pytest.mark.parametrize("options", [{"update_state": False}, {"training": False}, {"training": False, "gradients": 1}])
def test_running_statistics_stand_still(options):
    built = build(BatchNorm(), (4,))
    before = {name: value.copy() for name, value in built.state.items()}
    built.gradients(points((6, 4)), noise((6, 4)), **options)
    for name, value in before.items():
        np.testing.assert_array_equal(built.state[name], value)


def test_recomputation_still_uses_the_statistics_of_the_batch():
    built = build(BatchNorm(), (4,))
    x = points((6, 4))
    again = built.forward(x, update_state=False)[0]
    np.testing.assert_array_equal(again, built.forward(x)[0])


def test_evaluation_uses_the_running_statistics():
    built = build(BatchNorm(), (3,))
    x = points((2, 3))
    mean, deviation = built.state["mean"], np.sqrt(built.state["variance"] + 1e-5)
    expected = (x - mean) / deviation * built.weights["scale"] + built.weights["shift"]
    np.testing.assert_allclose(built.forward(x, training=False)[0], expected, rtol=1e-12)


def test_a_backward_pass_does_not_see_statistics_that_moved_after_its_forward_pass():
    built = build(BatchNorm(), (3,))
    x, dy = points((2, 3)), noise((2, 3))
    options = {"training": False, "gradients": True, "wants_dx": True}
    expected = built.gradients(x, dy, **options)
    _, saved, context = built.forward(x, **options)
    built.forward(points((5, 3), 9))
    dx, _ = built.layer.backward(built.weights, saved, dy, context)
    np.testing.assert_array_equal(dx, expected[1])


@pytest.mark.parametrize("offset", [0, 1e3, 1e4])
def test_float32_variance_survives_a_large_mean(offset):
    # E[x^2] - E[x]^2 in float32 would lose it altogether at 1e4; float32 keeps x itself to 1e4 * 6e-8
    layer = BatchNorm(momentum=1.0)
    built = build(layer, (16, 16, 8), "float32")
    x = (noise((32, 16, 16, 8)) + offset).astype(np.float32)
    built.forward(x)
    wide = x.astype(np.float64).reshape(-1, 8)
    np.testing.assert_allclose(built.state["mean"], wide.mean(axis=0), rtol=2e-7, atol=1e-6)
    np.testing.assert_allclose(built.state["variance"], wide.var(axis=0, ddof=1), rtol=1e-6)


@pytest.mark.parametrize("shape", [(6,), (3, 2, 6), (1,)])
def test_layer_norm_is_its_definition_for_every_position(shape):
    built = build(LayerNorm(epsilon=1e-3), shape)
    x = points((2, *shape))
    y, _, _ = built.forward(x)
    for place in np.ndindex(x.shape[:-1]):
        mean, squares = exact_moments(x[place])
        normal = (x[place] - mean) / np.sqrt(squares / shape[-1] + 1e-3)
        np.testing.assert_allclose(y[place], normal * built.weights["scale"] + built.weights["shift"], rtol=1e-12)


@pytest.mark.parametrize("layer", [BatchNorm(), LayerNorm()])
def test_a_fresh_norm_leaves_scale_and_shift_alone(layer):
    built = build(layer, (5,))
    layer.initialize(built.weights, built.state, lambda path: np.random.default_rng(0))
    assert (built.weights["scale"] == 1).all()
    assert not built.weights["shift"].any()
    if built.state:
        assert (built.state["variance"] == 1).all()
        assert not built.state["mean"].any()
