"""The dense layer, with its activation fused."""

from dataclasses import dataclass
from math import prod

from mpinn.array.activations import ACTIVATIONS
from mpinn.array.typing import Array, Shape, Shapes
from mpinn.nn.bounds import at_least, known
from mpinn.nn.initial import Initial, draw
from mpinn.nn.layer import Draws, Finish, Pass, Saved, Tree


@dataclass(frozen=True)
class Dense:
    """y = f(x W + b) with x: (B, I), W: (I, O), b: (O,), y: (B, O)."""

    outputs: int
    """Units, at least 1."""
    activation: str = "identity"
    """The function after it: identity, sigmoid, tanh, relu, leaky_relu, elu, selu, gelu, hardshrink or mish."""
    bias: bool = True
    """Whether a number is added to each output."""
    initial: Initial = "he"
    """Initial weights: normal of variance 2 / inputs (he) or 1 / inputs (lecun), or uniform within 1 / sqrt(inputs)."""

    def __post_init__(self) -> None:
        at_least("outputs", self.outputs, 1)
        known("activation", self.activation, ACTIVATIONS)

    def parameters(self, shape: Shape) -> Shapes:
        weight = {"weight": (*shape, self.outputs)}
        return {**weight, "bias": (self.outputs,)} if self.bias else weight

    def state(self, shape: Shape) -> Shapes:
        return {}

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise ValueError(f"a dense layer takes samples of one dimension, not of shape {shape}: flatten them first")
        return (self.outputs,)

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        draw(weights["weight"], prod(weights["weight"].shape[:-1]), self.initial, rng(()))
        if self.bias:
            weights["bias"].fill(0)

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        y, kept = context.ops.affine(x, weights["weight"], weights.get("bias"), self.activation, context.pool)
        return y, (x, kept)

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Array | None, Finish]:
        x, kept = saved
        dz = context.ops.activation_backward(self.activation, kept, dy, context.pool)
        dx = None
        if context.wants_dx:
            dx = context.pool.empty(x.shape, x.dtype)
            context.ops.matmul(dz, weights["weight"].T, dx)

        def finish(grads: Tree) -> None:
            context.ops.affine_gradients(x, dz, grads["weight"], grads.get("bias"), context.pool)

        return dx, finish
