"""The sum of two ways through a network."""

from dataclasses import dataclass

from mpinn.array.typing import Array, Shape, Shapes
from mpinn.nn.layer import EMPTY, Draws, Finish, Pass, Saved, Tree
from mpinn.nn.network import Network


@dataclass(frozen=True)
class Residual:
    """y = body(x) + projection(x), or body(x) + x without a projection.

    He et al., Deep residual learning for image recognition, 2016.
    """

    body: Network
    projection: Network | None = None

    @property
    def _ways(self) -> tuple[tuple[int, str, Network], ...]:
        """(index in the path, name, network): the index keys the random numbers of the layers inside."""
        body = (0, "body", self.body)
        return (body,) if self.projection is None else (body, (1, "projection", self.projection))

    def parameters(self, shape: Shape) -> Shapes:
        declared = {name: network.parameters(shape) for _, name, network in self._ways}
        return {name: tree for name, tree in declared.items() if tree}

    def state(self, shape: Shape) -> Shapes:
        declared = {name: network.state(shape) for _, name, network in self._ways}
        return {name: tree for name, tree in declared.items() if tree}

    def output_shape(self, shape: Shape) -> Shape:
        body = self.body.output_shape(shape)
        other = shape if self.projection is None else self.projection.output_shape(shape)
        if body != other:
            raise ValueError(f"the body gives samples of shape {body}, which can't be added to those of shape {other}")
        return body

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        for index, name, network in self._ways:
            network.initialize(weights.get(name, EMPTY), state.get(name, EMPTY), _inside(rng, index))

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        outputs, saved = [], []
        for index, name, network in self._ways:
            context.path.append(index)
            y, kept = network.forward(weights.get(name, EMPTY), state.get(name, EMPTY), x, context)
            context.path.pop()
            outputs.append(y)
            saved.append(kept)
        return context.ops.add(outputs[0], x if self.projection is None else outputs[1], context.pool), saved

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Array | None, Finish]:
        gradients, finishes = [], []
        for index, name, network in self._ways:
            dx, finish = network.backward(weights.get(name, EMPTY), saved[index], dy, context)
            gradients.append(dx)
            finishes.append((name, finish))

        def finish_all(grads: Tree) -> None:
            for name, finish in finishes:
                finish(grads.get(name, EMPTY))

        if not context.wants_dx:
            return None, finish_all
        other = dy if self.projection is None else gradients[1]
        return context.ops.add(gradients[0], other, context.pool), finish_all


def _inside(rng: Draws, index: int) -> Draws:
    return lambda path: rng((index, *path))
