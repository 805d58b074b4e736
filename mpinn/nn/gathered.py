"""A parareal network of one sweep whose coarse networks are all on the rank of the last block.

It is `mpinn.nn.parareal`, in another place: the other ranks send their guesses v_j, as soon as they are made, and their
values y_j; the last one carries the errors through all coarse networks, and sends each of them l_j and what V_j loses.
So every value takes two messages to the output, and its cotangent one, however many blocks there are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from mpinn.array.typing import Array, Shape, Shapes
from mpinn.nn.block import Block, Way
from mpinn.nn.layer import EMPTY, Draws, Finish, Pass, Saved, Tree
from mpinn.nn.network import Swept
from mpinn.nn.sweeps import BackwardSweeps, ForwardSweeps, all_of, minus

Parcel: TypeAlias = Literal["guess", "fine", "adjoint", "less"]
"""v_j and y_j, sent to the last rank; l_j and what V_j loses, sent by it."""


class Post(Protocol):
    """How the rank of a block speaks with that of the last one, or that one with any."""

    def send(self, parcel: Parcel, number: int, array: Array) -> None:
        """Send an array of block ``number``, which is not written afterwards."""
        ...

    def receive(self, parcel: Parcel, number: int) -> Array:
        """What has been sent."""
        ...


@dataclass(frozen=True)
class Gathered:
    """What the rank of block ``number`` owns: its fine block and predictor; the last one all coarse networks.

    Itself a layer, to which the other ranks send zeros: enough for a rehearsal.
    """

    blocks: Sequence[Block]
    """All blocks of the network."""
    number: int

    @cached_property
    def block(self) -> Block:
        """Its own."""
        return self.blocks[self.number - 1]

    @property
    def last(self) -> bool:
        """Whether the sweep is here."""
        return self.block.last

    @property
    def corrected(self) -> Sequence[Block]:
        """The blocks whose coarse networks are here."""
        return self.blocks[1:] if self.last else ()

    @cached_property
    def order(self) -> Sequence[int]:
        """Of the networks with parameters on all ranks, in turn: their places in the order of the blocks."""
        sample = self.blocks[0].inputs
        here = [name for block in self.blocks for name in Gathered(self.blocks, block.number).parameters(sample)]
        return [here.index(name) for block in self.blocks for name in block.parameters(sample)]

    def parcels(self, backward: bool) -> Iterator[tuple[Parcel, int, Shape]]:
        """What comes to this rank in a pass forward, and ``backward`` too, with shapes of samples."""
        if self.last:
            for block in self.blocks[:-1]:
                if block.number > 1:
                    yield "guess", block.number, block.inputs
                yield "fine", block.number, block.outputs
        elif backward:
            yield "adjoint", self.number, self.block.outputs
            if self.number > 1:
                yield "less", self.number, self.block.inputs

    def parameters(self, shape: Shape) -> Shapes:
        own, coarse = self.block.parameters(shape), f"coarse{self.number}"
        if not self.last:
            return {name: tree for name, tree in own.items() if name != coarse}
        others = {name: tree for block in self.blocks[1:-1] for name, tree in block.parameters(shape).items()}
        return {**{name: tree for name, tree in others.items() if name.startswith("coarse")}, **own}

    def state(self, shape: Shape) -> Shapes:
        return self.block.state(shape)

    def output_shape(self, shape: Shape) -> Shape:
        return self.block.output_shape(shape)

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        for block in self.blocks if self.last else (self.block,):
            for name, network in block.ways:
                if name in weights:
                    network.initialize(weights[name], state.get(name, EMPTY), rng)
        self.block.head.initialize(weights, state, rng)

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        return self.run(weights, state, x, context, _Nobody(self, x))

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Any, Finish]:
        done = [*self.sweep(weights, saved, dy, context)]

        def finish_all(grads: Tree) -> None:
            for name, _, finish in done:
                finish(grads.get(name, EMPTY))

        return done[-1][1], finish_all

    def sweep(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> Swept:
        return self.run_back(weights, saved, dy, context, _Nobody(self, dy))

    def run(self, weights: Tree, state: Tree, x: Array, context: Pass, post: Post) -> tuple[Array, Saved]:
        """The forward pass; x: (B, *shape)."""
        block = self.block
        own = ForwardSweeps(block, weights, state, context, _Errors(post, self.number))
        guess, predicted = own.through("predictor", block.predictor, x) if block.predictor else (x, None)
        if block.predictor and not self.last:
            post.send("guess", self.number, guess)
        y, fine = own.through("fine", block.fine, guess)
        if not self.last:
            post.send("fine", self.number, y)
            return y, [predicted, fine, [], []]
        coarses: list[Saved] = []
        corrections: dict[int, Array] = {}
        correction = None
        for other in self.corrected:
            before = guess if other is block else post.receive("guess", other.number)
            links = _Errors(post, other.number, corrections)
            _, correction = ForwardSweeps(other, weights, state, context, links).correct(1, before, coarses)
        if correction is not None:
            y = context.ops.add(y, correction, context.pool)
        y, kept = block.head.forward(weights, state, y, context)
        return y, [predicted, fine, coarses, kept]

    def run_back(self, weights: Tree, saved: Saved, dy: Any, context: Pass, post: Post) -> Swept:
        """(name, dx, finish) of the head, then of each network; dy: (B, *output_shape) on the last rank."""
        predicted, fine, coarses, kept = saved
        saved.clear()
        block, wanted = self.block, context.wants_dx
        swept: list[tuple[str, Finish]] = []
        own = BackwardSweeps(block, weights, context, _Errors(post, self.number))
        less = None
        if self.last:
            context.wants_dx = True
            for name, inside, finish in block.head.sweep(weights, kept, dy, context):
                dy = inside
                yield name, None, finish
            context.wants_dx = wanted
            less, swept = self._sweep_back(weights, coarses, dy, context, post)
        else:
            dy = post.receive("adjoint", self.number)
        found, finish = own.back("fine", block.fine, fine, dy, self.number > 1 or wanted)
        # gradients are complete from the end of the part on, which begins with the coarse networks of other blocks
        done = [*swept[:1], (f"fine{self.number}", finish)]
        if self.number > 1:
            less = post.receive("less", self.number) if less is None else less
            found = minus(found, less, context.pool)
        if block.predictor is not None:
            found, finish = own.back("predictor", block.predictor, predicted, found, wanted)
            done.append((f"predictor{self.number}", finish))
        done += swept[1:]
        for name, finish in done:
            yield name, found if name == done[-1][0] else None, finish

    def _sweep_back(
        self, weights: Tree, coarses: list[Saved], dy: Array, context: Pass, post: Post
    ) -> tuple[Array | None, list[tuple[str, Finish]]]:
        """What V of the last block loses, and what the coarse networks have left to do."""
        own: Array | None = None
        done: list[tuple[str, Finish]] = []
        for other in reversed(self.corrected):
            finishes: list[Finish] = []
            sweep = BackwardSweeps(other, weights, context, _Errors(post, other.number))
            less, arrived = sweep.back_coarse(coarses.pop(), dy, finishes)
            post.send("adjoint", other.number - 1, arrived)
            if other.last:
                own = less
            else:
                post.send("less", other.number, less)
            done.append((f"coarse{other.number}", all_of(finishes, context.pool)))
            dy = arrived
        return own, done


@dataclass(frozen=True)
class _Errors:
    """Links of the coarse network of a block: values come by post, corrections stay, by the number of their block."""

    post: Post
    number: int
    corrections: dict[int, Array] = field(default_factory=dict)

    def send(self, way: Way, sweep: int, array: Array) -> None:
        self.corrections[self.number] = array

    def receive(self, way: Way, sweep: int) -> Array:
        before = self.number - 1
        return self.post.receive("fine", before) if way == "fine" else self.corrections.pop(before)


@dataclass(frozen=True)
class _Nobody:
    """A post on which zeros come; like: (B, ...)."""

    share: Gathered
    like: Array

    def send(self, parcel: Parcel, number: int, array: Array) -> None:
        """To nobody."""

    def receive(self, parcel: Parcel, number: int) -> Array:
        shapes = {(kind, j): shape for kind, j, shape in self.share.parcels(backward=True)}
        return np.zeros_like(self.like, shape=(len(self.like), *shapes[parcel, number]))
