"""Images to vectors."""

from dataclasses import dataclass
from math import prod

from mpinn.array.typing import Array, Shape, Shapes
from mpinn.nn.layer import Draws, Finish, Pass, Saved, Tree, nothing, shape_of


@dataclass(frozen=True)
class Flatten:
    """x: (B, ...) to y: (B, O), the same elements in the same order."""

    def parameters(self, shape: Shape) -> Shapes:
        return {}

    def state(self, shape: Shape) -> Shapes:
        return {}

    def output_shape(self, shape: Shape) -> Shape:
        return (prod(shape),)

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        pass

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        return x.reshape(len(x), prod(x.shape[1:])), (shape_of(x),)

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Array, Finish]:
        return dy.reshape(len(dy), *saved[0].shape[1:]), nothing
