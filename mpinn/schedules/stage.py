"""One stage of the depth: it computes on its part, and speaks with the stages beside it."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from mpinn.array.pool import Pool
from mpinn.array.typing import Array, Shape
from mpinn.comm.channel import Channel, Pending
from mpinn.datasets.batches import Batch
from mpinn.nn.layer import EMPTY, Finish, Pass, Saved, Tree
from mpinn.nn.loss import Loss
from mpinn.nn.part import Part
from mpinn.schedules.recorded import Kept, Ready, Recordings
from mpinn.schedules.schedule import Update
from mpinn.schedules.versions import Version
from mpinn.trace import Trace

Way: TypeAlias = Literal["activation", "gradient"]

TAGS = 2**14
"""Messages carry the index of their batch, up to a multiple of this, as their tag: one for another batch never fits."""
AHEAD = 2
"""Messages of an evaluation that may be under way before the next batch is predicted."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a stage stands in the depth of its replica.

    ``channel`` joins the stages of the replica for training, ``aside`` for what no count of messages includes.
    ``inputs`` and ``outputs`` are the shapes of one sample before and after the stage, ``final`` after the last one.
    """

    channel: Channel
    aside: Channel
    inputs: Shape
    outputs: Shape
    trace: Trace
    final: Shape = ()
    second_core: bool = False
    """Whether every rank of this machine has a core for a thread beside its main one."""


@dataclass(slots=True, eq=False)
class Message:
    """An array that is being received."""

    array: Array
    pending: Pending
    way: Way
    batch: int


@dataclass(slots=True, eq=False)
class Total:
    """Where gradients of several batches add up: ``spare`` takes the next one, which is added to the part's.

    The first gradient goes to the part directly. A slice is ready when the last one has been added.
    """

    spare: Array
    views: Tree
    first: bool = True
    last: bool = True


class Stage:
    """The part of one rank with its two neighbours: ``number`` counts from 0, of ``count`` stages."""

    def __init__(self, part: Part, loss: Loss, seed: int, place: Place):
        self.part = part
        self.number, self.count = place.channel.rank, place.channel.size
        self.first, self.last = self.number == 0, self.number == self.count - 1
        self.returns = not self.first
        """Whether the stage before is sent input gradients."""
        self.trace = place.trace
        self._loss = loss
        self._seed = seed
        self._place = place
        self._spans = {name: part.layout.span((name,)) for name in part.weight_views}
        recorder = None if place.trace.wanted else part.ops.recorder()
        self._recordings = Recordings(self, recorder, seed) if recorder else None
        self._inbox = part.ops.inbox(part.pool)
        self._open: list[Pending] = []
        self._aside: deque[Pending] = deque()
        self._lengths: list[int] = []
        self.between: Callable[[], None] = _nothing
        """Called whenever messages are moved along."""
        self.version = 0
        """How many updates the weights have seen since this start."""

    # messages

    def receive(self, way: Way, batch: Batch) -> Message | None:
        """Begin to receive what a batch needs from a neighbour; None where there is nothing to be received."""
        alone = self.first if way == "activation" else self.last
        if alone or not batch.count:
            return None
        shape, source, tag = self._route(way, batch)
        array, moment = self._inbox.room((batch.count, *shape), self.part.compute_dtype)
        with moment:
            pending = self._place.channel.receive(array, source, tag)
        self._open.append(pending)
        return Message(array, pending, way, batch.index)

    def _route(self, way: Way, batch: Batch) -> tuple[Shape, int, int]:
        tag = batch.index % TAGS * 2
        if way == "activation":
            return self._place.inputs, self.number - 1, tag
        return self._place.outputs, self.number + 1, tag + 1

    def take(self, message: Message | None, batch: Batch) -> Array:
        """The received array, once it is there; the batch's own samples on the first stage."""
        if message is None:
            return (
                batch.x
                if self.first
                else np.empty_like(self.part.weights, self.part.compute_dtype, shape=(0, *self._place.inputs))
            )
        begun = self.trace.now()
        message.pending.wait()
        self.trace.add("receive", begun, message.batch, size=message.array.nbytes)
        return message.array

    def _send(self, way: Way, array: Array, batch: Batch) -> None:
        begun = self.trace.now()
        whole = self.part.ops.contiguous(array)
        tag = batch.index % TAGS * 2
        if way == "activation":
            pending = self._place.channel.send(whole, self.number + 1, tag)
        else:
            pending = self._place.channel.send(whole, self.number - 1, tag + 1)
        self._open.append(pending)
        self.trace.add("send", begun, batch.index, size=whole.nbytes)

    def poke(self) -> None:
        """Move along what is under way."""
        self.between()
        self._open = [pending for pending in self._open if not pending.test()]

    def settle(self, most: int = 0) -> None:
        """Return when of all that is under way only the last ``most`` messages may not have arrived."""
        while len(self._open) > most:
            self._open.pop(0).wait()

    # passes

    def context(self, batch: Batch, **switches: Any) -> Pass:
        """Of a pass with a batch."""
        rows, index = batch.rows, batch.index
        return Pass(
            self.part.pool, self.part.ops, seed=self._seed, batch=index, rows=rows,
            wants_dx=self.returns, poke=self.poke, **switches,
        )  # fmt: skip

    def forward(
        self,
        batch: Batch,
        x: Array,
        version: Version | None = None,
        *,
        recompute: bool = False,
        again: bool = False,
        pool: Pool | None = None,
    ) -> tuple[Array, Saved]:
        """x: (B, *inputs) to y: (B, *outputs), and what the backward pass needs.

        With the part's weights, or an older ``version`` of them. With ``recompute`` nothing is kept; ``again`` is the
        second run, which moves no running statistics. With a ``pool`` of its own it may run beside the main thread, and
        moves no messages along.
        """
        if self._recordings and pool is None and self._recordings.wants(x.shape):
            y, saved = self._recordings.forward(batch, x, version, recompute, again)
            self.poke()
            return y, saved
        begun = self.trace.now()
        context = self.context(batch, recompute=recompute, update_state=not again)
        if pool is not None:
            context.pool, context.poke = pool, None
        weights = version.views if version else self.part.weight_views
        y, saved = self.part.network.forward(weights, self.part.state_views, x, context)
        row = int(pool is not None)
        self.trace.add("recompute" if again else "forward", begun, batch.index, self.version, row=row)
        return y, saved

    def pass_on(self, y: Array, batch: Batch) -> None:
        """Send an activation to the next stage."""
        if batch.count:
            self._send("activation", y, batch)

    def leave(self, dx: Array, batch: Batch) -> None:
        """Send an input gradient to the stage before."""
        self._send("gradient", dx, batch)

    def loss(self, y: Array, batch: Batch) -> tuple[Array, Array]:
        """On the last stage: the loss summed over the samples, and dy."""
        loss, dy = self._loss(y, batch.target, self.context(batch))
        return loss, dy

    def backward(
        self,
        batch: Batch,
        saved: Saved,
        dy: Array,
        update: Update,
        version: Version | None = None,
        total: Total | None = None,
    ) -> None:
        """From dy: (B, *outputs) to the part's gradient; the input gradient leaves before weight gradients are made.

        ``version``: that of the forward pass.
        """
        if self._recordings and isinstance(saved, Kept):
            self._recordings.backward(batch, saved, dy, update, version, total)
            self.poke()
            return
        begun, ready = self.trace.now(), update.ready
        weights = version.views if version else self.part.weight_views
        finishes: deque[tuple[str, Finish]] = deque()
        dx: Any = dy
        for name, dx, finish in self.part.network.sweep(weights, saved, dy, self.context(batch)):  # noqa: B007
            finishes.append((name, finish))
            if not self.returns:
                self.finish(*finishes.popleft(), ready, total)
            del finish
        if self.returns:
            self.leave(dx, batch)
        del dx
        while finishes:
            self.finish(*finishes.popleft(), ready, total)
            self.poke()
        self.trace.add("backward", begun, batch.index, self.version)

    def finish(self, name: str, finish: Finish, ready: Ready, total: Total | None) -> None:
        """Write the gradient of a layer, or add it to those before; a slice that is complete is ready."""
        part, span = self.part, self._spans.get(name)
        if span is None:
            finish(EMPTY)
        elif total is None or total.first:
            finish(part.grad_views[name])
        else:
            finish(total.views[name])
            np.add(part.grads[span], total.spare[span], out=part.grads[span])
        if span is not None and (total is None or total.last):
            ready(part, span)

    def nothing(self, ready: Ready, total: Total | None = None) -> None:
        """The gradient of a batch without samples."""
        if total is None or total.first:
            self.part.grads.fill(0)
        if total is None or total.last:
            ready(self.part, slice(0, self.part.layout.size))

    def total(self) -> Total:
        """Room for gradients that add up."""
        spare = np.zeros_like(self.part.grads)
        return Total(spare, self.part.layout.views(spare))

    # aside from training

    def predict(self, x: Array, weights: Tree | None, state: Tree | None) -> Array | None:
        """Forward only; None where the depth does not end. A stage may be a few batches ahead of the next one."""
        part, place = self.part, self._place
        context = Pass(part.pool, part.ops, training=False)
        if not self.first:
            x = self._from(x, -1, place.inputs)
        y = part.network.forward(weights or part.weight_views, state or part.state_views, x, context)[0]
        if self.last:
            return y
        self._to(y, 1)
        return None

    def gradient(self, batch: Batch) -> None:
        """The gradient of the batch's summed loss with running statistics; the stages take turns."""
        part, place = self.part, self._place
        context = Pass(part.pool, part.ops, training=False, gradients=True, wants_dx=not self.first)
        x = batch.x if self.first else self._from(batch.x, -1, place.inputs)
        y, saved = part.network.forward(part.weight_views, part.state_views, x, context)
        if self.last:
            _, dy = self._loss(y, batch.target, context)
        else:
            self._to(y, 1)
            dy = self._from(batch.x, 1, place.outputs)
        dx, finish = part.network.backward(part.weight_views, saved, dy, context)
        finish(part.grad_views)
        if not self.first:
            self._to(dx, -1)

    def across(self, values: Array) -> Array:
        """The sum of ``values`` over the stages of this replica, on all of them; the array is written."""
        self._place.aside.all_sum(values).wait()
        return values

    def chained(self, values: Sequence[float]) -> list[float]:
        """The numbers that the stages give, one after the other."""
        channel = self._place.channel
        if not self._lengths:
            lengths = np.empty((channel.size, 1))
            channel.all_gather(np.array([float(len(values))]), lengths).wait()
            self._lengths = [int(length) for length in lengths[:, 0]]
        own = np.zeros(max(self._lengths))
        own[: len(values)] = self.part.ops.on_host(values)
        rows = np.empty((channel.size, own.size))
        channel.all_gather(own, rows).wait()
        return [float(x) for row, length in zip(rows, self._lengths, strict=True) for x in row[:length]]

    def _from(self, like: Array, step: int, shape: Shape) -> Array:
        into = self.part.pool.empty((len(like), *shape), self.part.compute_dtype)
        if len(like):
            self._place.aside.receive(into, self.number + step).wait()
        return into

    def _to(self, array: Array, step: int) -> None:
        if len(array):
            self._aside.append(self._place.aside.send(self.part.ops.contiguous(array), self.number + step))
        while len(self._aside) > AHEAD:
            self._aside.popleft().wait()


def _nothing() -> None:
    """Nobody has anything to do between messages."""
