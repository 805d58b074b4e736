"""Synchronous data parallelism: one mean gradient, all-reduced in buckets while the backward pass still runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel, Pending
from mpinn.config import Deal
from mpinn.consensus.consensus import Measure, Meeting
from mpinn.datasets.batches import Batch
from mpinn.nn.layout import Layout
from mpinn.nn.part import Part


@dataclass(frozen=True, kw_only=True)
class GradientsOptions:
    """``bucket`` is the size, in MiB, from which a finished stretch of the gradient leaves."""

    bucket: Annotated[float, Meta(gt=0)] = 4.0

    deal: ClassVar[Deal] = "redealt"

    def build(self, channel: Channel, steps_per_epoch: int) -> "Gradients":
        """The consensus of the replicas that ``channel`` joins."""
        return Gradients(channel, int(self.bucket * 2**20))


class Gradients:
    """All replicas apply the same gradient: the sum over the global batch, divided once by its samples.

    The sum over replicas is divided by the samples of the global batch, so uneven shares and ragged last batches weigh
    as they do on one rank, and a replica without samples takes part with a zero gradient. The backward pass completes
    the vector from its end; whenever ``bucket`` bytes are complete, their sum is started. All weights stay equal;
    running statistics of batch norms are each replica's own.
    """

    masks = False

    def __init__(self, channel: Channel, bucket: int):
        self.agreed = True
        self.merge: Array = np.full(channel.size, 1 / channel.size)
        self.memory: Mapping[str, tuple[Layout, Array]] = {}
        self._channel = channel
        self._bucket = bucket
        self._open: dict[str, slice] = {}
        self._pending: list[Pending] = []

    def ready(self, part: Part, span: slice) -> None:
        """Join the span to the open bucket, which leaves when it is large enough; poke what is on its way."""
        if self._channel.size == 1:
            return
        stretch = self._open.get(part.name)
        if stretch is not None and span.stop != stretch.start:
            raise ValueError(f"the gradient is completed from its end: {span} does not lie below {stretch}")
        stretch = span if stretch is None else slice(span.start, stretch.stop)
        if (stretch.stop - stretch.start) * part.grads.itemsize >= self._bucket:
            self._leave(part, stretch)
        else:
            self._open[part.name] = stretch
        for pending in self._pending:
            pending.test()

    def _leave(self, part: Part, stretch: slice) -> None:
        self._pending.append(self._channel.all_sum(part.grads[stretch]))
        self._open[part.name] = slice(stretch.start, stretch.start)

    def gradients(self, part: Part, batch: Batch) -> int:
        """Send the rest, wait for all of it; the samples of the global batch."""
        stretch = self._open.pop(part.name, slice(0, 0))
        if stretch.stop > stretch.start:
            self._leave(part, stretch)
            del self._open[part.name]
        for pending in self._pending:
            pending.wait()
        self._pending.clear()
        return batch.total

    def combine(self, part: Part) -> None:
        """Weights agree already."""

    def weights(self, parts: Mapping[str, Part], step: int, measure: Measure, last: bool) -> Meeting | None:
        """Weights agree already."""
        return None
