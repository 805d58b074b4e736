"""The convolution of images, with its activation fused."""

from dataclasses import dataclass
from math import prod
from typing import Literal

from mpinn.array.activations import ACTIVATIONS
from mpinn.array.im2col import Pair
from mpinn.array.typing import Array, Shape, Shapes
from mpinn.nn.bounds import at_least, known, pair, windows
from mpinn.nn.initial import Initial, draw
from mpinn.nn.layer import Draws, Finish, Pass, Saved, Tree


@dataclass(frozen=True)
class Conv2d:
    """y = f(x * W + b) with x: (B, H, W, C), W: (KH, KW, C, O), b: (O,), y: (B, OH, OW, O).

    With the padding "same" OH = ceil(H / stride).
    """

    outputs: int
    """Channels, at least 1."""
    kernel: int | Pair = 3
    """Pixels of a window, at least 1: one number, or [down, to the right]."""
    stride: int | Pair = 1
    """Pixels from one window to the next, at least 1."""
    padding: Literal["same", "valid"] | int | Pair = "same"
    """Pixels of zeros on each side, at least 0: a number, [down, to the right], none (valid), or, of a kernel of K
    pixels, which is odd, (K - 1) / 2 (same)."""
    bias: bool = True
    """Whether a number is added to each output."""
    activation: str = "identity"
    """The function after it: identity, sigmoid, tanh, relu, leaky_relu, elu, selu, gelu, hardshrink or mish."""
    initial: Initial = "he"
    """Initial weights: normal of variance 2 / inputs (he) or 1 / inputs (lecun), or uniform within 1 / sqrt(inputs)."""

    def __post_init__(self) -> None:
        at_least("outputs", self.outputs, 1)
        known("activation", self.activation, ACTIVATIONS)
        if self.padding == "same" and any(size % 2 == 0 for size in self._kernel):
            raise ValueError(f"padding 'same' needs an odd kernel, not {self._kernel[0]}x{self._kernel[1]}")
        _ = self.steps

    @property
    def _kernel(self) -> Pair:
        return pair("kernel", self.kernel, 1)

    @property
    def steps(self) -> tuple[Pair, Pair]:
        """Stride and padding."""
        stride = pair("stride", self.stride, 1)
        if self.padding == "same":
            return stride, (self._kernel[0] // 2, self._kernel[1] // 2)
        if isinstance(self.padding, str) and self.padding != "valid":
            raise ValueError(f"padding is {self.padding!r}, it must be 'same', 'valid' or a number of pixels")
        return stride, pair("padding", 0 if self.padding == "valid" else self.padding, 0)

    def parameters(self, shape: Shape) -> Shapes:
        weight = {"weight": (*self._kernel, shape[-1], self.outputs)}
        return {**weight, "bias": (self.outputs,)} if self.bias else weight

    def state(self, shape: Shape) -> Shapes:
        return {}

    def output_shape(self, shape: Shape) -> Shape:
        return (*windows(shape, self._kernel, *self.steps), self.outputs)

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        draw(weights["weight"], prod(weights["weight"].shape[:-1]), self.initial, rng(()))
        if self.bias:
            weights["bias"].fill(0)

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        z = context.ops.conv(x, weights["weight"], *self.steps, context.pool)
        y, kept = context.ops.bias_activation(z, weights.get("bias"), self.activation, context.pool)
        return y, (x, kept)

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Array | None, Finish]:
        x, kept = saved
        ops, pool = context.ops, context.pool
        dz = ops.activation_backward(self.activation, kept, dy, pool)
        dx = None
        if context.wants_dx:
            dx = ops.conv_backward_input(dz, weights["weight"], x.shape[1:], *self.steps, pool)

        def finish(grads: Tree) -> None:
            ops.conv_backward_weight(x, dz, grads["weight"], *self.steps, pool)
            if self.bias:
                grads["bias"][...] = ops.column_sums(dz)

        return dx, finish
