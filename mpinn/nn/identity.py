"""The shortcut without parameters between images of different shapes."""

from dataclasses import dataclass

from mpinn.array.im2col import Pair
from mpinn.array.typing import Array, Shape, Shapes
from mpinn.nn.bounds import at_least, pair, windows
from mpinn.nn.layer import Draws, Finish, Pass, Saved, Tree, nothing, shape_of


@dataclass(frozen=True)
class PaddedIdentity:
    """Every ``stride``-th pixel, and zeros in the channels that x lacks: x: (B, H, W, C) to y: (B, OH, OW, O).

    Option A of He et al., Deep residual learning for image recognition, 2016.
    """

    outputs: int
    """Channels, at least as many as x has."""
    stride: int | Pair = 1
    """Pixels from one that is kept to the next, at least 1: one number, or [down, to the right]."""

    def __post_init__(self) -> None:
        at_least("outputs", self.outputs, 1)
        _ = self.strides

    @property
    def strides(self) -> Pair:
        """Down and to the right."""
        return pair("stride", self.stride, 1)

    def parameters(self, shape: Shape) -> Shapes:
        return {}

    def state(self, shape: Shape) -> Shapes:
        return {}

    def output_shape(self, shape: Shape) -> Shape:
        high, wide = windows(shape, (1, 1), self.strides, (0, 0))
        if shape[2] > self.outputs:
            raise ValueError(f"the layer adds channels and drops none: it can't make {self.outputs} of {shape[2]}")
        return high, wide, self.outputs

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        pass

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        down, right = self.strides
        channels = x.shape[3]
        y = context.pool.empty((len(x), *self.output_shape(x.shape[1:])), x.dtype)
        y[..., :channels] = x[:, ::down, ::right]
        y[..., channels:] = 0
        return y, (shape_of(x),)

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Array | None, Finish]:
        if not context.wants_dx:
            return None, nothing
        down, right = self.strides
        shape = saved[0].shape[1:]
        dx = context.pool.empty((len(dy), *shape), dy.dtype)
        if (down, right) != (1, 1):
            dx.fill(0)
        dx[:, ::down, ::right] = dy[..., : shape[2]]
        return dx, nothing
