"""Small parareal networks of dense layers, for the tests of what they compute and of what they promise."""

from itertools import pairwise

import pytest

from mpinn.nn.block import Block
from mpinn.nn.dense import Dense
from mpinn.nn.dropout import Dropout
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm
from mpinn.nn.parareal import Parareal

FORMS = ("residual", "difference")
WIDTHS = (3, 2, 4, 3, 2)
"""Of the sample, and of the interfaces after blocks 1 to 4."""


def fine(number, width, activation="tanh"):
    return Network([(f"a{number}", Dense(3, activation)), (f"b{number}", Dense(width, activation))], start=2 * number)


def serial(count, activation="tanh", head=True):
    """The network that is cut, two dense layers to a block."""
    layers = [pair for j in range(1, count + 1) for pair in fine(j, WIDTHS[j], activation).layers]
    return Network([*layers, ("output", Dense(2))] if head else layers)


def parareal(count, form="residual", iterations=1, activation="tanh", coarse=None, predictor=None, head=True):
    """The network of ``count`` blocks; coarse: the activation of coarse networks, one dense layer without bias."""
    network = serial(count, activation, head)
    blocks = []
    for j, (inputs, outputs) in enumerate(pairwise(WIDTHS[: count + 1]), 1):
        guesses, coarsened = 1 < j <= count - iterations + 1, j > 1 and iterations < count
        guess = predictor(j) if predictor else Network([("guess", Dense(inputs, "tanh"))], start=100 + 2 * j)
        small = Network([("small", Dense(outputs, coarse or activation, bias=False))], start=101 + 2 * j)
        blocks.append(
            Block(
                j, count, (inputs,), network[2 * j - 2 : 2 * j],
                predictor=guess if guesses else None, coarse=small if coarsened else None,
                head=network[2 * count :] if j == count else Network(()), form=form, iterations=iterations,
            )
        )  # fmt: skip
    return Parareal(tuple(blocks))


def noisy(count, form, iterations):
    blocks = []
    for j in range(1, count + 1):
        layers = [("dense", Dense(WIDTHS[j])), ("norm", BatchNorm(activation="tanh")), ("drop", Dropout(0.3))]
        guess = Network([("guess", Dense(WIDTHS[j - 1])), ("norm", BatchNorm())], start=50 + 4 * j)
        coarse = Network([("small", Dense(WIDTHS[j], bias=False))], start=52 + 4 * j)
        blocks.append(
            Block(
                j, count, (WIDTHS[j - 1],), Network(layers, start=3 * j),
                guess if 1 < j <= count - iterations + 1 else None, coarse if j > 1 and iterations < count else None,
                form=form, iterations=iterations,
            )
        )  # fmt: skip
    return Parareal(tuple(blocks))


def grid(*counts, more=()):
    shapes = [(n, form, k) for n in counts for form in FORMS for k in range(1, n + 1)]
    return pytest.mark.parametrize(("count", "form", "iterations"), [*shapes, *more])
