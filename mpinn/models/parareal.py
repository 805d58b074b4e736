"""The parareal network of a model: its blocks cut, and for each of them a predictor and a coarse network.

What they are made of (the paper's own could not be read; these are the usual choices):

========  ==============================================================  ==============================================
model     coarse network, from the input to the output of a fine block    predictor, from a sample to that input
========  ==============================================================  ==============================================
mlp       one dense layer                                                 one dense layer, with bias
vgg       for each pooling stage a 3x3 convolution, with stride 2 where   average pool, 1x1 convolution
          the stage ends in a pool; ReLU between them
resnet    one residual block with the stride and channels of all blocks   average pool, 1x1 convolution, batch norm
          together: "the same map, fewer steps"
========  ==============================================================  ==============================================

No coarse network has a bias or a norm, so F(0) = 0. None ends in an activation, and a residual block adds to its input
without one: the error that it carries on has either sign, however positive the outputs of a fine block are.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from mpinn.array.im2col import Pair
from mpinn.array.typing import Shape
from mpinn.errors import InputError
from mpinn.models.blocks import Named
from mpinn.models.mlp import MLP
from mpinn.models.model import Model, ModelOptions
from mpinn.models.resnet import EXPANSION, ResNet
from mpinn.models.vgg import VGG
from mpinn.nn.activation import Activation
from mpinn.nn.block import Block, Form, corrects, guesses
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.flatten import Flatten
from mpinn.nn.identity import PaddedIdentity
from mpinn.nn.initial import for_activation
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm
from mpinn.nn.parareal import Parareal
from mpinn.nn.pool import AveragePool2d
from mpinn.nn.residual import Residual

Coarse: TypeAlias = Callable[[Any, Sequence[Shape]], list[Named]]
"""Layers that imitate a fine block, from the model's options and the shapes before and after each of its layers."""
Predictor: TypeAlias = Callable[[Shape, Shape], list[Named]]
"""Layers from a sample to the input of a fine block."""


def parareal(options: ModelOptions, model: Model, bounds: Sequence[int], form: Form, iterations: int = 1) -> Parareal:
    """The layers from ``bounds[j - 1]`` up to ``bounds[j]`` of the model are fine block j, the last without the head.

    The layers of predictors and coarse networks count on after those of the model, so that each draws random numbers of
    its own, and the fine blocks those that they draw in the model.
    """
    coarse, predictor = suppliers(options)
    network, count = model.network, len(bounds) - 1
    body, shapes = len(network) - model.head, interfaces(model)
    index, blocks = len(network), []
    for number, (start, stop) in enumerate(pairwise(bounds), 1):
        fine = network[start : min(stop, body)]
        if not len(fine):
            raise ValueError(f"fine block {number} has no layer besides the head")
        inputs = shapes[start]
        guess = small = None
        if guesses(number, count, iterations):
            guess = Network(predictor(model.shape, inputs), index)
            index += len(guess)
        if corrects(number, count, iterations):
            small = Network(coarse(options, shapes[start : min(stop, body) + 1]), index)
            index += len(small)
        head = network[body:] if number == count else Network(())
        blocks.append(Block(number, count, inputs, fine, guess, small, head, form, iterations))
    return Parareal(tuple(blocks))


def suppliers(options: ModelOptions) -> tuple[Coarse, Predictor]:
    """What makes coarse networks and predictors for a kind of model; InputError if nothing does."""
    kind = type(options)
    if kind not in SUPPLIERS:
        names = ", ".join(sorted(supplied.__name__.lower() for supplied in SUPPLIERS))
        raise InputError("schedule.name", f"parareal needs a model whose blocks it can imitate: {names}")
    return SUPPLIERS[kind]


def interfaces(model: Model) -> list[Shape]:
    """The shapes of a sample before every layer, and after the last one."""
    shapes = [model.shape]
    for _, layer in model.network.layers:
        shapes.append(layer.output_shape(shapes[-1]))
    return shapes


def _dense(options: MLP, shapes: Sequence[Shape]) -> list[Named]:
    return [("dense", Dense(shapes[-1][0], bias=False, initial="lecun"))]


def _dense_guess(sample: Shape, inputs: Shape) -> list[Named]:
    return [("flatten", Flatten()), ("dense", Dense(inputs[0], initial="lecun"))]


def _convolutions(options: VGG, shapes: Sequence[Shape]) -> list[Named]:
    stages = list(_pooling_stages(shapes))
    layers: list[Named] = []
    for number, (inputs, outputs) in enumerate(stages, 1):
        last = number == len(stages)
        stride = 1 if inputs[:2] == outputs[:2] else 2
        # the size of a max pool, which drops an odd row or column
        padding = (1, 1) if stride == 1 else ((inputs[0] + 1) % 2, (inputs[1] + 1) % 2)
        activation = "identity" if last else "relu"
        initial = for_activation(activation)
        conv = Conv2d(outputs[2], 3, stride, padding, bias=False, activation=activation, initial=initial)
        layers.append((f"conv{number}", conv))
    return layers


def _pooling_stages(shapes: Sequence[Shape]) -> Iterator[tuple[Shape, Shape]]:
    """The shape before and after each run of layers that ends in a pool, and after what follows the last one."""
    first = shapes[0]
    for before, after in pairwise(shapes):
        if before[:2] != after[:2]:
            yield first, after
            first = after
    if first is not shapes[-1]:
        yield first, shapes[-1]


def _pooled_guess(sample: Shape, inputs: Shape) -> list[Named]:
    kernel = (sample[0] // inputs[0], sample[1] // inputs[1])
    pool: list[Named] = [] if kernel == (1, 1) else [("pool", AveragePool2d(kernel))]
    return [*pool, ("conv", Conv2d(inputs[2], 1, initial="lecun"))]


def _residual(options: ResNet, shapes: Sequence[Shape]) -> list[Named]:
    inputs, outputs = shapes[0], shapes[-1]
    stride, wide = _stride(inputs, outputs), outputs[2]
    if options.bottleneck:
        narrow = wide // EXPANSION
        body: list[Named] = [
            ("activation", Activation()),
            ("conv1", Conv2d(narrow, 1, stride, bias=False, activation="relu")),
            ("conv2", Conv2d(narrow, bias=False, activation="relu")),
            ("conv3", Conv2d(wide, 1, bias=False, initial="uniform")),
        ]
    else:
        body = [
            ("conv1", Conv2d(wide, 3, stride, bias=False, activation="relu")),
            ("conv2", Conv2d(wide, bias=False, initial="uniform")),
        ]
    shortcut: list[Named] = (
        [] if inputs == outputs else [("conv", Conv2d(wide, 1, stride, bias=False, initial="lecun"))]
    )
    if shortcut and options.shortcut == "pad":
        shortcut = [("pad", PaddedIdentity(wide, stride))]
    return [("sum", Residual(Network(body), Network(shortcut) if shortcut else None))]


def _normed_guess(sample: Shape, inputs: Shape) -> list[Named]:
    high, wide = _stride(sample, inputs)
    # where the stride does not divide the image, windows reach over the edge, as those of a convolution do
    apart = sample[0] % high == 0 and sample[1] % wide == 0
    pool = (
        AveragePool2d((high, wide))
        if apart
        else AveragePool2d((2 * high - 1, 2 * wide - 1), (high, wide), (high - 1, wide - 1))
    )
    pooled: list[Named] = [] if (high, wide) == (1, 1) else [("pool", pool)]
    return [*pooled, ("conv", Conv2d(inputs[2], 1, bias=False, initial="lecun")), ("norm", BatchNorm())]


def _stride(before: Shape, after: Shape) -> Pair:
    """With which one layer makes an image as small as all convolutions together, whose sizes are rounded up."""
    high, wide = (
        next(s for s in range(1, b + 1) if -(-b // s) == a) for b, a in zip(before[:2], after[:2], strict=True)
    )
    return high, wide


SUPPLIERS: dict[type[Any], tuple[Coarse, Predictor]] = {
    MLP: (_dense, _dense_guess),
    VGG: (_convolutions, _pooled_guess),
    ResNet: (_residual, _normed_guess),
}
