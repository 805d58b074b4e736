"""Initial weights, drawn on the host in float64, so that neither device nor precision changes the draw."""

from math import sqrt
from typing import Literal, TypeAlias

from numpy.random import Generator

from mpinn.array.typing import Array

Initial: TypeAlias = Literal["he", "lecun", "uniform"]

_RECTIFIERS = ("relu", "leaky_relu", "elu", "gelu", "mish", "hardshrink")


def draw(weight: Array, fan_in: int, initial: Initial, rng: Generator) -> None:
    """Fill ``weight``: normal with variance 2/fan_in (he) or 1/fan_in (lecun), or uniform within 1/sqrt(fan_in)."""
    if initial == "uniform":
        bound = 1 / sqrt(fan_in)
        weight[...] = rng.uniform(-bound, bound, weight.shape)
    else:
        weight[...] = rng.normal(0, sqrt((2 if initial == "he" else 1) / fan_in), weight.shape)


def for_activation(name: str) -> Initial:
    """The initial draw that keeps the variance of activations through a layer that is followed by ``name``."""
    return "he" if name in _RECTIFIERS else "lecun"
