"""Pooling layers: they make images smaller and have no parameters."""

from dataclasses import dataclass

from mpinn.array.im2col import Pair
from mpinn.array.typing import Array, Shape, Shapes
from mpinn.nn.bounds import pair, windows
from mpinn.nn.layer import Draws, Finish, Pass, Saved, Tree, nothing, shape_of


@dataclass(frozen=True)
class _Pooling:
    """Windows of ``kernel`` pixels every ``stride`` pixels (default: side by side), ``padding`` pixels on each side."""

    kernel: int | Pair = 2
    """Pixels of a window, at least 1: one number, or [down, to the right]."""
    stride: int | Pair | None = None
    """Pixels from one window to the next; without it windows are side by side."""
    padding: int | Pair = 0
    """Pixels of padding on each side, at most half the kernel."""

    def __post_init__(self) -> None:
        kernel, _, padding = self.window
        if any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):
            raise ValueError(f"padding is {self.padding}, it must be at most half the kernel, which is {self.kernel}")

    @property
    def window(self) -> tuple[Pair, Pair, Pair]:
        """Kernel, stride and padding."""
        kernel = pair("kernel", self.kernel, 1)
        stride = kernel if self.stride is None else pair("stride", self.stride, 1)
        return kernel, stride, pair("padding", self.padding, 0)

    def parameters(self, shape: Shape) -> Shapes:
        return {}

    def state(self, shape: Shape) -> Shapes:
        return {}

    def output_shape(self, shape: Shape) -> Shape:
        return (*windows(shape, *self.window), shape[2])

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        pass


@dataclass(frozen=True)
class MaxPool2d(_Pooling):
    """The maximum of each window; its gradient goes to the first maximum in reading order."""

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        y, place = context.ops.max_pool(x, *self.window, context.pool)
        return y, (shape_of(x), place)

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Array | None, Finish]:
        if not context.wants_dx:
            return None, nothing
        shape, place = saved
        return context.ops.max_pool_backward(place, dy, shape.shape[1:], *self.window, context.pool), nothing


@dataclass(frozen=True)
class AveragePool2d(_Pooling):
    """The mean of each window, in which padding counts as zeros."""

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        return context.ops.average_pool(x, *self.window, context.pool), (shape_of(x),)

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Array | None, Finish]:
        if not context.wants_dx:
            return None, nothing
        return context.ops.average_pool_backward(dy, saved[0].shape[1:], *self.window, context.pool), nothing


@dataclass(frozen=True)
class GlobalAveragePool:
    """The mean of each channel: x: (B, H, W, C) to y: (B, C)."""

    def parameters(self, shape: Shape) -> Shapes:
        return {}

    def state(self, shape: Shape) -> Shapes:
        return {}

    def output_shape(self, shape: Shape) -> Shape:
        windows(shape, (1, 1), (1, 1), (0, 0))
        return shape[2:]

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        pass

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        return context.ops.channel_means(x, context.pool), (shape_of(x),)

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Array | None, Finish]:
        if not context.wants_dx:
            return None, nothing
        return context.ops.channel_means_backward(dy, saved[0].shape[1:], context.pool), nothing
