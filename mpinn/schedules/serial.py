"""The whole model on one rank: forward, loss, backward, update."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpinn.array.pool import Pool
from mpinn.array.recording import Cut, Keys
from mpinn.array.typing import Array
from mpinn.datasets.batches import Batch
from mpinn.nn.layer import EMPTY, Pass, Tree
from mpinn.nn.loss import Loss
from mpinn.nn.part import Part
from mpinn.schedules.options import ScheduleOptions
from mpinn.schedules.recorded import Ready, numbers_of, repeat
from mpinn.schedules.schedule import Flight, Measured, Staleness, Update
from mpinn.schedules.stage import Place
from mpinn.trace import SILENT, Trace


@dataclass(frozen=True, kw_only=True)
class SerialOptions(ScheduleOptions):
    """The whole depth on one rank; there is nothing to choose."""

    def build(self, part: Part, loss: Loss, seed: int, place: Place) -> "Serial":
        """The schedule of a rank that owns the whole model."""
        return Serial(part, loss, seed, place.trace)


class Serial:
    """Plain training of one part; the reference that every other schedule is compared with."""

    behind = 0

    def __init__(self, part: Part, loss: Loss, seed: int, trace: Trace = SILENT):
        self.parts: Mapping[str, Part] = {part.name: part}
        self.staleness = Staleness()
        self._part = part
        self._loss = loss
        self._seed = seed
        self._trace = trace
        # events of a recorded step could not be told apart
        self._recorder = None if trace.wanted else part.ops.recorder()
        self._spans = {name: part.layout.span((name,)) for name in part.weight_views}

    def step(self, batch: Batch, update: Update) -> Sequence[Measured]:
        """Forward, loss, backward layer by layer, update; no loss of a batch without samples on this rank."""
        part, measured = self._part, []
        if batch.count:
            recorder = self._recorder
            loss = self._repeat(batch, update, recorder) if recorder else self._train(batch, update.ready)
            measured.append(Measured(batch.index, loss, batch.count))
        else:
            part.grads.fill(0)
            update.ready(part, slice(0, part.layout.size))
        update(part, batch)
        self.staleness.add(0)
        return measured

    def _train(self, batch: Batch, ready: Ready, pool: Pool | None = None, keys: Keys | None = None) -> Array:
        """Forward, loss and backward."""
        part = self._part
        context = Pass(pool or part.pool, part.ops, seed=self._seed, batch=batch.index, rows=batch.rows, keys=keys)
        return self._backpropagate(batch, context, ready)

    def _repeat(self, batch: Batch, update: Update, recorder: Any) -> Array:
        """The same, as it was recorded for the first batch of this size."""

        def work(inputs: tuple[Array, ...], pool: Pool, keys: Keys | None, cut: Cut, ready: Ready) -> Array:
            x, target = inputs
            return self._train(replace(batch, x=x, target=target), ready, pool, keys)

        numbers = numbers_of(self._seed, batch)
        loss: Array = repeat(recorder, self._part, (batch.x, batch.target), numbers, update, work)
        return loss.copy()

    def gradient(self, batch: Batch) -> None:
        """Write the gradient of the summed loss to the part, with running statistics and no update."""
        context = Pass(self._part.pool, self._part.ops, training=False, gradients=True)
        self._backpropagate(batch, context, lambda part, span: None)

    def _backpropagate(self, batch: Batch, context: Pass, ready: Ready) -> Array:
        part, version = self._part, self.staleness.updates
        begun = self._trace.now()
        y, saved = part.network.forward(part.weight_views, part.state_views, batch.x, context)
        loss, dy = self._loss(y, batch.target, context)
        del y
        self._trace.add("forward", begun, batch.index, version)
        begun = self._trace.now()
        for name, _, finish in part.network.sweep(part.weight_views, saved, dy, context):
            finish(part.grad_views.get(name, EMPTY))
            if name in self._spans:
                ready(part, self._spans[name])
        self._trace.add("backward", begun, batch.index, version)
        return loss

    def drain(self, update: Update) -> Sequence[Measured]:
        """Nothing is ever in flight."""
        return ()

    def met(self, anew: bool) -> None:
        """Nothing is ever in flight."""

    def predict(self, x: Array, weights: Tree | None = None, state: Tree | None = None) -> Array:
        """Forward only, on x: (B, *shape), with the part's own weights and statistics unless others are given."""
        part = self._part
        context = Pass(part.pool, part.ops, training=False)
        return part.network.forward(weights or part.weight_views, state or part.state_views, x, context)[0]

    def across(self, values: Array) -> Array:
        """The whole replica is here."""
        return values

    def chained(self, values: Sequence[float]) -> Sequence[float]:
        """All layers are here."""
        return values

    def flight(self) -> Flight | None:
        """Nothing is ever in flight."""
        return None

    def resume(self, flight: Flight, batch: Callable[[int], Batch]) -> None:
        """Nothing is ever in flight."""
