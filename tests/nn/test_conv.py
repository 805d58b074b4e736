"""Convolution against loops, and cut into blocks of every kind."""

import numpy as np
import pytest
from layer_examples import EXAMPLES, build, noise, points, title

from mpinn.array import im2col
from mpinn.nn.conv import Conv2d
from mpinn.nn.layer import Pass


def padding_of(layer):
    kernel = np.broadcast_to(layer.kernel, 2)
    if layer.padding == "same":
        return [(size - 1) // 2 for size in kernel]
    return np.broadcast_to(0 if layer.padding == "valid" else layer.padding, 2)


def loops(x, weight, stride, padding):
    """z[b, i, j, o] = sum over the window and the channels, one element at a time."""
    (high, wide), kernel = x.shape[1:3], weight.shape[:2]
    size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip((high, wide), padding, kernel, stride, strict=True)]
    z = np.zeros((len(x), *size, weight.shape[3]))
    for b, i, j, o in np.ndindex(z.shape):
        for u, v in np.ndindex(kernel):
            row, column = i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]
            if 0 <= row < high and 0 <= column < wide:
                z[b, i, j, o] += np.dot(x[b, row, column], weight[u, v, :, o])
    return z


CONVS = [(layer, shape) for layer, shape in EXAMPLES["conv"] if layer.activation == "identity"]


@pytest.mark.parametrize(("layer", "shape"), CONVS, ids=title)
def test_forward_is_the_sum_over_windows(layer, shape):
    built = build(layer, shape)
    x = noise((2, *shape))
    expected = loops(x, built.weights["weight"], np.broadcast_to(layer.stride, 2), padding_of(layer))
    expected += built.weights.get("bias", 0)
    np.testing.assert_allclose(built.forward(x)[0], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("budget", [1, 1000, 5000, 20000, 1 << 20])
@pytest.mark.parametrize(("layer", "shape"), CONVS, ids=title)
def test_blocks_and_bands_change_nothing(monkeypatch, layer, shape, budget):
    built = build(layer, shape)
    x, dy = noise((5, *shape)), noise((5, *layer.output_shape(shape)))
    whole = built.gradients(x, dy, wants_dx=True)
    monkeypatch.setattr(im2col, "COLUMN_BYTES", budget)
    monkeypatch.setattr(im2col, "_LEAST_ROWS", 1)
    for expected, found in zip(whole, built.gradients(x, dy, wants_dx=True), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("high", "wide"), [(5, 7), (6, 8), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_same_padding_divides_the_size_by_the_stride(kernel, stride, high, wide):
    shape = Conv2d(4, kernel, stride).output_shape((high, wide, 2))
    assert shape == (-(-high // stride), -(-wide // stride), 4)


def test_an_input_that_is_not_contiguous_is_taken_as_it_is():
    built = build(Conv2d(2), (4, 5, 3))
    x = points((2, 3, 4, 5)).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(built.forward(x)[0], built.forward(np.ascontiguousarray(x))[0])


def test_initial_weights_have_the_variance_of_their_fan_in():
    built = build(Conv2d(64, 3, initial="he"), (8, 8, 16))
    built.layer.initialize(built.weights, {}, lambda path: np.random.default_rng(1))
    assert built.weights["weight"].var() == pytest.approx(2 / (9 * 16), rel=0.05)
    assert not built.weights["bias"].any()


def test_adjoint():
    # <conv(x), z> = <x, conv'(z)> for the linear part
    layer = Conv2d(3, (3, 5), stride=(2, 1), padding=(1, 2), bias=False)
    built = build(layer, (7, 6, 2))
    x, z = noise((3, 7, 6, 2), 1), noise((3, *layer.output_shape((7, 6, 2))), 2)
    y, saved, _ = built.forward(x)
    dx, _ = layer.backward(built.weights, saved, z, Pass(wants_dx=True))
    assert np.vdot(y, z) == pytest.approx(np.vdot(x, dx), rel=1e-12)
