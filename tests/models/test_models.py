"""What every model promises: its shapes, blocks that can be cut apart, and a gradient that is right as a whole."""

import numpy as np
import pytest
from model_examples import OUTPUTS, SMALL, built, forward, noise

from mpinn.errors import InputError
from mpinn.models.cnn import CNN
from mpinn.models.population import Population
from mpinn.models.registry import MODELS
from mpinn.models.resnet import ResNet
from mpinn.models.vgg import VGG
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.residual import Residual
from mpinn.training.choices import build_model, read_config

every = pytest.mark.parametrize(("options", "shape"), SMALL.values(), ids=SMALL)
CIFAR, MNIST = (32, 32, 3), (28, 28, 1)


def test_every_model_has_a_small_form():
    """Members of a population are compared with networks of their own, in tests/nn/test_packed.py."""
    assert {type(options) for options, _ in SMALL.values()} == set(MODELS.values()) - {Population}


@pytest.mark.parametrize(
    ("options", "shape", "blocks", "last"),
    [
        (CNN(), MNIST, 4, (128,)),
        (CNN(), CIFAR, 4, (128,)),
        (CNN(channels=(8,), widths=()), (8, 8, 1), 2, (128,)),
        (VGG(depth=11), CIFAR, 8, (1, 1, 512)),
        (VGG(depth=19), CIFAR, 16, (1, 1, 512)),
        (VGG(depth=16), (64, 48, 3), 13, (2, 1, 512)),
        (ResNet(), CIFAR, 1 + 9, (8, 8, 64)),
        (ResNet(depth=56, shortcut="pad"), MNIST, 1 + 27, (7, 7, 64)),
        (ResNet(depth=164), CIFAR, 1 + 54, (8, 8, 256)),
        (ResNet(depth=1001), MNIST, 1 + 333, (7, 7, 256)),
    ],
    ids=repr,
)
def test_stem_body_and_head(options, shape, blocks, last):
    model = options.build(shape, 10)
    framed = model.network[: len(model.network) - model.head]
    assert len(framed) == blocks
    assert framed.output_shape(shape) == last
    assert model.network.output_shape(shape) == (10,)
    assert 0 <= model.stem < blocks


@pytest.mark.parametrize(("depth", "block"), [(20, "basic"), (20, "bottleneck"), (110, "auto"), (164, "auto")])
def test_an_image_shrinks_at_the_thirds_of_a_resnet(depth, block):
    model = ResNet(depth=depth, block=block).build((32, 28, 3), 10)
    blocks = len(model.network) - model.head
    third = (blocks - 1) // 3
    shapes = [model.network[:stop].output_shape((32, 28, 3)) for stop in range(1, blocks + 1)]
    assert [shape[:2] for shape in shapes] == [(32, 28)] * (1 + third) + [(16, 14)] * third + [(8, 7)] * third
    wide = 4 if model.head == 3 else 1
    assert [shape[2] for shape in shapes] == [16] + [width * wide for width in (16, 32, 64) for _ in range(third)]


def test_every_sum_of_a_resnet_lies_inside_a_block():
    for options in (ResNet(), ResNet(depth=164)):
        model = options.build(CIFAR, 10)
        body = model.network[model.stem : len(model.network) - model.head]
        sums = [layer if isinstance(layer, Residual) else dict(layer.layers)["sum"] for _, layer in body.layers]
        assert len(sums) == len(body)
        projected = [index for index, layer in enumerate(sums) if layer.projection is not None]
        third = len(sums) // 3
        assert projected == ([0, third, 2 * third] if options.depth == 164 else [third, 2 * third])


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        (("model.name=vgg",), MNIST, r"model: conv13: pool: a 2x2 kernel is larger than .*\(1, 1, 512\)"),
        (("model.name=vgg",), (784,), r"model: conv1: conv: the layer takes images .* not samples of shape \(784,\)"),
        (("model.name=cnn",), (3, 28, 1), r"model: conv2: pool: a 2x2 kernel is larger than .*\(1, 14, 64\)"),
        (("model.name=resnet",), (28, 28), r"model: stem: conv: the layer takes images .* not samples of"),
        (("model.name=resnet", "model.depth=164"), (64,), r"model: stem: the layer takes images"),
    ],
)
def test_an_image_that_is_too_small_is_refused_by_the_layer(settings, shape, message):
    with pytest.raises(InputError, match="^" + message):
        build_model(read_config(None, settings), shape, 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("model.name=resnet", "model.depth=21"),
            "model.depth: with basic blocks the depth is 6n + 2, such as 20, 32, 44, 56 or 110, and 21 is not",
        ),
        (
            ("model.name=resnet", "model.depth=1000"),
            "model.depth: with bottleneck blocks the depth is 9n + 2, such as 164 or 1001, and 1000 is not",
        ),
        (("model.name=resnet", "model.depth=2"), "model.depth: with basic blocks the depth is 6n + 2, such as "),
        (("model.name=resnet", "model.depth=-4"), "model.depth: with basic blocks the depth is 6n + 2, such as "),
        (
            ("model.name=resnet", "model.depth=32", "model.block=bottleneck"),
            "model.depth: with bottleneck blocks the depth is 9n + 2",
        ),
        (("model.name=resnet", "model.shortcut=none"), "model.shortcut: 'none' is not one of projection, pad"),
        (("model.name=vgg", "model.depth=12"), "model.depth: expected one of 11, 13, 16, 19, got 12"),
        (("model.name=cnn", "model.kernel=4"), "model.kernel: expected an odd number, so that images keep their size"),
        (("model.name=cnn", "model.channels=[]"), "model.channels: expected a list of at least 1, each an integer of "),
        (("model.name=cnn", "model.channels=[0]"), "model.channels: expected a list of at least 1, each an integer of"),
        (("model.name=cnn", "model.dropout=1"), "model.dropout: expected a number of at least 0 and below 1, got 1"),
        (("model.name=cnn", "model.norm=group"), "model.norm: 'group' is not one of none, batch, layer"),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_its_path(settings, message):
    with pytest.raises(InputError) as caught:
        read_config(None, settings)
    assert str(caught.value).startswith(message)


@every
def test_the_gradient_of_the_whole_is_right(options, shape):
    # along one direction for each layer, in which 50 elements of each of its parameters move, and for the input
    model, part = built(options, shape)
    x, target = noise(2, *shape), np.array([1, 3])
    loss = CrossEntropy()

    def value():
        y, _, context = forward(model.network, part, x)
        return float(loss(y, target, context)[0])

    y, saved, context = forward(model.network, part, x)
    _, dy = loss(y, target, context)
    dx, finish = model.network.backward(part.weight_views, saved, dy, context)
    finish(part.grad_views)
    rng = np.random.default_rng(7)
    for name in part.weight_views:
        entries = [entry for entry in part.layout if entry.path[0] == name]
        moved = np.concatenate([entry.start + rng.integers(0, entry.size, 50) for entry in entries])
        check_slope(value, part.weights, part.grads, np.unique(moved), name)
    check_slope(value, x.reshape(-1), dx.reshape(-1), np.unique(rng.integers(0, x.size, 50)), "the input")


def check_slope(value, point, gradient, moved, place, step=1e-6):
    # in part along the gradient, so that the slope is not small beside the error of the difference
    direction = np.random.default_rng(8).normal(size=len(moved)) / np.sqrt(len(moved))
    direction += gradient[moved] / np.linalg.norm(gradient[moved])
    kept = point[moved]
    point[moved] = kept + step * direction
    above = value()
    point[moved] = kept - step * direction
    below = value()
    point[moved] = kept
    slope = float(gradient[moved] @ direction)
    assert slope > 0, place
    assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-8), place


@every
def test_the_layers_compute_in_slices_what_they_compute_as_a_whole(options, shape):
    model, part = built(options, shape, "f4")
    network, x = model.network, noise(2, *shape).astype("f4")
    whole = {"seed": 3, "batch": 5}
    y, saved, context = forward(network, part, x, **whole)
    dy = noise(*y.shape, seed=2).astype("f4")
    dx, finish = network.backward(part.weight_views, saved, dy, context)
    finish(part.grad_views)
    grads = part.grads.copy()
    for cut in range(max(1, model.stem), len(network) - model.head + 1):
        first, second = network[:cut], network[cut:]
        z, kept, passed = forward(first, part, x, **whole)
        found, kept_after, passed_after = forward(second, part, z, **whole)
        np.testing.assert_array_equal(found, y)
        dz, finish_after = second.backward(part.weight_views, kept_after, dy, passed_after)
        found_dx, finish_before = first.backward(part.weight_views, kept, dz, passed)
        np.testing.assert_array_equal(found_dx, dx)
        part.grads.fill(0)
        finish_after(part.grad_views)
        finish_before(part.grad_views)
        assert np.array_equal(part.grads, grads)
    assert y.shape == (2, OUTPUTS)
    assert dx.shape == x.shape


@every
def test_activations_keep_their_size_through_the_initial_weights(options, shape):
    model, part = built(options, shape)
    y, _, _ = forward(model.network, part, noise(8, *shape))
    assert 0.01 < y.std() < 30
