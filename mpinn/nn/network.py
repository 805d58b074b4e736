"""A chain of named layers, itself a layer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from mpinn.array.typing import Array, Shape, Shapes
from mpinn.nn.layer import EMPTY, Draws, Finish, Layer, Pass, Saved, Tree

Swept: TypeAlias = Iterator[tuple[str, Any, Finish]]
"""A backward pass in pieces: (name, dx, finish) of each, from the last."""


class Whole(Layer, Protocol):
    """A layer made of named pieces whose gradients are complete one after the other: all of what a rank owns."""

    def sweep(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> Swept:
        """The backward pass piece by piece, from the last; consumes ``saved``."""
        ...


@dataclass(frozen=True)
class Network:
    """Named layers in order. ``network[a:b]`` is a network whose layers keep their names and their global index.

    The index keys the random numbers: initial weights come from (seed, index, ...) and dropout masks too, so a
    stage that holds a slice of the layers starts with exactly the weights that they have in the whole network.
    """

    layers: Sequence[tuple[str, Layer]]
    start: int = 0
    """Global index of the first layer."""

    def __post_init__(self) -> None:
        names = self.names
        if len(set(names)) != len(names):
            raise ValueError(f"two layers have the same name: {', '.join(names)}")

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, part: slice) -> "Network":
        start, stop, step = part.indices(len(self.layers))
        if step != 1:
            raise ValueError("a part of a network is contiguous")
        return Network(self.layers[start:stop], self.start + start)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers, in order."""
        return tuple(name for name, _ in self.layers)

    def parameters(self, shape: Shape) -> Shapes:
        return self._declared(shape, lambda layer, inside: layer.parameters(inside))

    def state(self, shape: Shape) -> Shapes:
        return self._declared(shape, lambda layer, inside: layer.state(inside))

    def _declared(self, shape: Shape, declare: Callable[[Layer, Shape], Shapes]) -> Shapes:
        tree: dict[str, Any] = {}
        for name, layer in self.layers:
            if declared := declare(layer, shape):
                tree[name] = declared
            shape = layer.output_shape(shape)
        return tree

    def output_shape(self, shape: Shape) -> Shape:
        for name, layer in self.layers:
            try:
                shape = layer.output_shape(shape)
            except ValueError as problem:
                raise ValueError(f"{name}: {problem}") from None
        return shape

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        for index, (name, layer) in enumerate(self.layers, self.start):
            layer.initialize(weights.get(name, EMPTY), state.get(name, EMPTY), _inside(rng, index))

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        saved = []
        for index, (name, layer) in enumerate(self.layers, self.start):
            context.path.append(index)
            x, kept = layer.forward(weights.get(name, EMPTY), state.get(name, EMPTY), x, context)
            context.path.pop()
            saved.append(kept if context.keeps else None)
            if context.poke:
                context.poke()
        return x, saved

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Any, Finish]:
        finishes = []
        dx: Any = dy
        for name, dx, finish in self.sweep(weights, saved, dy, context):  # noqa: B007
            finishes.append((name, finish))

        def finish_all(grads: Tree) -> None:
            for name, finish in finishes:
                finish(grads.get(name, EMPTY))

        return dx if context.wants_dx else None, finish_all

    def sweep(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> Swept:
        """The backward pass, layer by layer from the last: (name, dx, finish) as soon as the layer's dx is there.

        Consumes ``saved``, so that the buffers of a layer are free once its finish has run. Layers below the first one
        with parameters are left out when ``context.wants_dx`` is false.
        """
        wanted = context.wants_dx
        lowest = 0 if wanted else next((i for i, name in enumerate(self.names) if name in weights), len(self))
        for position in range(len(self) - 1, lowest - 1, -1):
            name, layer = self.layers[position]
            context.wants_dx = wanted or position > lowest
            dy, finish = layer.backward(weights.get(name, EMPTY), saved.pop(), dy, context)
            context.wants_dx = wanted
            if context.poke:
                context.poke()
            yield name, dy, finish
        saved.clear()


def _inside(rng: Draws, index: int) -> Draws:
    return lambda path: rng((index, *path))
