"""The blocks: which layers they hold, and what they compute when the weights on one of their ways are zero."""

import numpy as np
import pytest
from model_examples import forward, noise

from mpinn.models.blocks import conv_block, dense_block
from mpinn.models.resnet import ResNet, basic_block, bottleneck_block
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.identity import PaddedIdentity
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm, LayerNorm
from mpinn.nn.part import build_part

IMAGE = (6, 5, 16)


def part_of(layer, shape=IMAGE):
    part = build_part("network", Network((("block", layer),)), shape, np.dtype("f8"), ())
    part.initialize(1)
    return part


def compute(part, x):
    return forward(part.network, part, x)[0]


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("pool", [False, True])
def test_a_convolution_block(norm, pool):
    block = conv_block(8, "tanh", norm, kernel=5, pool=pool)
    if norm == "none":
        assert (dict(block.layers)["conv"] if pool else block) == Conv2d(8, 5, activation="tanh", initial="lecun")
    else:
        fused = norm == "batch"
        assert block.names == ("conv", "norm", *(() if fused else ("activation",)), *(("pool",) if pool else ()))
        assert block.layers[0][1] == Conv2d(8, 5, bias=False, initial="lecun")
        assert block.layers[1][1] == (BatchNorm(activation="tanh") if fused else LayerNorm())
    assert block.output_shape((9, 8, 1)) == ((4, 4, 8) if pool else (9, 8, 8))


def test_a_dense_block():
    assert dense_block(3, "relu") == Dense(3, "relu")
    assert dense_block(3, "relu", dropout=0.1).names == ("dense", "activation", "dropout")
    normed = dense_block(3, "selu", "layer", 0.1)
    assert normed.names == ("dense", "norm", "activation", "dropout")
    assert normed.layers[0][1] == Dense(3, bias=False, initial="lecun")


@pytest.mark.parametrize(("outputs", "stride"), [(16, 1), (32, 2)])
def test_a_basic_block_with_a_body_of_zeros_is_the_rectified_shortcut(outputs, stride):
    shortcut = None if stride == 1 else Network((("pad", PaddedIdentity(outputs, stride)),))
    part = part_of(basic_block(outputs, stride, shortcut))
    part.weight_views["block"]["sum"]["body"]["norm2"]["scale"].fill(0)
    x = noise(3, *IMAGE)
    expected = np.zeros((3, *part.network.output_shape(IMAGE)))
    expected[..., :16] = np.maximum(x[:, ::stride, ::stride], 0)
    np.testing.assert_array_equal(compute(part, x), expected)


def test_a_basic_block_normalises_after_each_convolution():
    part = part_of(basic_block(16, 1, None))
    x = noise(3, *IMAGE)
    before = compute(part, x)
    for name in ("conv1", "conv2"):
        part.weight_views["block"]["sum"]["body"][name]["weight"][...] *= 7
    np.testing.assert_allclose(compute(part, x), before, rtol=1e-4, atol=1e-4)
    assert before.min() == 0


def test_a_bottleneck_with_a_body_of_zeros_is_the_identity():
    part = part_of(bottleneck_block(16, 1, None))
    part.weight_views["block"]["body"]["conv3"]["weight"].fill(0)
    x = noise(3, *IMAGE)
    np.testing.assert_array_equal(compute(part, x), x)


def test_a_bottleneck_projects_what_it_has_normalised_and_rectified():
    conv = Conv2d(32, 1, 2, bias=False)
    part = part_of(bottleneck_block(32, 2, Network((("conv", conv),))))
    views = part.weight_views["block"]["sum"]
    views["body"]["conv3"]["weight"].fill(0)
    x = noise(3, *IMAGE)
    normed = (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + 1e-5)
    expected = np.maximum(normed, 0)[:, ::2, ::2] @ views["projection"]["conv"]["weight"][0, 0]
    np.testing.assert_allclose(compute(part, x), expected, rtol=1e-10, atol=1e-12)


def test_the_kernels_of_a_bottleneck_are_1_3_1():
    weights = part_of(bottleneck_block(16, 1, None)).weight_views["block"]["body"]
    assert [weights[name]["weight"].shape for name in ("conv1", "conv2", "conv3")] == [
        (1, 1, 16, 4),
        (3, 3, 4, 4),
        (1, 1, 4, 16),
    ]


def test_a_deep_resnet_normalises_and_rectifies_its_last_sum():
    for options, names in (
        (ResNet(depth=8), ("pool", "output")),
        (ResNet(depth=11, block="bottleneck"), ("norm", "pool", "output")),
    ):
        model = options.build((8, 8, 3), 4)
        assert model.network[len(model.network) - model.head :].names == names
