"""The whole model on one rank: forward, loss, backward, update."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mpinn.array.typing import Array
from mpinn.datasets.batches import Batch
from mpinn.nn.layer import EMPTY, Pass, Tree
from mpinn.nn.loss import Loss
from mpinn.nn.part import Part
from mpinn.schedules.schedule import Update


@dataclass(frozen=True, kw_only=True)
class SerialOptions:
    """Nothing to choose."""

    def build(self, part: Part, loss: Loss, seed: int) -> "Serial":
        """The schedule of a rank that owns the whole model."""
        return Serial(part, loss, seed)


class Serial:
    """Plain training of one part; the reference that every other schedule is compared with."""

    def __init__(self, part: Part, loss: Loss, seed: int):
        self.parts: Mapping[str, Part] = {part.name: part}
        self._part = part
        self._loss = loss
        self._seed = seed
        self._spans = {name: part.layout.span((name,)) for name in part.weight_views}

    def step(self, batch: Batch, update: Update) -> Array | None:
        """Forward, loss, backward layer by layer, update; None for a batch without samples on this rank."""
        loss = None
        if batch.count:
            context = Pass(self._part.pool, self._part.ops, seed=self._seed, batch=batch.index, rows=batch.rows)
            loss = self._backpropagate(batch, context, update.ready)
        else:
            self._part.grads.fill(0)
            update.ready(self._part, slice(0, self._part.layout.size))
        update(self._part, batch)
        return loss

    def gradient(self, batch: Batch) -> Array:
        """Write the gradient of the summed loss to the part, with running statistics and no update; the loss."""
        context = Pass(self._part.pool, self._part.ops, training=False, gradients=True)
        return self._backpropagate(batch, context, lambda part, span: None)

    def _backpropagate(self, batch: Batch, context: Pass, ready: Callable[[Part, slice], None]) -> Array:
        part = self._part
        y, saved = part.network.forward(part.weight_views, part.state_views, batch.x, context)
        loss, dy = self._loss(y, batch.target, context)
        del y
        for name, _, finish in part.network.sweep(part.weight_views, saved, dy, context):
            finish(part.grad_views.get(name, EMPTY))
            if name in self._spans:
                ready(part, self._spans[name])
        return loss

    def drain(self, update: Update) -> None:
        """Nothing is ever in flight."""

    def predict(self, x: Array, weights: Tree | None = None, state: Tree | None = None) -> Array:
        """Forward only, on x: (B, *shape), with the part's own weights and statistics unless others are given."""
        part = self._part
        context = Pass(part.pool, part.ops, training=False)
        return part.network.forward(weights or part.weight_views, state or part.state_views, x, context)[0]
