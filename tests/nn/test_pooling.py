"""Pooling against loops."""

import numpy as np
import pytest
from layer_examples import EXAMPLES, build, noise, points, title

from mpinn.nn.pool import AveragePool2d, GlobalAveragePool, MaxPool2d


def windows(layer, shape):
    """For each output position: the rows and columns of its window, those outside the image included."""
    kernel = np.broadcast_to(layer.kernel, 2)
    stride = kernel if layer.stride is None else np.broadcast_to(layer.stride, 2)
    padding = np.broadcast_to(layer.padding, 2)
    for i, j in np.ndindex(layer.output_shape(shape)[:2]):
        yield (i, j), [(i * stride[0] - padding[0] + u, j * stride[1] - padding[1] + v) for u, v in np.ndindex(*kernel)]


def loops(layer, x, dy):
    """y and dx, one window of one channel at a time."""
    high, wide, channels = x.shape[1:]
    y, dx = np.zeros_like(dy), np.zeros_like(x)
    for (i, j), window in windows(layer, x.shape[1:]):
        inside = [(r, c) for r, c in window if 0 <= r < high and 0 <= c < wide]
        for b, channel in np.ndindex(len(x), channels):
            if isinstance(layer, MaxPool2d):
                best = max(inside, key=lambda place: x[b, *place, channel])
                y[b, i, j, channel] = x[b, *best, channel]
                dx[b, *best, channel] += dy[b, i, j, channel]
                continue
            for r, c in inside:
                y[b, i, j, channel] += x[b, r, c, channel] / len(window)
                dx[b, r, c, channel] += dy[b, i, j, channel] / len(window)
    return y, dx


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("layer", "shape"), EXAMPLES["max_pool"] + EXAMPLES["average_pool"], ids=title)
def test_pooling_is_what_loops_give(layer, shape, tied):
    x, dy = points((2, *shape)), noise((2, *layer.output_shape(shape)))
    if tied:
        x = np.sign(x)
    y, dx, _ = build(layer, shape).gradients(x, dy, wants_dx=True)
    expected, expected_dx = loops(layer, x, dy)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-12, atol=1e-15)


def test_the_first_of_equal_maxima_gets_the_gradient():
    _, dx, _ = build(MaxPool2d(), (2, 2, 1)).gradients(np.ones((1, 2, 2, 1)), np.ones((1, 1, 1, 1)), wants_dx=True)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1, 0], [0, 0]])


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 1)])
def test_a_maximum_does_not_hide_what_is_not_a_number(place):
    x = points((1, 2, 2, 1))
    x[0, *place, 0] = np.nan
    assert np.isnan(build(MaxPool2d(), (2, 2, 1)).forward(x)[0]).all()


def test_padding_never_wins_a_maximum():
    y, _, _ = build(MaxPool2d(3, 1, 1), (3, 3, 2)).forward(np.full((1, 3, 3, 2), -5.0))
    assert (y == -5).all()


def test_padding_counts_in_the_divisor():
    y, _, _ = build(AveragePool2d(2, 2, 1), (2, 2, 1)).forward(np.full((1, 2, 2, 1), 8.0))
    np.testing.assert_array_equal(y[0, :, :, 0], [[2, 2], [2, 2]])


def test_a_window_may_have_more_places_than_a_byte_counts():
    x, dy = points((1, 17, 17, 1)), np.ones((1, 1, 1, 1))
    _, dx, _ = build(MaxPool2d(17), (17, 17, 1)).gradients(x, dy, wants_dx=True)
    assert np.argmax(dx) == np.argmax(x)
    assert dx.sum() == 1


def test_global_average():
    x, dy = points((2, 3, 5, 4)), noise((2, 4))
    y, dx, _ = build(GlobalAveragePool(), (3, 5, 4)).gradients(x, dy, wants_dx=True)
    for b, channel in np.ndindex(2, 4):
        assert y[b, channel] == pytest.approx(sum(x[b, :, :, channel].ravel()) / 15, rel=1e-12)
        np.testing.assert_allclose(dx[b, :, :, channel], dy[b, channel] / 15, rtol=1e-12)
