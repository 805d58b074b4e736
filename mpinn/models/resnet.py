"""Residual networks for small images: basic blocks, and pre-activation bottlenecks for the very deep ones."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from mpinn.array.typing import Shape
from mpinn.errors import InputError
from mpinn.models.blocks import Named, conv_block
from mpinn.models.model import Model
from mpinn.nn.activation import Activation
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.identity import PaddedIdentity
from mpinn.nn.layer import Layer
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm
from mpinn.nn.pool import GlobalAveragePool
from mpinn.nn.residual import Residual

STEM = 16
WIDTHS = ((16, 1), (32, 2), (64, 2))
"""Channels of the 3x3 convolutions in each third of the network, and the stride with which the third begins."""
EXPANSION = 4
"""How many times as many channels a bottleneck gives out as its 3x3 convolution has."""
DEEP = 164
"""From this depth on, ``block = "auto"`` means bottlenecks."""

Shortcut: TypeAlias = Literal["projection", "pad"]


@dataclass(frozen=True, kw_only=True)
class ResNet:
    """6n + 2 layers of basic blocks (20, 32, 44, 56, 110), or 9n + 2 layers of bottlenecks (164, 1001).

    Basic: He et al., Deep residual learning for image recognition, 2016, section 4.2. Bottleneck: the same authors,
    Identity mappings in deep residual networks, 2016. The ``shortcut`` ``projection`` is option B of the first paper,
    ``pad`` option A.
    """

    depth: int = 20
    """Layers with weights: 6n + 2 with basic blocks, 9n + 2 with bottlenecks."""
    block: Literal["auto", "basic", "bottleneck"] = "auto"
    """Two 3x3 convolutions (basic), or a 1x1, a 3x3 and a 1x1 one (bottleneck); ``auto`` is bottleneck from a depth of
    164 on."""
    shortcut: Shortcut = "projection"
    """What goes past a block that changes the shape: a 1x1 convolution (projection), or the pixels that the stride
    leaves, with zeros in the channels that they lack (pad)."""

    def __post_init__(self) -> None:
        layers = self._layers_per_three
        if self.depth < layers + 2 or (self.depth - 2) % layers:
            kind, known = ("bottleneck", "164 or 1001") if self.bottleneck else ("basic", "20, 32, 44, 56 or 110")
            rule = f"with {kind} blocks the depth is {layers}n + 2, such as {known}"
            raise InputError("model.depth", f"{rule}, and {self.depth} is not")

    @property
    def bottleneck(self) -> bool:
        """Whether the blocks are bottlenecks."""
        return self.block == "bottleneck" or (self.block == "auto" and self.depth >= DEEP)

    @property
    def _layers_per_three(self) -> int:
        """Weight layers in one block of each third."""
        return 9 if self.bottleneck else 6

    def build(self, shape: Shape, outputs: int) -> Model:
        """One block per sum; every skip connection lies inside a block."""
        blocks: list[Named] = []
        channels = STEM
        for width, first in WIDTHS:
            for number in range((self.depth - 2) // self._layers_per_three):
                stride = 1 if number else first
                wide = width * EXPANSION if self.bottleneck else width
                shortcut = None if (wide, stride) == (channels, 1) else self._shortcut(wide, stride)
                block = bottleneck_block if self.bottleneck else basic_block
                blocks.append((f"block{len(blocks) + 1}", block(wide, stride, shortcut)))
                channels = wide
        stem, head = self._ends(outputs)
        return Model(Network((stem, *blocks, *head)), shape, stem=1, head=len(head))

    def _shortcut(self, outputs: int, stride: int) -> Network:
        if self.shortcut == "pad":
            return Network((("pad", PaddedIdentity(outputs, stride)),))
        conv = ("conv", Conv2d(outputs, 1, stride, bias=False))
        return Network((conv,) if self.bottleneck else (conv, ("norm", BatchNorm())))

    def _ends(self, outputs: int) -> tuple[Named, tuple[Named, ...]]:
        """Stem and head: bottlenecks leave norm and activation of the last sum to the head."""
        head: tuple[Named, ...] = (("pool", GlobalAveragePool()), ("output", Dense(outputs, initial="lecun")))
        if self.bottleneck:
            return ("stem", Conv2d(STEM, bias=False)), (("norm", BatchNorm(activation="relu")), *head)
        return ("stem", conv_block(STEM)), head


def basic_block(outputs: int, stride: int, shortcut: Network | None) -> Layer:
    """relu(conv(relu(conv(x))) + shortcut(x)), each convolution 3x3 and followed by a norm."""
    body: tuple[Named, ...] = (
        ("conv1", Conv2d(outputs, 3, stride, bias=False)),
        ("norm1", BatchNorm(activation="relu")),
        ("conv2", Conv2d(outputs, bias=False)),
        ("norm2", BatchNorm()),
    )
    return Network((("sum", Residual(Network(body), shortcut)), ("activation", Activation())))


def bottleneck_block(outputs: int, stride: int, shortcut: Network | None) -> Layer:
    """conv(conv(conv(a))) + x with a = relu(norm(x)), or + shortcut(a) where the shape changes: 1x1, 3x3, 1x1.

    A norm and an activation stand before each convolution. The stride is that of the first one, as in the code that the
    authors published.
    """
    before: tuple[Named, ...] = (("norm1", BatchNorm(activation="relu")),)
    body: tuple[Named, ...] = (
        ("conv1", Conv2d(outputs // EXPANSION, 1, stride, bias=False)),
        ("norm2", BatchNorm(activation="relu")),
        ("conv2", Conv2d(outputs // EXPANSION, bias=False)),
        ("norm3", BatchNorm(activation="relu")),
        ("conv3", Conv2d(outputs, 1, bias=False)),
    )
    if shortcut is None:
        return Residual(Network((*before, *body)))
    return Network((*before, ("sum", Residual(Network(body), shortcut))))
