"""The blocks of which several models are made, and the types of the options that shape them."""

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

from mpinn.nn.activation import Activation
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.dropout import Dropout
from mpinn.nn.initial import for_activation
from mpinn.nn.layer import Layer
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm, LayerNorm
from mpinn.nn.pool import MaxPool2d

ActivationName: TypeAlias = Literal[
    "identity", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "hardshrink", "mish"
]
Norm: TypeAlias = Literal["none", "batch", "layer"]
Width: TypeAlias = Annotated[int, Meta(ge=1)]
Rate: TypeAlias = Annotated[float, Meta(ge=0, lt=1)]

Named: TypeAlias = tuple[str, Layer]


def dense_block(width: int, activation: ActivationName, norm: Norm = "none", dropout: float = 0.0) -> Layer:
    """A dense layer, its norm, its activation and dropout as chosen; the norm stands in for the bias."""
    initial = for_activation(activation)
    after: list[Named] = [("dropout", Dropout(dropout))] if dropout else []
    if norm == "none" and not after:
        return Dense(width, activation, initial=initial)
    dense = Dense(width, bias=norm == "none", initial=initial)
    return Network((("dense", dense), *_normed(norm, activation), *after))


def conv_block(
    channels: int, activation: ActivationName = "relu", norm: Norm = "batch", kernel: int = 3, pool: bool = False
) -> Layer:
    """A convolution that keeps the size of the image, its norm and its activation, and a max pool that halves it."""
    initial = for_activation(activation)
    after: list[Named] = [("pool", MaxPool2d())] if pool else []
    if norm == "none":
        conv = Conv2d(channels, kernel, activation=activation, initial=initial)
        return Network((("conv", conv), *after)) if after else conv
    conv = Conv2d(channels, kernel, bias=False, initial=initial)
    return Network((("conv", conv), *_normed(norm, activation), *after))


def _normed(norm: Norm, activation: ActivationName) -> list[Named]:
    if norm == "batch":
        return [("norm", BatchNorm(activation=activation))]
    layers: list[Named] = [] if norm == "none" else [("norm", LayerNorm())]
    return [*layers, ("activation", Activation(activation))]
