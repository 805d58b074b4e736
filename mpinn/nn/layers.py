"""Every kind of layer by its name: a new one is a file of its own and a line here."""

from typing import Any

from mpinn.nn.activation import Activation
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.dropout import Dropout
from mpinn.nn.flatten import Flatten
from mpinn.nn.identity import PaddedIdentity
from mpinn.nn.norm import BatchNorm, LayerNorm
from mpinn.nn.pool import AveragePool2d, GlobalAveragePool, MaxPool2d
from mpinn.nn.residual import Residual

LAYERS: dict[str, type[Any]] = {
    "activation": Activation,
    "average_pool": AveragePool2d,
    "batch_norm": BatchNorm,
    "conv": Conv2d,
    "dense": Dense,
    "dropout": Dropout,
    "flatten": Flatten,
    "global_average_pool": GlobalAveragePool,
    "layer_norm": LayerNorm,
    "max_pool": MaxPool2d,
    "padded_identity": PaddedIdentity,
    "residual": Residual,
}
