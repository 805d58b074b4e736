"""What the tests of models share: a small form of every model, and passes through a network from its own weights."""

import numpy as np

from mpinn.models.cnn import CNN
from mpinn.models.layers import Chain, Layers
from mpinn.models.mlp import MLP
from mpinn.models.resnet import ResNet
from mpinn.models.vgg import VGG
from mpinn.nn.activation import Activation
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.dropout import Dropout
from mpinn.nn.identity import PaddedIdentity
from mpinn.nn.layer import Pass
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm
from mpinn.nn.part import build_part
from mpinn.nn.pool import GlobalAveragePool, MaxPool2d
from mpinn.nn.residual import Residual

OUTPUTS = 5

WRITTEN = Network(
    (
        ("conv1", Conv2d(4, 3, bias=False)),
        ("norm", BatchNorm(momentum=0.2)),
        ("activation1", Activation("elu")),
        ("max_pool1", MaxPool2d(3, 2, 1)),
        (
            "sum",
            Residual(
                Network((("conv1", Conv2d(6, (3, 1), 2, (1, 0), activation="tanh")), ("again", Conv2d(6, bias=False)))),
                Network((("padded_identity1", PaddedIdentity(6, 2)),)),
            ),
        ),
        ("residual2", Residual(Network((("dropout1", Dropout(0.1)), ("conv1", Conv2d(6, 1)))))),
        ("global_average_pool1", GlobalAveragePool()),
        ("dense1", Dense(OUTPUTS, initial="lecun")),
    )
)

SMALL = {
    "mlp": (MLP(widths=(7, 6), norm="layer", dropout=0.2), (4, 3)),
    "cnn": (CNN(channels=(3, 4), kernel=3, widths=(6,), dropout=0.3), (9, 8, 1)),
    "cnn without norms": (CNN(channels=(3,), widths=(), norm="none", activation="tanh"), (7, 6, 2)),
    "vgg": (VGG(depth=11), (32, 32, 3)),
    "basic blocks, projection": (ResNet(depth=8), (9, 8, 3)),
    "basic blocks, pad": (ResNet(depth=14, shortcut="pad"), (8, 8, 1)),
    "bottlenecks, projection": (ResNet(depth=11, block="bottleneck"), (8, 7, 3)),
    "bottlenecks, pad": (ResNet(depth=20, block="bottleneck", shortcut="pad"), (8, 8, 3)),
    "layers": (Layers(layers=Chain(WRITTEN)), (8, 8, 2)),
}
"""Every model by a title that begins with its name or tells its blocks: options, and the shape of a sample."""


def built(options, shape, dtype="float64", seed=4):
    """The model, and a part with its initial weights."""
    model = options.build(shape, OUTPUTS)
    part = build_part("network", model.network, shape, np.dtype(dtype), ())
    part.initialize(seed)
    return model, part


def noise(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def forward(network, part, x, **options):
    """y, what was kept, and the pass."""
    context = Pass(pool=part.pool, update_state=False, wants_dx=True, **options)
    y, saved = network.forward(part.weight_views, part.state_views, x, context)
    return y, saved, context
