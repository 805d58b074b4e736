"""The multi-layer perceptron."""

from dataclasses import dataclass

from mpinn.array.typing import Shape
from mpinn.models.blocks import ActivationName, Norm, Rate, Width, dense_block
from mpinn.models.model import Model
from mpinn.nn.dense import Dense
from mpinn.nn.flatten import Flatten
from mpinn.nn.network import Network


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Dense layers of ``widths``, each followed by a norm, an activation and dropout as chosen, then a dense head."""

    widths: tuple[Width, ...] = (128, 128)
    """Units of each hidden layer; [] for none."""
    activation: ActivationName = "relu"
    """The function after each hidden layer."""
    norm: Norm = "none"
    """What stands between a layer and its activation: nothing, a batch norm or a layer norm."""
    dropout: Rate = 0.0
    """The share of the outputs of a hidden layer that is zeroed at random in training."""

    def build(self, shape: Shape, outputs: int) -> Model:
        """One block per hidden layer; samples of any ``shape`` are flattened first."""
        hidden = [
            (f"hidden{number}", dense_block(width, self.activation, self.norm, self.dropout))
            for number, width in enumerate(self.widths, 1)
        ]
        head = ("output", Dense(outputs, initial="lecun"))
        return Model(Network((("flatten", Flatten()), *hidden, head)), shape, stem=1, head=1)
