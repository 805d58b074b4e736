"""Every gradient against central differences in float64."""

import numpy as np
import pytest
from layer_examples import (
    IMAGE,
    build,
    cases,
    central_difference,
    noise,
    points,
    relative_error,
    smooth_block,
    title,
)

from mpinn.array.activations import ACTIVATIONS, SHRINK
from mpinn.nn.activation import Activation
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.dropout import Dropout
from mpinn.nn.layer import Pass
from mpinn.nn.loss import CrossEntropy, SquaredError
from mpinn.nn.norm import BatchNorm
from mpinn.nn.residual import Residual

TOLERANCE = 1e-6


def check(layer, shape, samples, seed=0, **options):
    built = build(layer, shape, seed=seed)
    x = points((samples, *shape), seed)
    dy = noise((samples, *layer.output_shape(shape)))
    y, dx, grads = built.gradients(x, dy, wants_dx=True, update_state=False, **options)
    assert y.shape == dy.shape

    def value():
        return float(np.vdot(built.forward(x, update_state=False, **options)[0], dy))

    assert relative_error(dx, central_difference(value, x)) < TOLERANCE
    slope = central_difference(value, built.vector)
    for entry in built.layout:
        assert relative_error(grads[entry.slice], slope[entry.slice]) < TOLERANCE, entry.name


@pytest.mark.parametrize(("layer", "shape", "samples"), list(cases()), ids=title)
def test_every_layer(layer, shape, samples):
    check(layer, shape, samples)


@pytest.mark.parametrize("layer", [BatchNorm(), Residual(smooth_block(2)), Dropout(0.5)], ids=title)
def test_evaluation_with_gradients(layer):
    check(layer, IMAGE, 2, training=False, gradients=True)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name):
    check(Activation(name), (19,), 5)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("layer", "shape"), [(Dense, (4,)), (Conv2d, (3, 4, 2))])
def test_every_activation_fused(layer, shape, name):
    linear = layer(3)
    for seed in range(100):
        z = build(linear, shape, seed=seed).forward(points((2, *shape), seed))[0]
        if min(np.abs(z).min(), np.abs(np.abs(z) - SHRINK).min()) > 1e-3:
            break
    else:
        pytest.fail("no seed keeps the pre-activations away from kinks")
    check(layer(3, activation=name), shape, 2, seed=seed)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (CrossEntropy(), np.array([2, 0, 3])),
        (CrossEntropy(0.1), np.array([2, 0, 3])),
        (CrossEntropy(0.9), np.array([1, 1, 1])),
        (SquaredError(), np.array([2, 0, 3])),
        (SquaredError(), noise((3, 4), 5)),
    ],
    ids=title,
)
def test_every_loss(loss, target):
    y = points((3, 4))
    value, dy = loss(y, target, Pass())
    assert value.dtype == np.float64
    assert value.shape == ()
    assert relative_error(dy, central_difference(lambda: float(loss(y, target, Pass())[0]), y)) < TOLERANCE


@pytest.mark.parametrize("target", [noise((5,), 3), noise((5, 1), 3)], ids=["row", "column"])
def test_squared_error_of_one_output(target):
    y = points((5, 1))
    _, dy = SquaredError()(y, target, Pass())
    assert relative_error(dy, central_difference(lambda: float(SquaredError()(y, target, Pass())[0]), y)) < TOLERANCE
