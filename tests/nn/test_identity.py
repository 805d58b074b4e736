"""The padded identity: which pixels it keeps, and what it can't do."""

import numpy as np
import pytest
from layer_examples import build, points

from mpinn.nn.identity import PaddedIdentity


def test_every_second_pixel_and_then_zeros():
    x = points((2, 5, 4, 3))
    built = build(PaddedIdentity(5, 2), x.shape[1:])
    y, dx, _ = built.gradients(x, np.ones((2, 3, 2, 5)), wants_dx=True)
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    assert not y[..., 3:].any()
    expected = np.zeros_like(x)
    expected[:, ::2, ::2] = 1
    np.testing.assert_array_equal(dx, expected)


def test_it_drops_no_channels_and_takes_images_only():
    with pytest.raises(ValueError, match="adds channels and drops none: it can't make 2 of 3"):
        PaddedIdentity(2).output_shape((4, 4, 3))
    with pytest.raises(ValueError, match="the layer takes images"):
        PaddedIdentity(4).output_shape((4,))
