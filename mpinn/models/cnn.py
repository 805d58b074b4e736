"""The small convolutional network."""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from mpinn.array.typing import Shape
from mpinn.errors import InputError
from mpinn.models.blocks import ActivationName, Norm, Rate, Width, conv_block, dense_block
from mpinn.models.model import Model
from mpinn.nn.dense import Dense
from mpinn.nn.flatten import Flatten
from mpinn.nn.network import Network


@dataclass(frozen=True, kw_only=True)
class CNN:
    """Convolutions of ``channels``, each with a 2x2 max pool, then dense layers of ``widths`` and a dense head.

    Convolutions and hidden layers have the norm and the activation that are chosen, hidden layers dropout too.
    LeCun et al., Gradient-based learning applied to document recognition, 1998, in today's dress.
    """

    channels: Annotated[tuple[Width, ...], Meta(min_length=1)] = (32, 64)
    """Channels of each convolution."""
    kernel: Width = 5
    """Pixels on a side of the window of a convolution: odd, so that images keep their size."""
    widths: tuple[Width, ...] = (128,)
    """Units of each hidden dense layer; [] for none."""
    activation: ActivationName = "relu"
    """The function after each convolution and each hidden layer."""
    norm: Norm = "batch"
    """What stands between a layer and its activation: nothing, a batch norm or a layer norm."""
    dropout: Rate = 0.0
    """The share of the outputs of a hidden layer that is zeroed at random in training."""

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise InputError(
                "model.kernel", f"expected an odd number, so that images keep their size, got {self.kernel}"
            )

    def build(self, shape: Shape, outputs: int) -> Model:
        """One block per convolution with its pool, and one per hidden layer."""
        convs = [
            (f"conv{number}", conv_block(channels, self.activation, self.norm, self.kernel, pool=True))
            for number, channels in enumerate(self.channels, 1)
        ]
        hidden = [
            (f"hidden{number}", dense_block(width, self.activation, self.norm, self.dropout))
            for number, width in enumerate(self.widths, 1)
        ]
        head = ("output", Dense(outputs, initial="lecun"))
        return Model(Network((*convs, ("flatten", Flatten()), *hidden, head)), shape, stem=1, head=1)
