"""Dropout."""

from dataclasses import dataclass

import numpy as np

from mpinn.array.typing import Array, Shape, Shapes
from mpinn.nn.bounds import share
from mpinn.nn.layer import Draws, Finish, Pass, Saved, Tree, nothing


@dataclass(frozen=True)
class Dropout:
    """In training, zeros with probability ``rate`` and the rest divided by 1 - rate; otherwise the identity.

    Srivastava et al., Dropout: a simple way to prevent neural networks from overfitting, 2014.
    """

    rate: float = 0.5
    """The probability of a zero: at least 0 and less than 1."""

    def __post_init__(self) -> None:
        share("rate", self.rate)

    def parameters(self, shape: Shape) -> Shapes:
        return {}

    def state(self, shape: Shape) -> Shapes:
        return {}

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        pass

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        if not context.training or self.rate == 0:
            return x, ()
        keep = context.pool.empty(x.shape, np.dtype(bool))
        context.ops.dropout_mask(keep, self.rate, context.key(), context.rows, context.pool)
        return context.ops.dropout(x, keep, self.rate, context.pool), (keep,)

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Array | None, Finish]:
        if not saved or not context.wants_dx:
            return dy, nothing
        return context.ops.dropout(dy, saved[0], self.rate, context.pool), nothing
