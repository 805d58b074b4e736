"""The contract of a layer: two pure functions, and nothing remembered on the layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.random import Generator

from mpinn.array import ops as plain
from mpinn.array.pool import Pool
from mpinn.array.typing import Array, Shape, Shapes

Tree: TypeAlias = Mapping[str, Any]
"""Views into a flat vector, by name: an array for a parameter, another tree for a layer inside a layer."""
Saved: TypeAlias = Any
"""What a forward pass keeps for its backward pass: a tuple of arrays, or a list of what the layers inside kept."""
Finish: TypeAlias = Callable[[Tree], None]
"""Writes a layer's weight gradient into the views it is given, after the input gradient has been computed."""

Draws: TypeAlias = Callable[[tuple[int, ...]], Generator]
"""The generator of random numbers of the layer at a path of indices inside the layer that asks."""

EMPTY: Tree = MappingProxyType({})


def nothing(grads: Tree) -> None:
    """The finish of a layer without parameters."""


def shape_of(x: Array) -> Array:
    """An array without elements that carries the shape of a sample of x, for layers that need to keep nothing else."""
    return np.empty_like(x, shape=(0, *x.shape[1:]))


@dataclass(slots=True)
class Pass:
    """What one pass of one batch through a network needs besides weights and data.

    A pass that is run again (recomputation) with the same seed, batch and rows draws the same dropout masks, and with
    ``update_state`` off it moves no running statistics.
    """

    pool: Pool = field(default_factory=Pool)
    ops: Any = plain
    """The kernels: `mpinn.array.ops`, or a module with faster twins of the same names."""
    training: bool = True
    """Whether dropout is on and batches are normalised by their own statistics; if so, a backward pass may follow."""
    gradients: bool = False
    """Whether a backward pass may follow though ``training`` is off, as for a Fisher estimate."""
    update_state: bool = True
    recompute: bool = False
    """Whether the pass will be run again before its backward pass, so that nothing of this run needs to be kept."""
    poke: Callable[[], None] | None = None
    """Called between layers: moves messages along that are under way."""
    seed: int = 0
    batch: int = 0
    """Index of the batch, counted from the start of the run."""
    rows: tuple[int, int] = (0, 1)
    """Local row i is row ``rows[0] + i * rows[1]`` of the global batch."""
    path: list[int] = field(default_factory=list)
    """Index of the layer that runs, and of the layers inside it."""
    keys: Callable[[tuple[int, ...]], Any] | None = None
    """Where the layer at a path finds its key, and the rows, while its work is recorded for many batches."""
    wants_dx: bool = False
    """Whether the input gradient is wanted; a layer that is told no may return None for it."""

    @property
    def keeps(self) -> bool:
        """Whether a network keeps what a backward pass needs."""
        return (self.training or self.gradients) and not self.recompute

    def key(self) -> Any:
        """Two 32-bit words that are drawn from (seed, layer, batch), or where the device finds them in each step."""
        path = tuple(self.path)
        return drawn_key(self.seed, self.batch, path) if self.keys is None else self.keys(path)


def drawn_key(seed: int, batch: int, path: tuple[int, ...]) -> tuple[int, int]:
    """The two words of the layer at a path, for a batch."""
    digest = blake2b(np.array([seed, batch, *path], np.uint64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


class Layer(Protocol):
    """A frozen dataclass of hyper-parameters. Shapes are those of one sample, without the batch axis.

    Neither function writes to its inputs. Whatever arrays they return come from ``context.pool``. A backward pass runs
    with the ``training`` of its forward pass. B may be 0.
    """

    def parameters(self, shape: Shape) -> Shapes:
        """Names and shapes of the parameters for an input of ``shape``; nested where layers stand inside the layer."""
        ...

    def state(self, shape: Shape) -> Shapes:
        """The same for the running statistics, which no gradient reaches."""
        ...

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of the output for an input of ``shape``; raises ValueError for one that the layer can't take."""
        ...

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        """Fill the parameters and statistics in place, with the numbers of ``rng(())`` for the layer itself."""
        ...

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        """x: (B, *shape) to y: (B, *output_shape) and what the backward pass needs."""
        ...

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Any, Finish]:
        """dy: (B, *output_shape) to dx: (B, *shape), and `Finish`, which writes the weight gradients later."""
        ...
