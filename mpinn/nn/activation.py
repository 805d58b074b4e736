"""The activation as a layer of its own."""

from dataclasses import dataclass

from mpinn.array.activations import ACTIVATIONS
from mpinn.array.typing import Array, Shape, Shapes
from mpinn.nn.bounds import known
from mpinn.nn.layer import Draws, Finish, Pass, Saved, Tree, nothing


@dataclass(frozen=True)
class Activation:
    """y = f(x), elementwise."""

    activation: str = "relu"
    """The function: identity, sigmoid, tanh, relu, leaky_relu, elu, selu, gelu, hardshrink or mish."""

    def __post_init__(self) -> None:
        known("activation", self.activation, ACTIVATIONS)

    def parameters(self, shape: Shape) -> Shapes:
        return {}

    def state(self, shape: Shape) -> Shapes:
        return {}

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        pass

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        if self.activation == "identity":
            return x, (x,)
        y = context.ops.activate(self.activation, x, context.pool)
        return y, (x if ACTIVATIONS[self.activation].keeps_input else y,)

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Array | None, Finish]:
        if not context.wants_dx:
            return None, nothing
        return context.ops.activation_backward(self.activation, saved[0], dy, context.pool), nothing
