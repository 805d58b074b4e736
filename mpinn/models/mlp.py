"""The multi-layer perceptron."""

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

from mpinn.array.typing import Shape
from mpinn.models.model import Model
from mpinn.nn.activation import Activation
from mpinn.nn.dense import Dense
from mpinn.nn.dropout import Dropout
from mpinn.nn.flatten import Flatten
from mpinn.nn.initial import for_activation
from mpinn.nn.layer import Layer
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm, LayerNorm

ActivationName: TypeAlias = Literal[
    "identity", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "hardshrink", "mish"
]
Norm: TypeAlias = Literal["none", "batch", "layer"]


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Dense layers of ``widths``, each followed by a norm, an activation and dropout as chosen, then a dense head."""

    widths: tuple[Annotated[int, Meta(ge=1)], ...] = (64, 64)
    activation: ActivationName = "relu"
    norm: Norm = "none"
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    def build(self, shape: Shape, outputs: int) -> Model:
        """One block per hidden layer; samples of any ``shape`` are flattened first."""
        hidden = [(f"hidden{number}", self._block(width)) for number, width in enumerate(self.widths, 1)]
        head = ("output", Dense(outputs, initial="lecun"))
        return Model(Network((("flatten", Flatten()), *hidden, head)), shape, stem=1, head=1)

    def _block(self, width: int) -> Layer:
        initial = for_activation(self.activation)
        if self.norm == "none" and not self.dropout:
            return Dense(width, self.activation, initial=initial)
        layers: list[tuple[str, Layer]] = [("dense", Dense(width, bias=self.norm == "none", initial=initial))]
        if self.norm != "none":
            layers.append(("norm", BatchNorm() if self.norm == "batch" else LayerNorm()))
        layers.append(("activation", Activation(self.activation)))
        if self.dropout:
            layers.append(("dropout", Dropout(self.dropout)))
        return Network(tuple(layers))
