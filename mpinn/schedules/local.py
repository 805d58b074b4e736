"""Stages that learn from losses of their own: no gradient is ever sent.

The local-gradient reading of the layer-wise method (Akintoye et al., arXiv 2207.11019), with the auxiliary heads of
decoupled greedy learning (Belilovsky, Eickenberg & Oyallon, ICML 2020). In iteration t stage k of K, counted from 1,
runs batch t - k + 1: forward, then through an auxiliary head to the loss, backward, and both are updated at once. The
next stage is sent the activation and nothing comes back, so no gradient is old and nothing is kept for a later pass.

The last stage has the head of the model. Every other one has an auxiliary head of its own, from what the stage makes to
the model's outputs: of images, (B, H, W, C), the mean of each channel first, other shapes are flattened; then a hidden
dense layer, if one is wanted, and a dense layer. Auxiliary heads are saved, and are no part of the model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta
from numpy.random import default_rng

from mpinn.array.pool import Pool
from mpinn.array.recording import Cut, Keys
from mpinn.array.typing import Array, Shape
from mpinn.datasets.batches import Batch
from mpinn.nn.dense import Dense
from mpinn.nn.flatten import Flatten
from mpinn.nn.layer import Layer, Pass
from mpinn.nn.loss import Loss
from mpinn.nn.network import Network, Whole
from mpinn.nn.part import Part, build_part
from mpinn.nn.pool import GlobalAveragePool
from mpinn.schedules.flight import awaited, emptied, landed
from mpinn.schedules.options import StagedOptions
from mpinn.schedules.recorded import Ready, no_numbers, repeat
from mpinn.schedules.schedule import Flight, Measured, Update
from mpinn.schedules.stage import Message, Place, Stage
from mpinn.schedules.staged import Staged

AUXILIARY_STREAM = 0x41555849
"""Sets the numbers of auxiliary heads apart from every other use of the seed."""
AHEAD = 4
"""Messages that may be on their way before a stage waits: nothing that comes back holds it up."""


@dataclass(frozen=True, kw_only=True)
class LocalOptions(StagedOptions):
    """Stages learn from losses of their own through auxiliary heads, and no gradient is sent.

    `train.clip` limits the gradient of a stage and that of its auxiliary head each on its own.
    """

    width: Annotated[int, Meta(ge=0)] = 0
    """Units of a hidden layer, with relu, in every auxiliary head; 0 for none."""

    def build(self, part: Part, loss: Loss, seed: int, place: Place) -> "Local":
        """The schedule of one stage."""
        stage = Stage(part, loss, seed, place)
        return Local(stage, None if stage.last else Auxiliary(stage, place, self.width, loss, seed))

    def remarks(self, second_core: bool, network: Whole, size: int) -> Sequence[str]:
        """Where the gradients come from."""
        return ("every stage but the last learns through an auxiliary head, which is no part of the model",)

    def held(self, stages: int) -> int:
        """How many batches must stay valid besides the one in use."""
        return stages - 1


def auxiliary_network(shape: Shape, outputs: int, width: int) -> Network:
    """From activations whose samples have ``shape`` to the model's ``outputs``."""
    layers: list[tuple[str, Layer]] = []
    if len(shape) == 3:
        layers.append(("pool", GlobalAveragePool()))
    elif len(shape) != 1:
        layers.append(("flatten", Flatten()))
    if width:
        layers.append(("hidden", Dense(width, "relu")))
    return Network((*layers, ("output", Dense(outputs, initial="lecun"))))


class Auxiliary:
    """The auxiliary head of one stage."""

    def __init__(self, stage: Stage, place: Place, width: int, loss: Loss, seed: int):
        own, network = stage.part, auxiliary_network(place.outputs, place.final[0], width)
        self.part = build_part(
            f"auxiliary{stage.number}", network, place.outputs, own.layout.dtype, tuple(own.slots), own.pool, own.ops,
            auxiliary=True, compute_dtype=own.compute_dtype,
        )  # fmt: skip
        self._stage, self._loss = stage, loss
        self._recorder = None if stage.trace.wanted else own.ops.recorder()
        self._spans = {name: self.part.layout.span((name,)) for name in self.part.weight_views}
        self.initialize(seed)

    def initialize(self, seed: int) -> None:
        """Draw the initial weights from the seed and the stage."""
        stage = self._stage.number
        self.part.initialize_with(lambda path: default_rng([AUXILIARY_STREAM, seed, stage, *path]))

    def backpropagate(self, y: Array, batch: Batch, update: Update) -> Array:
        """The gradient of the head for the activation y: (B, *shape); dy, which the next call may write."""
        stage, context = self._stage, Pass(self.part.pool, self.part.ops, batch=batch.index, rows=batch.rows)
        context.wants_dx = True
        if self._recorder is None:
            context.poke = stage.poke
            begun = stage.trace.now()
            found = self._pass(y, batch.target, context, update.ready)
            stage.trace.add("auxiliary", begun, batch.index, stage.version)
            return found

        def work(inputs: tuple[Array, ...], pool: Pool, keys: Keys | None, cut: Cut, ready: Ready) -> Array:
            y, target = inputs
            context.pool = pool
            return self._pass(y, target, context, ready)

        dy: Array = repeat(self._recorder, self.part, (y, batch.target), no_numbers, update, work)
        stage.poke()
        return dy

    def _pass(self, y: Array, target: Array, context: Pass, ready: Ready) -> Array:
        part = self.part
        z, saved = part.network.forward(part.weight_views, part.state_views, y, context)
        _, dz = self._loss(z, target, context)
        del z
        dy = dz
        for name, dy, finish in part.network.sweep(part.weight_views, saved, dz, context):  # noqa: B007
            if name in self._spans:
                finish(part.grad_views[name])
                ready(part, self._spans[name])
        return dy

    def nothing(self, ready: Ready) -> None:
        """The gradient of a batch without samples."""
        self.part.grads.fill(0)
        ready(self.part, slice(0, self.part.layout.size))


class Local(Staged):
    """One stage with its auxiliary head, which the last one has not; iterations count from when nothing was in flight.

    A sent activation is all that joins a stage to the next one. So that memory stays bounded where a later stage is
    slower, a stage waits when `AHEAD` messages have not left.
    """

    def __init__(self, stage: Stage, auxiliary: Auxiliary | None):
        super().__init__(stage)
        stage.returns = False
        heads = [auxiliary.part] if auxiliary else []
        self.parts = {part.name: part for part in (stage.part, *heads)}
        self._auxiliary = auxiliary
        self._lag, self._longest = stage.number, stage.count - 1
        self._begin()

    def _begin(self) -> None:
        self._iteration = self._given = 0
        self._batches: dict[int, Batch] = {}
        self._activation: Message | None = None
        self._void = 0
        """Batches up to this one count nothing."""

    @property
    def behind(self) -> int:
        """Of the batches handed in, how many have not been applied by all stages."""
        return min(self._given, self._longest)

    def step(self, batch: Batch, update: Update) -> Sequence[Measured]:
        """One iteration with a new batch at its beginning; the losses are the model's, not those of auxiliary heads."""
        self._given += 1
        self._batches[self._given] = batch
        return self._iterate(update)

    def drain(self, update: Update) -> Sequence[Measured]:
        """Iterations without a new batch until nothing is in flight."""
        measured: list[Measured] = []
        for _ in range(self._longest if self._given else 0):
            measured += self._iterate(update)
        self._stage.settle()
        self._begin()
        return measured

    def met(self, anew: bool) -> None:
        """Activations of weights that were not finite are received and forgotten."""
        if not anew:
            return
        if self._activation is not None:
            self._activation.pending.wait()
            self._activation = None
        self._void = self._given
        self._batches = emptied(self._batches, self._void)

    def _iterate(self, update: Update) -> list[Measured]:
        self._iteration += 1
        batch = self._batches.pop(self._iteration - self._lag, None)
        message, following = self._activation, self._batches.get(self._iteration + 1 - self._lag)
        # so that it comes while this stage computes
        self._activation = None if following is None else self._stage.receive("activation", following)
        return [] if batch is None else self._turn(batch, message, update)

    def _turn(self, batch: Batch, message: Message | None, update: Update) -> list[Measured]:
        """Forward, loss, backward and update with one batch."""
        stage, measured = self._stage, []
        x = stage.take(message, batch)
        if batch.count:
            y, saved = stage.forward(batch, x)
            if self._auxiliary:
                stage.pass_on(y, batch)
                stage.settle(AHEAD)
                dy = self._auxiliary.backpropagate(y, batch, update)
            else:
                loss, dy = stage.loss(y, batch)
                measured.append(Measured(batch.index, loss, batch.count))
            del y
            stage.backward(batch, saved, dy, update)
        else:
            if self._auxiliary:
                self._auxiliary.nothing(update.ready)
            stage.nothing(update.ready)
        for part in self.parts.values():
            update(part, batch)
        stage.version += 1
        self.staleness.add(0)
        return measured

    def gradient(self, batch: Batch) -> None:
        """That of the model's own loss; that of an auxiliary head, which is no part of the model, is 0."""
        super().gradient(batch)
        if self._auxiliary:
            self._auxiliary.part.grads.fill(0)

    def chained(self, values: Sequence[float]) -> Sequence[float]:
        """Every stage has a loss of its own."""
        return values

    def flight(self) -> Flight | None:
        """What is in flight, to be saved: what is on its way has been sent, and is waited for."""
        if not self.behind:
            return None
        arrays: dict[str, Array] = {}
        batches = [[position, batch.index] for position, batch in self._batches.items()]
        facts = {"iteration": self._iteration, "given": self._given, "void": self._void, "batches": batches}
        return Flight({**facts, "activation": landed(self._activation, arrays, self._stage.part.ops)}, arrays)

    def resume(self, flight: Flight, batch: Callable[[int], Batch]) -> None:
        """Go on with what was in flight."""
        facts = flight.facts
        self._iteration, self._given = facts["iteration"], facts["given"]
        self._void = facts.get("void", 0)
        self._batches = emptied({position: batch(index) for position, index in facts["batches"]}, self._void)
        self._activation = awaited(facts["activation"], "activation", flight.arrays, self._stage.part.ops)
