"""Gossip: every replica mixes its weights with those of its neighbours in a graph (Pham & Ahn, arXiv 2509.05679).

With a doubly stochastic matrix a (`mpinn.consensus.graphs.metropolis`), one step of replica s is

adapt_then_combine   psi_s = W_s - eta g_s(W_s);  W_s <- sum_r a_sr psi_r
combine_then_adapt   W_s <- sum_r a_sr W_r - eta g_s(W_s), g_s at the weights before the mix

Adapt-then-combine on a complete graph is synchronous SGD, also with heavy-ball momentum, where replicas have equally
many samples; combine-then-adapt is not, and neither is with an optimizer that is not linear in the gradient, such as
Adam. A mix contracts the distance to the mean by the second largest singular value of a.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel, Pending
from mpinn.config import Deal, Period
from mpinn.consensus.consensus import Measure, Meeting
from mpinn.consensus.graphs import GRAPHS, GraphName, metropolis
from mpinn.datasets.batches import Batch
from mpinn.nn.layout import Layout
from mpinn.nn.part import Part


@dataclass(frozen=True, kw_only=True)
class GossipOptions:
    """Who are neighbours, when they mix, and every how many batches.

    A ``torus`` is the most nearly square table of the replicas: a ring if their number is prime. Each replica learns
    from samples of its own, since it is an agent whose loss is that of its own data.
    """

    graph: GraphName = "ring"
    form: Literal["adapt_then_combine", "combine_then_adapt"] = "adapt_then_combine"
    period: Period = Period("1 step")

    deal: ClassVar[Deal] = "fixed"

    def build(self, channel: Channel, steps_per_epoch: int) -> "Gossip":
        """The consensus of the replicas that ``channel`` joins."""
        return Gossip(channel, self, self.period.steps(steps_per_epoch))


class Gossip:
    """Replicas that mix with the update of every ``period``-th batch; one replica never mixes.

    A mix sends the weight vector to every neighbour and receives theirs: two messages for each, receives first, no
    collective. Under combine-then-adapt they leave at the end of the step before, and so overlap with a whole step; the
    weights are not written until the mix. The batch, not the step, counts, so replicas agree however their stages are
    delayed. Every neighbour's vector is kept: on a complete graph as many as there are other replicas.
    """

    masks = False
    bucket = 0

    def __init__(self, channel: Channel, options: GossipOptions, period: int):
        self.agreed = channel.size == 1
        self.merge: Array = np.full(channel.size, 1 / channel.size)
        self.memory: Mapping[str, tuple[Layout, Array]] = {}
        self._channel = channel
        self._period = period
        self._early = options.form == "combine_then_adapt"
        self._row = metropolis(partial(GRAPHS[options.graph], channel.size), channel.rank)
        self._exchanges: dict[str, Exchange] = {}

    def prepare(self, parts: Mapping[str, Part]) -> None:
        """Make room for the vectors of the neighbours."""
        if self._channel.size > 1:
            self._exchanges = {name: Exchange(self._channel, self._row, part) for name, part in parts.items()}

    def ready(self, part: Part, span: slice) -> None:
        """Gradients stay at home; poke what is on its way."""
        if part.name in self._exchanges:
            self._exchanges[part.name].poke()

    def gradients(self, part: Part, batch: Batch) -> int:
        """The replica's own samples are all there are."""
        if part.name in self._exchanges:
            self._exchanges[part.name].batch = batch.index
        return batch.count

    def combine(self, part: Part) -> None:
        """Combine, then adapt: mix the weights to which the optimizer's step will be added."""
        if self._early:
            self._mix(part)

    def adapted(self, part: Part) -> None:
        """Adapt, then combine: mix what the optimizers of all have made."""
        if not self._early:
            self._mix(part)

    def _mix(self, part: Part) -> None:
        exchange = self._exchanges.get(part.name)
        if exchange is None:
            return
        due = self._due(exchange.batch)
        if due:
            exchange.begin()
        # messages that left for a batch which did not come may not stay under way: the weights are about to be written
        exchange.settle()
        if due:
            exchange.mix()

    def drains(self, step: int, last: bool) -> bool:
        """Nobody meets."""
        return False

    def weights(self, parts: Mapping[str, Part], step: int, measure: Measure, last: bool) -> Meeting | None:
        """Under combine-then-adapt let the weights leave that the next update will mix. Nobody meets."""
        for name in parts if self._early and not last else ():
            exchange = self._exchanges.get(name)
            if exchange is not None and exchange.batch >= 0 and self._due(exchange.batch + 1):
                exchange.begin()
        return None

    def close(self) -> None:
        """Complete what is under way; the neighbours sent it too."""
        for exchange in self._exchanges.values():
            exchange.settle()

    def _due(self, batch: int) -> bool:
        return (batch + 1) % self._period == 0


class Exchange:
    """The weights of one part, those of its neighbours, and the messages between them.

    ``batch`` is the index of the batch that the part was last updated with, -1 before the first.
    """

    def __init__(self, channel: Channel, row: list[tuple[int, float]], part: Part):
        self.batch = -1
        self._channel = channel
        self._part = part
        self._received = {r: np.empty_like(part.weights) for r, _ in row if r != channel.rank}
        self._terms = [(share, self._received.get(r, part.weights)) for r, share in row]
        self._pending: list[Pending] = []

    def begin(self) -> None:
        """Receive from every neighbour and send to it, unless that is under way."""
        if not self._pending:
            self._pending += [self._channel.receive(vector, r) for r, vector in self._received.items()]
            self._pending += [self._channel.send(self._part.weights, r) for r in self._received]

    def poke(self) -> None:
        """Move messages along."""
        for pending in self._pending:
            pending.test()

    def settle(self) -> None:
        """Return when nothing is under way, so that the weights may be written."""
        for pending in self._pending:
            pending.wait()
        self._pending.clear()

    def mix(self) -> None:
        """Replace the weights by the sum of all terms, added up in the order of the replicas."""
        weights = self._part.weights
        size = min(self._part.ops.STEP, weights.size)
        total, term = (self._part.pool.empty((size,), weights.dtype) for _ in range(2))
        (first, values), *others = self._terms
        for start in range(0, weights.size, max(1, size)):
            block = slice(start, min(start + size, weights.size))
            t, u = total[: block.stop - start], term[: block.stop - start]
            np.multiply(values[block], first, out=t)
            for share, vector in others:
                np.multiply(vector[block], share, out=u)
                np.add(t, u, out=t)
            np.copyto(weights[block], t)
