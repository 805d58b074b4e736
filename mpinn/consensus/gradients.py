"""Synchronous data parallelism: one mean gradient, all-reduced in buckets while the backward pass still runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel, Pending
from mpinn.config import Deal
from mpinn.consensus.consensus import Passive
from mpinn.datasets.batches import Batch
from mpinn.nn.layout import Layout
from mpinn.nn.part import Part


@dataclass(frozen=True, kw_only=True)
class GradientsOptions:
    """Synchronous data parallelism: all replicas apply the mean gradient of the global batch in every step."""

    bucket: Annotated[float, Meta(gt=0)] = 4.0
    """MiB of the pieces in which the gradient leaves while the backward pass still runs."""

    deal: ClassVar[Deal] = "redealt"

    def build(self, channel: Channel, steps_per_epoch: int) -> "Gradients":
        """The consensus of the replicas that ``channel`` joins."""
        return Gradients(channel, int(self.bucket * 2**20))


@dataclass(slots=True)
class _Flight:
    """What has happened to a gradient of ``size`` elements: from ``complete`` on it is there, from ``sent`` on away."""

    complete: int
    sent: int
    pending: list[Pending] = field(default_factory=list)


class Gradients(Passive):
    """All replicas apply the same gradient: the sum over the global batch, divided once by its samples.

    The sum over replicas is divided by the samples of the global batch, so uneven shares and ragged last batches weigh
    as they do on one rank, and a replica without samples takes part with a zero gradient. The backward pass completes
    the vector from its end, and from there it is cut into buckets of ``bucket`` bytes, each of which leaves as soon as
    it is complete. The cuts depend on the size of the vector alone, so that ranks agree about every message however the
    gradient came to them. All weights stay equal; running statistics of batch norms are each replica's own.
    """

    def __init__(self, channel: Channel, bucket: int):
        self.agreed = True
        self.merge: Array = np.full(channel.size, 1 / channel.size)
        self.memory: Mapping[str, tuple[Layout, Array]] = {}
        self._channel = channel
        self.bucket = bucket if channel.size > 1 else 0
        self._flights: dict[str, _Flight] = {}

    def ready(self, part: Part, span: slice) -> None:
        """Let every bucket leave that ``span`` completes; poke what is on its way."""
        if self._channel.size == 1:
            return
        flight = self._flight(part)
        if span.stop != flight.complete:
            raise ValueError(f"the gradient is completed from its end: {span} does not end at {flight.complete}")
        flight.complete = span.start
        step = max(1, self.bucket // part.grads.itemsize)
        while flight.sent - flight.complete >= step:
            self._leave(part, flight, flight.sent - step)
        for pending in flight.pending:
            pending.test()

    def _flight(self, part: Part) -> _Flight:
        return self._flights.setdefault(part.name, _Flight(part.grads.size, part.grads.size))

    def _leave(self, part: Part, flight: _Flight, start: int) -> None:
        flight.pending.append(self._channel.all_sum(part.grads[start : flight.sent]))
        flight.sent = start

    def gradients(self, part: Part, batch: Batch) -> int:
        """Send the rest, wait for all of it; the samples of the global batch."""
        if self._channel.size == 1:
            return batch.total
        flight = self._flight(part)
        del self._flights[part.name]
        if flight.complete:
            raise ValueError(f"the gradient of {part.name} is incomplete below element {flight.complete}")
        if flight.sent:
            self._leave(part, flight, 0)
        for pending in flight.pending:
            pending.wait()
        return batch.total
