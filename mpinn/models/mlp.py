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
    activation: ActivationName = "relu"
    norm: Norm = "none"
    dropout: Rate = 0.0

    def build(self, shape: Shape, outputs: int) -> Model:
        """One block per hidden layer; samples of any ``shape`` are flattened first."""
        hidden = [
            (f"hidden{number}", dense_block(width, self.activation, self.norm, self.dropout))
            for number, width in enumerate(self.widths, 1)
        ]
        head = ("output", Dense(outputs, initial="lecun"))
        return Model(Network((("flatten", Flatten()), *hidden, head)), shape, stem=1, head=1)
