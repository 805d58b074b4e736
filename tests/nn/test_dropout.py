"""Dropout: its masks are a function of the key and of the place in the global batch, and of nothing else."""

import numpy as np
import pytest
from layer_examples import build, noise

from mpinn.array import ops
from mpinn.array.pool import Pool
from mpinn.nn.dense import Dense
from mpinn.nn.dropout import Dropout
from mpinn.nn.layer import Pass
from mpinn.nn.network import Network
from mpinn.nn.residual import Residual


def mask(shape, rate=0.5, rows=(0, 1), path=(4,), **options):
    built = build(Dropout(rate), shape[1:])
    return built.forward(np.ones(shape), rows=rows, path=list(path), **options)[0] != 0


def test_what_is_kept_is_scaled_and_its_gradient_too():
    built = build(Dropout(0.25), (50,))
    x, dy = noise((8, 50), 1), noise((8, 50), 2)
    y, dx, _ = built.gradients(x, dy, wants_dx=True)
    keep = y != 0
    np.testing.assert_allclose(y, np.where(keep, x / 0.75, 0), rtol=1e-15)
    np.testing.assert_allclose(dx, np.where(keep, dy / 0.75, 0), rtol=1e-15)


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0.0, True)])
def test_identity_in_evaluation_and_at_rate_zero(rate, training):
    x = noise((3, 4))
    y, saved, _ = build(Dropout(rate), (4,)).forward(x, training=training)
    np.testing.assert_array_equal(y, x)
    assert saved == ()


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(100, 1000), (4, 50, 100, 5), (2, 50000), (100000, 1)])
def test_the_share_that_is_kept_is_right_within_four_sigma(shape, rate):
    count = np.prod(shape)
    kept = mask(shape, rate).sum()
    assert abs(kept - count * (1 - rate)) < 4 * np.sqrt(count * rate * (1 - rate))


def test_columns_rows_and_masks_are_not_correlated():
    masks = np.stack([mask((200, 100), batch=batch) for batch in range(5)]).astype(float) - 0.5
    sigma = 0.25 * np.sqrt(199 * 100)
    for a, b in ((masks[:, 1:], masks[:, :-1]), (masks[1:], masks[:-1]), (masks[:, :, 1:], masks[:, :, :-1])):
        assert abs((a * b).sum(axis=(-2, -1))).max() < 4 * sigma


@pytest.mark.parametrize("shape", [(12, 7), (12, 3, 5, 2), (12, 40000)])
def test_masks_do_not_depend_on_how_the_batch_is_cut(shape):
    whole = mask(shape)
    np.testing.assert_array_equal(np.concatenate([mask((5, *shape[1:])), mask((7, *shape[1:]), rows=(5, 1))]), whole)
    for rank in range(3):
        np.testing.assert_array_equal(mask((4, *shape[1:]), rows=(rank, 3)), whole[rank::3])


@pytest.mark.parametrize("other", [{"seed": 1}, {"batch": 1}, {"path": (5,)}, {"path": (4, 0)}])
def test_seed_batch_and_layer_key_the_mask(other):
    assert (mask((20, 20)) == mask((20, 20))).all()
    different = (mask((20, 20)) != mask((20, 20), **other)).mean()
    assert 0.4 < different < 0.6


def test_body_and_projection_of_a_residual_draw_different_masks():
    ways = Network([("dropout", Dropout(0.5))])
    x = np.ones((40, 40))
    y, _, _ = build(Residual(ways, ways), (40,)).forward(x)
    assert set(np.unique(y)) == {0.0, 2.0, 4.0}


def test_a_slice_of_a_network_draws_the_masks_of_the_whole():
    network = Network([("a", Dropout(0.5)), ("b", Dense(6)), ("c", Dropout(0.5))])
    built = build(network, (6,))
    x = np.ones((9, 6))
    whole, _, _ = built.forward(x)
    half, _ = network[0:2].forward(built.weights, {}, x, Pass())
    parts, _ = network[2:3].forward(built.weights, {}, half, Pass())
    np.testing.assert_array_equal(parts, whole)


def test_the_mask_is_pinned():
    # a checkpoint of a run with dropout resumes exactly only while this stays as it is
    keep = np.empty((2, 8), bool)
    ops.dropout_mask(keep, 0.5, (123, 456), (3, 2), Pool())
    assert ["".join(str(int(bit)) for bit in row) for row in keep] == ["10000010", "11100000"]
