"""Gossip: every replica mixes its weights with those of its neighbours in a graph (Pham & Ahn, arXiv 2509.05679).

With a doubly stochastic matrix a (`mpinn.consensus.graphs.metropolis`), one step of replica s is

adapt_then_combine   psi_s = W_s - eta g_s(W_s);  W_s <- sum_r a_sr psi_r
combine_then_adapt   W_s <- sum_r a_sr W_r - eta g_s(W_s), g_s at the weights before the mix

with plain SGD. g_s is the gradient of the loss alone. What the optimizer does with the weights themselves it does with
those that it moves, so combine-then-adapt takes the weight decay lambda after the mix, V_s = sum_r a_sr W_r:

combine_then_adapt   W_s <- V_s - eta (g_s(W_s) + lambda V_s)

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
from mpinn.consensus.consensus import Measure, Meeting, Passive
from mpinn.consensus.graphs import GRAPHS, GraphName, metropolis
from mpinn.datasets.batches import Batch
from mpinn.nn.layout import Layout
from mpinn.nn.part import Part


@dataclass(frozen=True, kw_only=True)
class GossipOptions:
    """Replicas mix their weights with those of their neighbours in a graph (arXiv 2509.05679).

    Each replica learns from samples of its own, since it is an agent whose loss is that of its own data.
    """

    graph: GraphName = "ring"
    """Who are neighbours; a ``torus`` is the most nearly square table of the replicas: a ring if their number is
    prime."""
    form: Literal["adapt_then_combine", "combine_then_adapt"] = "adapt_then_combine"
    """Whether the update comes before the mix or after it; under ``combine_then_adapt`` the gradient is that of the
    weights before the mix, and the weight decay is that of the weights after it."""
    period: Period = Period("1 step")
    """After how many batches neighbours mix again."""

    deal: ClassVar[Deal] = "fixed"

    def build(self, channel: Channel, steps_per_epoch: int) -> "Gossip":
        """The consensus of the replicas that ``channel`` joins."""
        return Gossip(channel, self, self.period.steps(steps_per_epoch))


class Gossip(Passive):
    """Replicas that mix with the update of every ``period``-th batch; one replica never mixes.

    An update of several batches mixes, once, if one of them is such a batch. The batch, not the step, counts, so
    replicas agree however their stages are delayed; ``memory`` has, for each part, the first batch of its next update.

    A mix sends the weight vector to every neighbour and receives theirs: two messages for each, receives first, no
    collective. Under combine-then-adapt they leave as soon as the next update is known to mix, so that they overlap
    with a whole step where every update is of one batch; the weights are not written until the mix. Every neighbour's
    vector is kept: on a complete graph as many as there are other replicas.
    """

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
        if self._channel.size == 1:
            return
        # what is under way may be of members that have left
        self.close()
        layout = Layout(dict.fromkeys(parts, (1,)), np.float64)
        vector = np.full(layout.size, np.nan)
        self.memory = {"gossip": (layout, vector)}
        views = layout.views(vector)
        self._exchanges = {name: Exchange(self._channel, self._row, part, views[name]) for name, part in parts.items()}

    def ready(self, part: Part, span: slice) -> None:
        """Gradients stay at home; poke what is on its way."""
        if part.name in self._exchanges:
            self._exchanges[part.name].poke()

    def gradients(self, part: Part, batch: Batch) -> int:
        """The replica's own samples are all there are."""
        if part.name in self._exchanges:
            self._exchanges[part.name].update(batch.index, self._period)
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
        if exchange is not None and exchange.due:
            exchange.begin()
            exchange.settle()
            exchange.mix()

    def weights(self, parts: Mapping[str, Part], step: int, measure: Measure, last: bool) -> Meeting | None:
        """Under combine-then-adapt let the weights leave that the next update will mix. Nobody meets."""
        # in the order of the parts, as on all ranks: messages of several are told apart by it
        for exchange in (self._exchanges[name] for name in parts if name in self._exchanges):
            exchange.boundary(step)
            if self._early and not last and exchange.foreseen(self._period):
                exchange.begin()
        return None

    def close(self) -> None:
        """Complete what is under way; the neighbours sent it too."""
        for exchange in self._exchanges.values():
            exchange.settle()


class Exchange:
    """The weights of one part, those of its neighbours, and the messages between them.

    ``first``: (1,), the index of the first batch of the next update, NaN before that is known. ``due``: whether the
    update of which the gradient is complete mixes.
    """

    def __init__(self, channel: Channel, row: list[tuple[int, float]], part: Part, first: Array):
        self.first = first
        self.due = False
        self._begun = False
        self._channel = channel
        self._part = part
        self._received = {r: np.empty_like(part.weights) for r, _ in row if r != channel.rank}
        self._terms = [(share, self._received.get(r, part.weights)) for r, share in row]
        self._pending: list[Pending] = []

    def boundary(self, step: int) -> None:
        """After ``step`` steps, and no update since the start: the next one has the batch of the last step.

        An earlier one is its first if the run goes on with what was in flight: then ``first`` has been restored.
        """
        if not self._begun:
            self.first[0] = np.fmin(self.first[0], step - 1)
            self._begun = True

    def update(self, batch: int, period: int) -> None:
        """The next update is of the batches up to this one."""
        first = int(np.fmin(self.first[0], batch))
        self.due = (batch + 1) // period > first // period
        self.first[0] = batch + 1
        self._begun = True

    def foreseen(self, period: int) -> bool:
        """Whether the next update mixes, of how many batches it may be."""
        return int(self.first[0] + 1) % period == 0

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
