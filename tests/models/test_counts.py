"""How many parameters the models have: counted by hand from the papers' tables, and as published.

Published: ResNet-20 to 110 in He et al. (2016a), table 6, with option A; ResNet-164 and 1001 in He et al. (2016b),
table 4. The figure for ResNet-1001, 10.2 M, seems to leave out scales and shifts of the norms, with which it is 10.3 M.
VGG for CIFAR has no paper; 14.7 M for VGG-16 is what its published implementations have.
"""

from itertools import pairwise

import pytest

from mpinn.models.cnn import CNN
from mpinn.models.resnet import ResNet
from mpinn.models.vgg import VGG
from mpinn.nn.layout import Layout

CIFAR = (32, 32, 3)


def entries(options, shape=CIFAR, outputs=10):
    return list(Layout(options.build(shape, outputs).network.parameters(shape), "f4"))


def count(options, **of):
    return sum(entry.size for entry in entries(options, **of))


def norm(channels):
    return 2 * channels


def conv(kernel, inputs, outputs):
    return kernel**2 * inputs * outputs


def normed(kernel, inputs, outputs):
    return conv(kernel, inputs, outputs) + norm(outputs)


def dense(inputs, outputs):
    return inputs * outputs + outputs


def basic(depth):
    """Option A: 2n convolutions at each of 16, 32 and 64 channels after the first, and the classes."""
    n = (depth - 2) // 6
    total = normed(3, 3, 16) + dense(64, 10)
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        total += normed(3, inputs, outputs) + (2 * n - 1) * normed(3, outputs, outputs)
    return total


def bottlenecks(depth):
    """Weights of the convolutions and of the classes, and scales and shifts of the norms."""
    n = (depth - 2) // 9
    weights, norms = conv(3, 3, 16) + dense(256, 10), norm(256)
    for inputs, outputs in ((16, 64), (64, 128), (128, 256)):
        narrow = outputs // 4
        rest = conv(3, narrow, narrow) + conv(1, narrow, outputs)
        weights += conv(1, inputs, narrow) + (n - 1) * conv(1, outputs, narrow) + n * rest + conv(1, inputs, outputs)
        norms += norm(inputs) + (n - 1) * norm(outputs) + 2 * n * norm(narrow)
    return weights, norms


@pytest.mark.parametrize(
    ("depth", "published", "exact"),
    [(20, 0.27, 269722), (32, 0.46, 464154), (44, 0.66, 658586), (56, 0.85, 853018), (110, 1.7, 1727962)],
)
def test_resnets_of_basic_blocks(depth, published, exact):
    found = count(ResNet(depth=depth, shortcut="pad"))
    assert found == basic(depth) == exact
    assert round(found / 1e6, 2 if published < 1 else 1) == published
    # option B adds two 1x1 convolutions with their norms
    assert count(ResNet(depth=depth)) == found + normed(1, 16, 32) + normed(1, 32, 64)


@pytest.mark.parametrize(("depth", "published", "exact"), [(164, 1.7, 1703258), (1001, 10.2, 10327706)])
def test_resnets_of_bottlenecks(depth, published, exact):
    weights, norms = bottlenecks(depth)
    found = entries(ResNet(depth=depth))
    assert sum(entry.size for entry in found if entry.path[-1] in ("weight", "bias")) == weights
    assert sum(entry.size for entry in found) == weights + norms == exact
    assert round(weights / 1e6, 1) == published


@pytest.mark.parametrize(
    ("depth", "widths", "exact"),
    [
        (11, (64, 128, 256, 256, 512, 512, 512, 512), 9228362),
        (13, (64, 64, 128, 128, 256, 256, 512, 512, 512, 512), 9413066),
        (16, (64, 64, 128, 128, *3 * (256,), *6 * (512,)), 14724042),
        (19, (64, 64, 128, 128, *4 * (256,), *8 * (512,)), 20035018),
    ],
)
def test_vgg(depth, widths, exact):
    channels = (3, *widths)
    assert len(widths) == depth - 3
    found = count(VGG(depth=depth))
    assert found == sum(normed(3, *pair) for pair in pairwise(channels)) + dense(512, 10) == exact
    # without norms a convolution has a bias in place of scale and shift
    assert count(VGG(depth=depth, norm="none")) == found - sum(widths)


def test_vgg_16_for_cifar_100():
    assert round(count(VGG(depth=16)) / 1e6, 1) == 14.7
    assert count(VGG(depth=16), outputs=100) == 14724042 + 90 * 513


def test_the_default_cnn_on_mnist():
    expected = normed(5, 1, 32) + normed(5, 32, 64) + 7 * 7 * 64 * 128 + norm(128) + dense(128, 10)
    assert count(CNN(), shape=(28, 28, 1)) == expected == 455146
    bare = CNN(channels=(6, 16), widths=(120, 84), norm="none")
    lenet = conv(5, 1, 6) + 6 + conv(5, 6, 16) + 16 + dense(784, 120) + dense(120, 84) + dense(84, 10)
    assert count(bare, shape=(28, 28, 1)) == lenet


@pytest.mark.parametrize("options", [ResNet(), ResNet(depth=164), VGG(), CNN()], ids=repr)
def test_nothing_before_a_norm_has_a_bias(options):
    biased = [entry.name for entry in entries(options) if entry.path[-1] == "bias"]
    assert biased == ["output/bias"]
