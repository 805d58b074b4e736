"""A steady step allocates no array above 64 KB: whatever is larger comes from the pool, which stops growing."""

import gc
import tracemalloc

import numpy as np
import pytest
from layer_examples import arrays, build, noise

from mpinn.array.activations import ACTIVATIONS
from mpinn.array.ops import dropout_mask
from mpinn.array.pool import SMALL, Pool
from mpinn.nn.activation import Activation
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.dropout import Dropout
from mpinn.nn.flatten import Flatten
from mpinn.nn.identity import PaddedIdentity
from mpinn.nn.layer import Pass
from mpinn.nn.layers import LAYERS
from mpinn.nn.loss import CrossEntropy, SquaredError
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm, LayerNorm
from mpinn.nn.pool import AveragePool2d, GlobalAveragePool, MaxPool2d
from mpinn.nn.residual import Residual

LOOSE = 3 * SMALL
"""What NumPy's iteration buffers (32 KB per operand) and all small arrays may take together; below, whatever grows with
the batch, and every weight but those of two small convolutions, is larger."""

MLP = (
    [("flat", Flatten()), ("first", Dense(600)), ("norm", BatchNorm()), ("drop", Dropout(0.2))]
    + [(name, Dense(600, name)) for name in ACTIVATIONS]
    + [("layer_norm", LayerNorm()), ("classes", Dense(500))]
)
WAY = Network([("conv", Conv2d(24, (3, 5), 2, activation="gelu")), ("norm", BatchNorm()), ("drop", Dropout(0.1))])
CONVS = [
    ("stem", Conv2d(16, 3, activation="relu")),
    ("wide", Conv2d(16, 7, padding=1, bias=False)),
    ("layer_norm", LayerNorm()),
    ("act", Activation("mish")),
    ("max", MaxPool2d(3, 1, 1)),
    ("average", AveragePool2d(2, 1)),
    ("block", Residual(WAY, Network([("conv", Conv2d(24, 1, 2))]))),
    ("pad", PaddedIdentity(24)),
    ("same", Residual(Network([("conv", Conv2d(24, 1))]))),
    ("last", Conv2d(600, 1)),
    ("global", GlobalAveragePool()),
    ("classes", Dense(500)),
]


def kinds(layers):
    for _, layer in layers:
        yield type(layer)
        if isinstance(layer, Residual):
            yield from kinds(layer.body.layers)


def test_the_two_networks_hold_every_kind_of_layer():
    assert {*kinds(MLP), *kinds(CONVS)} == set(LAYERS.values())


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(0.1), SquaredError()], ids=repr)
@pytest.mark.parametrize(("layers", "shape"), [(MLP, (20, 20)), (CONVS, (16, 16, 3))], ids=["mlp", "conv"])
def test_no_large_array_is_allocated(layers, shape, loss):
    network = Network(layers)
    built = build(network, shape, "float32")
    grads = np.zeros(built.layout.size, np.float32)
    views = built.layout.views(grads)
    x, target = noise((128, *shape), dtype="f4"), np.arange(128)
    pool = Pool()

    def step(batch):
        context = Pass(pool=pool, batch=batch)
        y, saved = network.forward(built.weights, built.state, x, context)
        value, dy = loss(y, target, context)
        for name, _, finish in network.sweep(built.weights, saved, dy, context):
            finish(views.get(name, {}))
        return value

    for batch in range(2):
        step(batch)
    held = pool.nbytes
    gc.collect()
    gc.disable()  # collecting what earlier tests have left is no part of a step
    tracemalloc.start()
    try:
        for batch in range(2, 5):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            step(batch)
            assert tracemalloc.get_traced_memory()[1] - before < LOOSE
    finally:
        tracemalloc.stop()
        gc.enable()
    assert pool.nbytes == held


def test_a_wide_dropout_mask_is_made_in_place():
    keep, pool = np.empty((3, 200_000), bool), Pool()
    dropout_mask(keep, 0.5, (1, 2), (0, 1), pool)
    tracemalloc.start()
    try:
        dropout_mask(keep, 0.5, (1, 2), (0, 1), pool)
        assert tracemalloc.get_traced_memory()[1] < LOOSE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(layer, (400,)) for _, layer in MLP[1:]] + [(layer, (16, 16, 24)) for _, layer in CONVS[:-1]],
    ids=repr,
)
def test_what_a_layer_keeps_is_no_larger_than_its_input_or_output(layer, shape):
    # neither the columns of a convolution nor a padded copy
    x = noise((32, *shape), dtype="f4")
    y, saved, _ = build(layer, shape, "float32").forward(x)
    assert max((array.nbytes for array in arrays(saved)), default=0) <= max(x.nbytes, y.nbytes)
