"""What each stage of a grid owns: the lengths of its vectors, and of what goes to the stages beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from mpinn.array.precision import activations
from mpinn.array.typing import Shape, Shapes
from mpinn.config import Config
from mpinn.consensus.statistics import extra_size
from mpinn.models.model import Model
from mpinn.nn.block import Block
from mpinn.nn.layout import Layout
from mpinn.nn.parareal import Parareal
from mpinn.schedules.local import LocalOptions, auxiliary_network


@dataclass(frozen=True)
class Vectors:
    """Elements of the vectors of one part: weights, running statistics, and what a merge of these needs besides.

    ``groups`` of them are scored and weighed each for itself: the members of a population.
    """

    weights: int
    state: int = 0
    extra: int = 0
    groups: int = 1

    @classmethod
    def of(cls, parameters: Shapes, state: Shapes, dtype: str) -> "Vectors":
        """As a part with these parameters and statistics has them, padding included."""
        statistics = Layout(state, dtype)
        return cls(Layout(parameters, dtype).size, statistics.size, extra_size(statistics))

    def __add__(self, other: "Vectors") -> "Vectors":
        return Vectors(self.weights + other.weights, self.state + other.state, self.extra + other.extra)


@dataclass(frozen=True)
class Piece:
    """One stage: its parts, the layers of its first one that learn, and numbers of a sample before and after it.

    Of a parareal network ``right`` and ``left`` are how many messages go to the stage after and before for a batch, and
    ``gathered`` the sizes of those to and from the last stage, where that has all coarse networks.
    """

    parts: tuple[Vectors, ...]
    layers: int
    before: int
    after: int
    right: int = 1
    left: int = 1
    gathered: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ownership:
    """Of one model, whatever the grid."""

    config: Config
    model: Model

    @cached_property
    def layers(self) -> tuple[Vectors, ...]:
        """Of each layer of the network. A stage has the sum: every parameter is padded by itself."""
        shape = self.model.shape
        parameters, state = self.model.network.parameters(shape), self.model.network.state(shape)
        dtype = self.config.run.dtype

        def own(tree: Shapes, name: str) -> Shapes:
            return {name: tree[name]} if name in tree else {}

        names = self.model.network.names
        return tuple(Vectors.of(own(parameters, name), own(state, name), dtype) for name in names)

    @cached_property
    def widths(self) -> tuple[Shape, ...]:
        """Shapes of a sample before each layer, and after the last one."""
        shapes = [self.model.shape]
        for _, layer in self.model.network.layers:
            shapes.append(layer.output_shape(shapes[-1]))
        return tuple(shapes)

    def staged(self, options: Any, bounds: Sequence[int]) -> tuple[Piece, ...]:
        """The stages of the network that is cut at these bounds."""
        found, last = [], len(bounds) - 2
        learning = [vectors.weights > 0 for vectors in self.layers]
        for number in range(len(bounds) - 1):
            start, stop = bounds[number : number + 2]
            parts = [sum(self.layers[start:stop], Vectors(0))]
            if isinstance(options, LocalOptions) and number < last:
                parts.append(self._auxiliary(options, stop))
            before, after = (prod(self.widths[bound]) for bound in (start, stop))
            found.append(Piece(tuple(parts), sum(learning[start:stop]), before, after))
        return tuple(found)

    def _auxiliary(self, options: LocalOptions, stop: int) -> Vectors:
        shape = self.widths[stop]
        network = auxiliary_network(shape, self.widths[-1][0], options.width)
        return Vectors.of(network.parameters(shape), network.state(shape), self.config.run.dtype)

    def abreast(self, options: Any, bounds: Sequence[int], batch: int) -> tuple[Piece, ...]:
        """The stages of a parareal network with these fine blocks, for so many samples of a replica.

        ``options`` as settled for them.
        """
        whole = options.network(self.config.model, self.model, bounds)
        if not isinstance(whole, Parareal):
            raise TypeError("a network of several blocks is a parareal one")
        size = batch * activations(self.config.run.dtype, self.config.run.bf16).itemsize
        stages, found = len(bounds) - 1, list[Piece]()
        gathers = options.gathers(whole, size)[0]
        for number, block in enumerate(whole.blocks):
            network, shape = options.share(whole, self.model, bounds, number, stages, size)
            parameters = network.parameters(shape)
            parts = (Vectors.of(parameters, network.state(shape), self.config.run.dtype),)
            before, after = prod(block.inputs), prod(block.outputs)
            right, left = _letters(whole.blocks, number)
            gathered = _parcels(whole.blocks, number) if gathers else ()
            found.append(Piece(parts, len(parameters), before, after, right, left, gathered))
        return tuple(found)


def _letters(blocks: Sequence[Block], number: int) -> tuple[int, int]:
    """How many messages a block sends to the one after it, and to the one before: what those two listen for."""
    following = blocks[number + 1] if number + 1 < len(blocks) else None
    right = sum(1 + following.corrected(sweep) for sweep in following.heard) if following else 0
    return right, len(blocks[number - 1].sweeps) if number else 0


def _parcels(blocks: Sequence[Block], number: int) -> tuple[int, ...]:
    """Numbers of a sample in the messages of a block to the last one, or of that one to all others."""

    def of(block: Block) -> tuple[int, ...]:
        guess = (prod(block.inputs),) if block.number > 1 else ()
        return (*guess, prod(block.outputs))

    if number + 1 < len(blocks):
        return of(blocks[number])
    return tuple(size for block in blocks[:-1] for size in of(block))


def itemsize(config: Config) -> int:
    """Bytes of a number of a vector: of weights, gradients, slots, statistics."""
    return np.dtype(config.run.dtype).itemsize
