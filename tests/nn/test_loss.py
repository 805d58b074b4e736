"""Losses against their definitions, one sample at a time."""

from math import exp, fsum, log

import numpy as np
import pytest
from layer_examples import noise

from mpinn.nn.layer import Pass
from mpinn.nn.loss import LOSSES, CrossEntropy, SquaredError, correct


def cross_entropy(logits, target, smoothing):
    total = []
    for row, wanted in zip(logits, target, strict=True):
        norm = log(fsum(exp(value) for value in row))
        share = [smoothing / len(row) + (1 - smoothing) * (c == wanted) for c in range(len(row))]
        total.append(-fsum(p * (value - norm) for p, value in zip(share, row, strict=True)))
    return fsum(total)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.8])
@pytest.mark.parametrize("samples", [1, 7])
def test_cross_entropy_is_its_definition(samples, smoothing):
    logits, target = noise((samples, 5)) * 3, np.arange(samples) % 5
    loss, dy = CrossEntropy(smoothing)(logits, target, Pass())
    assert loss == pytest.approx(cross_entropy(logits, target, smoothing), rel=1e-12)
    np.testing.assert_allclose(dy.sum(axis=1), 0, atol=1e-14)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_cross_entropy_of_huge_logits_is_finite(dtype):
    logits = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4]], dtype)
    loss, dy = CrossEntropy()(logits, np.array([1, 2]), Pass())
    assert loss == pytest.approx(2e4 + log(2), rel=1e-6)
    np.testing.assert_allclose(dy, [[1, -1, 0], [0, 0.5, -0.5]], atol=1e-7)


def test_squared_error_of_classes_is_that_of_one_hot_rows():
    y, target = noise((6, 4)), np.array([0, 1, 2, 3, 0, 1])
    for one, other in zip(SquaredError()(y, target, Pass()), SquaredError()(y, np.eye(4)[target], Pass()), strict=True):
        np.testing.assert_array_equal(one, other)
    loss, _ = SquaredError()(y, np.eye(4)[target], Pass())
    assert loss == pytest.approx(fsum(((y - np.eye(4)[target]) ** 2).ravel()) / 2, rel=1e-12)


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(0.2), SquaredError()])
def test_pieces_of_a_batch_add_up_and_an_empty_one_adds_nothing(loss):
    y, target = noise((5, 4)), np.array([0, 3, 2, 1, 0])
    whole, dy = loss(y, target, Pass())
    parts = [loss(y[part], target[part], Pass()) for part in (slice(0, 0), slice(0, 2), slice(2, 5))]
    assert sum(value for value, _ in parts) == pytest.approx(whole, rel=1e-13)
    np.testing.assert_allclose(np.concatenate([piece for _, piece in parts]), dy, rtol=1e-13)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_changes_none_of_its_inputs_and_sums_in_float64(name):
    y, target = noise((5, 4), dtype="f4"), np.array([0, 3, 2, 1, 0])
    before = y.copy(), target.copy()
    loss, dy = LOSSES[name]()(y, target, Pass())
    assert (loss.dtype, loss.shape, dy.dtype) == (np.float64, (), np.float32)
    np.testing.assert_array_equal(y, before[0])
    np.testing.assert_array_equal(target, before[1])


def test_correct_counts_rows_whose_maximum_is_in_place():
    y = np.array([[1, 3, 2], [5, 1, 1], [0, 0, 9]])
    assert correct(y, np.array([1, 0, 0]), Pass()) == 2
    assert correct(y, np.eye(3)[[1, 2, 2]], Pass()) == 2
    assert correct(y[:0], np.array([], int), Pass()) == 0
