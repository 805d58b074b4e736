"""What the tests of layers share: examples of every layer, points away from kinks, and central differences."""

from dataclasses import dataclass
from math import prod

import numpy as np

from mpinn.nn.activation import Activation
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.dropout import Dropout
from mpinn.nn.flatten import Flatten
from mpinn.nn.identity import PaddedIdentity
from mpinn.nn.layer import Pass
from mpinn.nn.layers import LAYERS
from mpinn.nn.layout import Layout
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm, LayerNorm
from mpinn.nn.pool import AveragePool2d, GlobalAveragePool, MaxPool2d
from mpinn.nn.residual import Residual

IMAGE = (5, 7, 2)
STEP = 1e-5


def smooth_block(outputs, stride=1):
    return Network(
        [
            ("conv1", Conv2d(outputs, 3, stride, activation="tanh")),
            ("norm", BatchNorm()),
            ("conv2", Conv2d(outputs, 3, bias=False)),
        ]
    )


EXAMPLES = {
    "activation": [(Activation("mish"), (6,)), (Activation("relu"), IMAGE)],
    "dense": [(Dense(3), (5,)), (Dense(4, "gelu"), (1,)), (Dense(1, "tanh", bias=False), (7,))],
    "conv": [
        (Conv2d(3), IMAGE),
        (Conv2d(2, 1), (3, 3, 1)),
        (Conv2d(3, 1, stride=2), IMAGE),
        (Conv2d(3, 3, stride=2), IMAGE),
        (Conv2d(2, 5, stride=2, padding="same", bias=False), (7, 5, 1)),
        (Conv2d(2, 7, padding="same", activation="gelu"), IMAGE),
        (Conv2d(2, 3, padding="valid", activation="sigmoid"), IMAGE),
        (Conv2d(2, 3, padding=2), IMAGE),
        (Conv2d(2, (3, 2), stride=(2, 3), padding=(1, 0)), IMAGE),
        (Conv2d(1, (2, 4), stride=1, padding=(0, 2), activation="tanh"), (5, 7, 1)),
        (Conv2d(2, 2, stride=3, padding=1), (6, 8, 3)),
        (Conv2d(2, 1, padding=1), (3, 4, 2)),
        (Conv2d(2, 3, stride=2, padding=3), IMAGE),
    ],
    "batch_norm": [(BatchNorm(), (4,)), (BatchNorm(), IMAGE), (BatchNorm(), (3, 5, 1))],
    "layer_norm": [(LayerNorm(), (5,)), (LayerNorm(), (3, 2, 6))],
    "max_pool": [
        (MaxPool2d(), IMAGE),
        (MaxPool2d(3, stride=2, padding=1), IMAGE),
        (MaxPool2d((2, 3), stride=(1, 2)), (5, 7, 1)),
        (MaxPool2d(2, stride=3), IMAGE),
    ],
    "average_pool": [
        (AveragePool2d(), IMAGE),
        (AveragePool2d(3, stride=2, padding=1), IMAGE),
        (AveragePool2d((2, 3), stride=1, padding=(1, 0)), (5, 7, 1)),
    ],
    "global_average_pool": [(GlobalAveragePool(), IMAGE), (GlobalAveragePool(), (1, 1, 3))],
    "flatten": [(Flatten(), IMAGE), (Flatten(), (4,))],
    "padded_identity": [
        (PaddedIdentity(2), IMAGE),
        (PaddedIdentity(5, 2), IMAGE),
        (PaddedIdentity(3, (3, 2)), (4, 7, 1)),
    ],
    "dropout": [(Dropout(0.3), IMAGE), (Dropout(0.0), (5,))],
    "residual": [
        (Residual(Network([("dense", Dense(4, "tanh")), ("out", Dense(4))])), (4,)),
        (Residual(smooth_block(2)), IMAGE),
        (Residual(smooth_block(3, 2), Network([("conv", Conv2d(3, 1, 2)), ("norm", BatchNorm())])), IMAGE),
    ],
}


def cases():
    """(layer, shape of a sample, samples) for every name in LAYERS; one without an example is tried as it stands."""
    for name, kind in LAYERS.items():
        for layer, shape in EXAMPLES.get(name) or [(kind(), IMAGE)]:
            for samples in (1, 3):
                yield layer, shape, samples


def title(value):
    return repr(value).replace(" ", "")


def arrays(tree):
    if isinstance(tree, np.ndarray):
        return [tree]
    children = tree.values() if hasattr(tree, "values") else tree
    return [array for child in children for array in arrays(child)]


@dataclass
class Built:
    """A layer with random parameters in a flat vector."""

    layer: object
    shape: tuple
    layout: Layout
    vector: np.ndarray
    weights: dict
    state: dict

    def forward(self, x, **options):
        context = Pass(**options)
        y, saved = self.layer.forward(self.weights, self.state, x, context)
        return y, saved, context

    def gradients(self, x, dy, **options):
        """y, dx and the flat gradient."""
        y, saved, context = self.forward(x, **options)
        dx, finish = self.layer.backward(self.weights, saved, dy, context)
        grads = np.zeros(self.layout.size, x.dtype)
        finish(self.layout.views(grads))
        return y, dx, grads


def build(layer, shape, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    layout = Layout(layer.parameters(shape), dtype)
    vector = np.zeros(layout.size, dtype)
    for entry in layout:
        vector[entry.slice] = rng.uniform(0.2, 0.9, entry.size) * rng.choice([-1, 1], entry.size)
    statistics = Layout(layer.state(shape), dtype)
    running = np.zeros(statistics.size, dtype)
    for entry in statistics:
        running[entry.slice] = rng.uniform(0.5, 1.5, entry.size)
    return Built(layer, shape, layout, vector, layout.views(vector), statistics.views(running))


def points(shape, seed=0, dtype="float64"):
    """Distinct numbers between -2 and 2, all of them far from each other, from 0 and from 0.5 on the scale of STEP."""
    count = prod(shape)
    numbers = (np.arange(count) + 0.3) / count * 4 - 2
    return np.random.default_rng(seed).permutation(numbers).reshape(shape).astype(dtype)


def noise(shape, seed=1, dtype="float64"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def central_difference(function, array):
    """The gradient of a scalar function by ``array``, which it reads in place."""
    slope = np.zeros(array.shape)
    flat, out = array.reshape(-1), slope.reshape(-1)
    for index in range(flat.size):
        kept = flat[index]
        flat[index] = kept + STEP
        above = function()
        flat[index] = kept - STEP
        below = function()
        flat[index] = kept
        out[index] = (above - below) / (2 * STEP)
    return slope


def relative_error(found, expected):
    """The largest difference over the largest element; gradients that vanish are measured against 0.01."""
    if found.size == 0:
        return 0.0
    return np.abs(found - expected).max() / max(np.abs(expected).max(), np.abs(found).max(), 1e-2)
