"""Losses: sums over the samples, so that pieces of a batch add up to the whole."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.random import Generator

from mpinn.array.precision import wide
from mpinn.array.typing import Array
from mpinn.nn.bounds import share
from mpinn.nn.layer import Pass


class Loss(Protocol):
    """A frozen dataclass of hyper-parameters."""

    def __call__(self, y: Array, target: Array, context: Pass) -> tuple[Array, Array]:
        """The loss, summed over the samples, as a float64 array of no dimensions; and dy, of the shape of y."""
        ...

    def draw(self, y: Array, rng: Generator) -> Array:
        """A target for each row of y, drawn from the distribution whose log-likelihood the loss is."""
        ...


class MemberLoss(Loss, Protocol):
    """A loss that every member of a population has for itself."""

    def members(self, y: Array, target: Array, context: Pass) -> tuple[Array, Array]:
        """For each of the M members of a population the loss, (M,) in float64; and dy: (B, M, O), which y becomes."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """-sum_c p_c log softmax(y)_c with p = (1 - smoothing) on the class plus smoothing / O on all of the O classes.

    y: (B, O); target: (B,) class numbers.
    """

    smoothing: float = 0.0
    """The share of the target that is spread over all classes alike: at least 0 and less than 1."""

    def __post_init__(self) -> None:
        share("smoothing", self.smoothing)

    def __call__(self, y: Array, target: Array, context: Pass) -> tuple[Array, Array]:
        loss, dy = context.ops.cross_entropy(y, target, self.smoothing, context.pool)
        return loss, dy

    def members(self, y: Array, target: Array, context: Pass) -> tuple[Array, Array]:
        losses, rows = _of_members(y, context)
        context.ops.packed_cross_entropy(rows, target, self.smoothing, rows, losses)
        return losses, y

    def draw(self, y: Array, rng: Generator) -> Array:
        """Class numbers (B,) from softmax(y): the largest of the logits plus Gumbel noise."""
        drawn: Array = (y + rng.gumbel(size=y.shape)).argmax(axis=1)
        return drawn


@dataclass(frozen=True)
class SquaredError:
    """|y - target|^2 / 2. y: (B, O); target: (B, O), or (B,) class numbers, which stand for one-hot rows."""

    def __call__(self, y: Array, target: Array, context: Pass) -> tuple[Array, Array]:
        loss, dy = context.ops.squared_error(y, target, context.pool)
        return loss, dy

    def members(self, y: Array, target: Array, context: Pass) -> tuple[Array, Array]:
        losses, rows = _of_members(y, context)
        context.ops.packed_squared_error(rows, target, rows, losses)
        return losses, y

    def draw(self, y: Array, rng: Generator) -> Array:
        """y plus Gaussian noise of variance 1, (B, O)."""
        return (y + rng.normal(size=y.shape)).astype(wide(y.dtype))


def _of_members(y: Array, context: Pass) -> tuple[Array, Array]:
    """Losses to fill, and y as (M, O, B)."""
    rows = y.transpose(1, 2, 0)
    return context.pool.empty((len(rows),), np.dtype(np.float64)), rows


def correct(y: Array, target: Array, context: Pass) -> Any:
    """How many rows of y: (B, O) have their maximum where target has it: (B, O), or (B,) class numbers."""
    return context.ops.correct(y, target)


LOSSES: dict[str, type[CrossEntropy] | type[SquaredError]] = {
    "cross_entropy": CrossEntropy,
    "squared_error": SquaredError,
}
