"""A model: one network, with its stem, its body of indivisible blocks, and its head told apart."""

from dataclasses import dataclass
from typing import Protocol

from mpinn.array.typing import Shape
from mpinn.nn.network import Network


@dataclass(frozen=True)
class Model:
    """A network for samples of ``shape``; its first ``stem`` and last ``head`` layers frame the body.

    Every layer of the body is indivisible: a cut into stages goes between two of them.
    """

    network: Network
    shape: Shape
    stem: int
    head: int


class ModelOptions(Protocol):
    """The frozen dataclass of a kind of model, which builds it."""

    def build(self, shape: Shape, outputs: int) -> Model:
        """The model for samples of ``shape`` and ``outputs`` classes or values."""
        ...
