"""The parareal networks of the models: shapes, names, F(0) = 0, and how large predictors and coarse networks are."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from mpinn.errors import InputError
from mpinn.models.cnn import CNN
from mpinn.models.layers import Chain, Layers
from mpinn.models.mlp import MLP
from mpinn.models.model import Model
from mpinn.models.parareal import parareal, suppliers
from mpinn.models.resnet import ResNet
from mpinn.models.vgg import VGG
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.flatten import Flatten
from mpinn.nn.layer import Pass
from mpinn.nn.layout import Layout
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm
from mpinn.nn.part import build_part
from mpinn.nn.pool import GlobalAveragePool, MaxPool2d

IMAGE = (32, 32, 3)


def written(*layers):
    named = [(f"layer{number}", layer) for number, layer in enumerate(layers)]
    return Layers(layers=Chain(Network(named)))


SHRINKING = (Conv2d(3, 5, padding="valid"), MaxPool2d(), Conv2d(4, 5, padding="valid"), Conv2d(4, 3))
CASES = {
    "mlp": (MLP(widths=(9, 8, 7, 6), dropout=0.2, norm="batch"), (5, 3)),
    "vgg": (VGG(depth=11), IMAGE),
    "vgg without norm": (VGG(depth=11, norm="none"), (35, 33, 1)),
    "resnet": (ResNet(depth=20), IMAGE),
    "resnet, padded": (ResNet(depth=14, shortcut="pad"), (28, 28, 1)),
    "resnet of odd images": (ResNet(depth=14), (15, 13, 2)),
    "resnet of bottlenecks": (ResNet(depth=20, block="bottleneck"), (16, 16, 3)),
    "cnn": (CNN(channels=(3, 4, 5), widths=(9, 8)), (28, 28, 1)),
    "cnn of odd images": (CNN(channels=(3, 3, 3), kernel=3, widths=(7, 6), norm="none", dropout=0.1), (19, 21, 2)),
    "layers": (written(*SHRINKING, Flatten(), Dense(9), Dense(8), Dense(4)), (28, 26, 1)),
    "layers with a mean": (
        written(Conv2d(3), Conv2d(5, 4, 3, padding=1), BatchNorm(), GlobalAveragePool(), Dense(6), Dense(4)),
        (17, 16, 2),
    ),
    "layers of vectors": (written(Dense(5, "tanh"), Dense(7), Dense(7), Dense(6), Dense(6), Dense(4)), (6,)),
}
each = pytest.mark.parametrize(("name", "count"), [*product(CASES, (2, 3, 4))])


def bounds_of(model, count):
    """About equally many layers of the body in every block."""
    body = len(model.network) - model.head
    first = max(model.stem, 1)
    return (0, *(first + (body - first) * j // count for j in range(1, count)), len(model.network))


def made(name, count, form="residual", iterations=1):
    options, shape = CASES[name]
    model = options.build(shape, 4)
    return parareal(options, model, bounds_of(model, count), form, iterations), model


@each
def test_every_block_fits_the_next_one(name, count):
    network, model = made(name, count)
    assert network.output_shape(model.shape) == (4,)
    names = [way for block in network.blocks for way, _ in block.ways]
    expected = [f"{kind}{j}" for j in range(2, count + 1) for kind in ("predictor", "fine", "coarse")]
    assert names == ["fine1", *expected]
    fines = [name for block in network.blocks for name in block.fine.names] + [*network.blocks[-1].head.names]
    assert fines == [*model.network.names]


@pytest.mark.parametrize("name", CASES)
def test_more_sweeps_need_fewer_predictors(name):
    for iterations, predictors in ((1, [2, 3]), (2, [2]), (3, [])):
        network, _ = made(name, 3, iterations=iterations)
        assert [block.number for block in network.blocks if block.predictor] == predictors
        assert [block.number for block in network.blocks if block.coarse] == ([2, 3] if iterations < 3 else [])


@each
def test_coarse_networks_are_zero_at_zero_and_have_both_signs(name, count):
    network, model = made(name, count)
    part = build_part("network", network, model.shape, np.dtype("f8"), ())
    part.initialize(3)
    part.weights += 0.01 * np.random.default_rng(0).normal(size=part.weights.shape)
    for block in network.blocks[1:]:
        views = part.weight_views[f"coarse{block.number}"]
        error = np.random.default_rng(1).normal(size=(5, *block.inputs))
        found, _ = block.coarse.forward(views, {}, error, Pass())
        assert (found > 0).any()
        assert (found < 0).any()
        zero, _ = block.coarse.forward(views, {}, np.zeros_like(error), Pass())
        np.testing.assert_array_equal(zero, 0)
        assert not block.coarse.state(block.inputs)


@pytest.mark.parametrize("name", CASES)
def test_fine_blocks_and_head_start_as_the_model_does(name):
    network, model = made(name, 3)
    part = build_part("network", network, model.shape, np.dtype("f4"), ())
    whole = build_part("network", model.network, model.shape, np.dtype("f4"), ())
    part.initialize(3)
    whole.initialize(3)
    own = {entry.path: part.weights[entry.slice] for entry in part.layout}
    fine = {path[1:] if path[0].startswith("fine") else path: values for path, values in own.items()}
    for entry in whole.layout:
        np.testing.assert_array_equal(fine[entry.path], whole.weights[entry.slice])
    added = {path: values for path, values in own.items() if path[0].startswith(("coarse", "predictor"))}
    drawn = [values[:4].tobytes() for path, values in added.items() if path[-1] == "weight"]
    assert len({*drawn}) == len(drawn) > 3


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("mlp", "residual"),
        ("mlp", "difference"),
        ("vgg", "residual"),
        ("resnet of odd images", "difference"),
        ("resnet of bottlenecks", "residual"),
    ],
)
def test_it_learns(name, form):
    network, model = made(name, 3, form)
    part = build_part("network", network, model.shape, np.dtype("f4"), ())
    part.initialize(0)
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(6, *model.shape)).astype("f4"), np.arange(6) % 4
    losses = []
    for step in range(4):
        context = Pass(part.pool, batch=step)
        y, saved = network.forward(part.weight_views, part.state_views, x, context)
        loss, dy = CrossEntropy()(y, target, context)
        _, finish = network.backward(part.weight_views, saved, dy, context)
        part.grads.fill(np.nan)
        finish(part.grad_views)
        values = np.concatenate([part.grads[entry.slice] for entry in part.layout])
        assert np.isfinite(values).all()
        for entry in part.layout:
            part.weights[entry.slice] -= 0.001 * part.grads[entry.slice]
        losses.append(float(loss))
    assert min(losses[-2:]) < losses[0]


def test_the_size_of_coarse_networks_and_predictors():
    """By hand, for ResNet-20 cut where the image halves."""
    options = ResNet(depth=20)
    model = options.build(IMAGE, 10)
    network = parareal(options, model, (0, 4, 7, len(model.network)), "residual")
    counts = {}
    for entry in Layout(network.parameters(model.shape), "f4"):
        counts[entry.path[0]] = counts.get(entry.path[0], 0) + entry.size
    assert counts["coarse2"] == 9 * 16 * 32 + 9 * 32 * 32 + 16 * 32
    assert counts["coarse3"] == 9 * 32 * 64 + 9 * 64 * 64 + 32 * 64
    assert counts["predictor2"] == 3 * 16 + 2 * 16
    assert counts["predictor3"] == 3 * 32 + 2 * 32
    assert counts["output"] == 650


def test_kernels_are_as_large_as_a_change_of_size_needs():
    shapes = ((28, 28, 1), (24, 24, 3), (12, 12, 3), (8, 8, 4))
    options = CASES["layers"][0]
    layers = dict(suppliers(options)[0](options, shapes))
    assert [(layers[f"conv{n}"].kernel, layers[f"conv{n}"].stride) for n in (1, 2, 3)] == [
        ((5, 5), (1, 1)), ((3, 3), (2, 2)), ((5, 5), (1, 1)),
    ]  # fmt: skip
    assert [layer.activation for layer in layers.values()] == ["relu", "relu", "identity"]


def test_what_cannot_be_made_is_refused():
    grows = written(Conv2d(3), Conv2d(3, padding=3), Flatten(), Dense(4))
    with pytest.raises(InputError, match=r"schedule\.name: parareal can imitate layers of images that do not grow"):
        parareal(grows, Model(grows.layers.network, (8, 8, 1), 0, 1), (0, 1, 4), "residual")

    @dataclass(frozen=True)
    class Other:
        pass

    with pytest.raises(InputError, match=r"schedule\.name: parareal needs a model .*: cnn, layers, mlp, resnet, vgg"):
        suppliers(Other())
    deep = MLP(widths=(4, 3))
    with pytest.raises(ValueError, match="fine block 2 has no layer besides the head"):
        parareal(deep, deep.build((3,), 2), (0, 3, 4), "residual")
