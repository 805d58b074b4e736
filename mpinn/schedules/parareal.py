"""Parareal on ranks: stage j has fine block j, its predictor and its coarse network; all fine blocks run at once.

See `mpinn.nn.parareal` for what is computed. Every stage has the samples, so none waits before its fine block has run.
Messages of a sweep, and of a step with one sweep and N stages:

    y_j         to the stage after, as soon as it is there                              N - 1
    c_j         to the stage after, when c_{j-1} has come: the coarse chain             N - 2
    l_{j-1}     to the stage before, before the fine block runs backward                N - 1

The last stage has the head and the loss. What it computes is what `mpinn.nn.parareal.Parareal` computes on one rank, to
the last bit, and nothing is reduced over the stages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta

from mpinn.abreast import Wanted
from mpinn.array.typing import Array, Shape
from mpinn.comm.channel import Channel, Pending
from mpinn.datasets.batches import Batch
from mpinn.errors import InputError
from mpinn.models.model import Model, ModelOptions
from mpinn.models.parareal import parareal
from mpinn.nn.block import Block, Form, Way
from mpinn.nn.layer import Pass, Tree
from mpinn.nn.loss import Loss
from mpinn.nn.network import Whole
from mpinn.nn.parareal import Parareal
from mpinn.nn.part import Part
from mpinn.nn.sweeps import BackwardSweeps, ForwardSweeps
from mpinn.schedules.options import Bounds, StagedOptions
from mpinn.schedules.schedule import Measured, Update
from mpinn.schedules.serial import Serial
from mpinn.schedules.stage import Place, Stage
from mpinn.schedules.staged import Staged
from mpinn.trace import SILENT, Trace

WAYS: tuple[Way, ...] = ("fine", "coarse", "adjoint")
MOST = 128
"""Sweeps: messages carry the number of theirs in their tag, with the index of their batch as far as there is room."""


@dataclass(frozen=True, kw_only=True)
class PararealOptions(StagedOptions):
    """``form`` and ``iterations``: see `mpinn.nn.parareal`.

    ``blocks``: into how many fine blocks the network is cut, 0 for as many as there are stages. One rank trains all of
    them where ``grid.stages`` is 1; otherwise there is a stage for each.
    """

    form: Form = "residual"
    iterations: Annotated[int, Meta(ge=1, le=MOST)] = 1
    blocks: Annotated[int, Meta(ge=0)] = 0

    sampled: ClassVar[bool] = True

    def settled(self, stages: int) -> "PararealOptions":
        """With the number of blocks written out; InputError where it does not fit."""
        blocks = self.blocks or stages
        if stages not in (1, blocks):
            raise InputError("schedule.blocks", f"{blocks} fine blocks need as many stages, or one, not {stages}")
        if self.iterations > blocks:
            raise InputError(
                "schedule.iterations", f"{blocks} fine blocks are exact after {blocks} sweeps, got {self.iterations}"
            )
        return replace(self, blocks=blocks)

    def pieces(self, stages: int) -> int:
        """As many as there are fine blocks."""
        return self.blocks or stages

    def frame(self, model: Model) -> Model:
        """With a block of the body in the first and in the last piece too: stem and head are no fine blocks."""
        return replace(model, stem=model.stem + 1, head=model.head + 1)

    def wanted(self, slots: int) -> Wanted:
        """What is made of the fine blocks."""
        return Wanted(self.blocks, self.form, self.iterations, slots)

    def network(self, options: ModelOptions, model: Model, bounds: Bounds) -> Whole:
        """The parareal network; with one fine block it is the model's own."""
        if len(bounds) == 2:
            return model.network
        return parareal(options, model, bounds, self.form, self.iterations)

    def share(self, network: Whole, model: Model, bounds: Bounds, stage: int, stages: int) -> tuple[Whole, Shape]:
        """One block, or all; samples enter every stage."""
        if stages > 1 and isinstance(network, Parareal):
            return network[stage : stage + 1], model.shape
        return network, model.shape

    def build(self, part: Part, loss: Loss, seed: int, place: Place) -> "Serial | PararealStage":
        """The schedule of one stage; on one rank the network is trained like any other."""
        if place.channel.size == 1:
            return Serial(part, loss, seed, place.trace)
        return PararealStage(part, loss, seed, place)


class ChannelLinks:
    """Links to the stages beside a block; what will come is expected before anything is computed.

    The timeline shows as ``forward`` and ``backward`` what lies between messages, so without any wait for them.
    """

    def __init__(self, channel: Channel, block: Block, part: Part, trace: Trace):
        self._channel = channel
        self._block = block
        self._part = part
        self._trace = trace
        self._open: list[Pending] = []
        self._coming: dict[tuple[Way, int], tuple[Array, Pending]] = {}
        self._batch, self._doing, self._begun = 0, "forward", 0.0

    def expect(self, batch: int, samples: int, backward: bool) -> None:
        """Begin a pass with a batch: receive what the stage before sends, and ``backward`` what the one after does."""
        block, self._batch, self._doing = self._block, batch, "forward"
        for sweep in block.heard:
            self._await("fine", sweep, samples)
            if block.corrected(sweep):
                self._await("coarse", sweep, samples)
        for sweep in reversed(block.sweeps) if backward and not block.last else ():
            self._await("adjoint", sweep, samples)
        self._begun = self._trace.now()

    def _await(self, way: Way, sweep: int, samples: int) -> None:
        shape = self._block.outputs if way == "adjoint" else self._block.inputs
        source = self._channel.rank + (1 if way == "adjoint" else -1)
        array = self._part.pool.empty((samples, *shape), self._part.layout.dtype)
        self._coming[way, sweep] = array, self._channel.receive(array, source, self._tag(way, sweep))

    def _tag(self, way: Way, sweep: int) -> int:
        return (self._batch % 64 * (MOST + 1) + sweep) * len(WAYS) + WAYS.index(way)

    def done(self, doing: str = "") -> None:
        """What has been computed since the last message ends here, and ``doing`` begins."""
        self._trace.add(self._doing, self._begun, self._batch)
        self._doing = doing or self._doing
        self._begun = self._trace.now()

    def send(self, way: Way, sweep: int, array: Array) -> None:
        self.done()
        whole = np.ascontiguousarray(array)
        to = self._channel.rank + (-1 if way == "adjoint" else 1)
        self._open.append(self._channel.send(whole, to, self._tag(way, sweep)))
        self._trace.add("send", self._begun, self._batch, size=whole.nbytes)
        self._begun = self._trace.now()

    def receive(self, way: Way, sweep: int) -> Array:
        self.done()
        array, pending = self._coming.pop((way, sweep))
        pending.wait()
        self._trace.add("receive", self._begun, self._batch, size=array.nbytes)
        self._begun = self._trace.now()
        return array

    def poke(self) -> None:
        """Move along what is under way."""
        self._open = [pending for pending in self._open if not pending.test()]

    def settle(self) -> None:
        """Return when everything that was sent has arrived."""
        for pending in self._open:
            pending.wait()
        self._open.clear()


class PararealStage(Staged):
    """One fine block; nothing is in flight between steps."""

    def __init__(self, part: Part, loss: Loss, seed: int, place: Place):
        if not isinstance(part.network, Parareal):
            raise TypeError("a stage of a parareal network has one of its blocks")
        super().__init__(Stage(part, loss, seed, place))
        (self._block,) = part.network.blocks
        self._part, self._loss, self._seed = part, loss, seed
        self._links = ChannelLinks(place.channel, self._block, part, place.trace)
        self._aside = ChannelLinks(place.aside, self._block, part, SILENT)
        self._spans = {name: part.layout.span((name,)) for name in part.weight_views}

    def step(self, batch: Batch, update: Update) -> Sequence[Measured]:
        """Forward, loss and backward of one batch on all stages, and the update."""
        measured = []
        if batch.count:
            context = Pass(
                self._part.pool, self._part.ops, seed=self._seed, batch=batch.index, rows=batch.rows,
                poke=self._links.poke,
            )  # fmt: skip
            loss = self._pass(batch, context, self._links, update.ready)
            if loss is not None:
                measured.append(Measured(batch.index, loss, batch.count))
        else:
            self._stage.nothing(update.ready)
        update(self._part, batch)
        self._links.settle()
        self.staleness.add(0)
        return measured

    def _pass(
        self, batch: Batch, context: Pass, links: ChannelLinks, ready: Callable[[Part, slice], None]
    ) -> Array | None:
        """Forward and backward; the loss on the last stage."""
        part, block, loss, dy = self._part, self._block, None, None
        links.expect(batch.index, batch.count, backward=True)
        y, saved = ForwardSweeps(block, part.weight_views, part.state_views, context, links).run(batch.x)
        if block.last:
            loss, dy = self._loss(y, batch.target, context)
        del y
        links.done("backward")
        for name, _, finish in BackwardSweeps(block, part.weight_views, context, links).run(saved, dy):
            finish(part.grad_views.get(name, {}))
            if name in self._spans:
                ready(part, self._spans[name])
        links.done()
        return loss

    def predict(self, x: Array, weights: Tree | None = None, state: Tree | None = None) -> Array | None:
        """Forward only, on all stages at once; x: (B, *shape) on each of them."""
        part, links = self._part, self._aside
        context = Pass(part.pool, part.ops, training=False, poke=links.poke)
        links.expect(0, len(x), backward=False)
        sweeps = ForwardSweeps(self._block, weights or part.weight_views, state or part.state_views, context, links)
        y, _ = sweeps.run(x)
        links.settle()
        return y if self._block.last else None

    def gradient(self, batch: Batch) -> None:
        """The gradient of the batch's summed loss, with running statistics and no update."""
        context = Pass(self._part.pool, self._part.ops, training=False, gradients=True, poke=self._aside.poke)
        self._pass(batch, context, self._aside, lambda part, span: None)
        self._aside.settle()
