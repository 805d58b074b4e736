"""VGG for small images."""

from dataclasses import dataclass
from typing import Literal

from mpinn.array.typing import Shape
from mpinn.models.blocks import Norm, conv_block
from mpinn.models.model import Model
from mpinn.nn.dense import Dense
from mpinn.nn.network import Network
from mpinn.nn.pool import GlobalAveragePool

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""How many convolutions stand before each of the five max pools, by depth."""


@dataclass(frozen=True, kw_only=True)
class VGG:
    """3x3 convolutions with five max pools, then one dense head: the form that is usual for CIFAR.

    Simonyan and Zisserman, Very deep convolutional networks for large-scale image recognition, 2015, configurations A,
    B, D and E. They end in three dense layers, for images of 224 pixels; here the last image, of one pixel for an image
    of 32, is averaged and goes straight to the classes.
    """

    depth: Literal[11, 13, 16, 19] = 16
    """The depth in the paper, where three layers are dense; here there are two layers fewer."""
    norm: Norm = "batch"
    """What stands between a convolution and its activation: nothing, a batch norm or a layer norm."""

    def build(self, shape: Shape, outputs: int) -> Model:
        """One block per convolution, which holds the pool that follows it; images of at least 32x32."""
        last = [
            (channels, number == count)
            for channels, count in zip(CHANNELS, CONVOLUTIONS[self.depth], strict=True)
            for number in range(1, count + 1)
        ]
        convs = [
            (f"conv{number}", conv_block(channels, norm=self.norm, pool=pool))
            for number, (channels, pool) in enumerate(last, 1)
        ]
        head = (("pool", GlobalAveragePool()), ("output", Dense(outputs, initial="lecun")))
        return Model(Network((*convs, *head)), shape, stem=1, head=2)
