"""Hyper-parameters that can't be are refused when the layer is made, with the name of the field."""

import pytest

from mpinn.nn.activation import Activation
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.dropout import Dropout
from mpinn.nn.identity import PaddedIdentity
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.norm import BatchNorm, LayerNorm
from mpinn.nn.pool import AveragePool2d, MaxPool2d


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Dense, {"outputs": 0}, "outputs is 0, it must be at least 1"),
        (Dense, {"outputs": 3, "activation": "rely"}, "activation is 'rely', it must be one of identity, sigmoid"),
        (Activation, {"activation": "swish"}, "activation is 'swish', it must be one of"),
        (Conv2d, {"outputs": -1}, "outputs is -1"),
        (Conv2d, {"outputs": 1, "kernel": 0}, "kernel is 0"),
        (Conv2d, {"outputs": 1, "kernel": (3, 4)}, "padding 'same' needs an odd kernel, not 3x4"),
        (Conv2d, {"outputs": 1, "stride": (1, 0)}, "stride is 0"),
        (Conv2d, {"outputs": 1, "padding": -1}, "padding is -1"),
        (Conv2d, {"outputs": 1, "padding": "full"}, "padding is 'full', it must be 'same', 'valid' or"),
        (Conv2d, {"outputs": 1, "activation": "rely"}, "activation is 'rely'"),
        (MaxPool2d, {"kernel": 0}, "kernel is 0"),
        (MaxPool2d, {"kernel": 2, "padding": 2}, "padding is 2, it must be at most half the kernel"),
        (AveragePool2d, {"stride": 0}, "stride is 0"),
        (PaddedIdentity, {"outputs": 0}, "outputs is 0"),
        (PaddedIdentity, {"outputs": 4, "stride": 0}, "stride is 0"),
        (Dropout, {"rate": 1.0}, "rate is 1.0, it must be at least 0 and less than 1"),
        (Dropout, {"rate": -0.1}, "rate is -0.1"),
        (Dropout, {"rate": float("nan")}, "rate is nan"),
        (BatchNorm, {"momentum": 0.0}, "momentum is 0.0, it must be positive"),
        (BatchNorm, {"momentum": 1.5}, "momentum is 1.5, it must be at most 1"),
        (BatchNorm, {"epsilon": 0.0}, "epsilon is 0.0, it must be positive"),
        (LayerNorm, {"epsilon": -1.0}, "epsilon is -1.0"),
        (CrossEntropy, {"smoothing": 1.0}, "smoothing is 1.0, it must be at least 0 and less than 1"),
        (CrossEntropy, {"smoothing": -0.5}, "smoothing is -0.5"),
    ],
)
def test_an_impossible_field_is_named(kind, fields, message):
    with pytest.raises(ValueError, match="^" + message):
        kind(**fields)
