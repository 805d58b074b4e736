"""Normalisation layers."""

from dataclasses import dataclass

from mpinn.array.activations import ACTIVATIONS
from mpinn.array.typing import Array, Shape, Shapes
from mpinn.nn.bounds import at_most, known, positive
from mpinn.nn.layer import Draws, Finish, Pass, Saved, Tree


@dataclass(frozen=True)
class BatchNorm:
    """y = f((x - mean) / sqrt(variance + epsilon) * scale + shift), per channel of x: (B, F) or (B, H, W, C).

    In training the statistics are those of the batch, and the running ones move towards them by ``momentum``; the
    running variance follows the unbiased one (of a single row: zero). Otherwise the running statistics are used.
    Ioffe and Szegedy, Batch normalization, 2015.
    """

    momentum: float = 0.1
    """How far running statistics move to those of a batch: above 0 and at most 1."""
    epsilon: float = 1e-5
    """What is added to the variance, above 0."""
    activation: str = "identity"
    """The function after it: identity, sigmoid, tanh, relu, leaky_relu, elu, selu, gelu, hardshrink or mish."""

    def __post_init__(self) -> None:
        known("activation", self.activation, ACTIVATIONS)
        positive("momentum", self.momentum)
        at_most("momentum", self.momentum, 1)
        positive("epsilon", self.epsilon)

    def parameters(self, shape: Shape) -> Shapes:
        return {"scale": shape[-1:], "shift": shape[-1:]}

    def state(self, shape: Shape) -> Shapes:
        return {"mean": shape[-1:], "variance": shape[-1:]}

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        weights["scale"].fill(1)
        weights["shift"].fill(0)
        state["mean"].fill(0)
        state["variance"].fill(1)

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        ops, running = context.ops, (state["mean"], state["variance"])
        if context.training:
            momentum = self.momentum if context.update_state else 0.0
            mean, inverse = ops.batch_statistics(x, running, momentum, self.epsilon, context.pool)
        else:
            mean, inverse = ops.known_statistics(running, self.epsilon, x.dtype, context.pool)
        y, kept = ops.batch_norm(x, mean, inverse, weights["scale"], weights["shift"], self.activation, context.pool)
        return y, (x, mean, inverse) if self.activation == "identity" else (x, mean, inverse, kept)

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Array, Finish]:
        x, mean, inverse, *kept = saved
        dx, dscale, dshift = context.ops.batch_norm_backward(
            x, mean, inverse, weights["scale"], self.activation, kept[0] if kept else None, dy,
            context.training, context.pool,
        )  # fmt: skip
        return dx, _finish(dscale, dshift)


@dataclass(frozen=True)
class LayerNorm:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + shift, over the last axis of x: (B, ..., F).

    Ba, Kiros and Hinton, Layer normalization, 2016.
    """

    epsilon: float = 1e-5
    """What is added to the variance, above 0."""

    def __post_init__(self) -> None:
        positive("epsilon", self.epsilon)

    def parameters(self, shape: Shape) -> Shapes:
        return {"scale": shape[-1:], "shift": shape[-1:]}

    def state(self, shape: Shape) -> Shapes:
        return {}

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        weights["scale"].fill(1)
        weights["shift"].fill(0)

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        y, mean, inverse = context.ops.layer_norm(x, weights["scale"], weights["shift"], self.epsilon, context.pool)
        return y, (x, mean, inverse)

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Array, Finish]:
        x, mean, inverse = saved
        dx, dscale, dshift = context.ops.layer_norm_backward(x, mean, inverse, weights["scale"], dy, context.pool)
        return dx, _finish(dscale, dshift)


def _finish(dscale: Array, dshift: Array) -> Finish:
    def finish(grads: Tree) -> None:
        grads["scale"][...] = dscale
        grads["shift"][...] = dshift

    return finish
