"""A population on one rank: panel after panel runs forward, loss and backward while it is in the cache."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from mpinn.array.typing import Array
from mpinn.datasets.batches import Batch
from mpinn.nn.layer import EMPTY, Pass, Tree
from mpinn.nn.loss import MemberLoss
from mpinn.nn.packed import LAYER, Packed, population_of
from mpinn.nn.part import Part
from mpinn.schedules.serial import Serial
from mpinn.trace import SILENT, Trace


class Members(Serial):
    """Trains the panels of this rank; the loss of a batch is the mean over all members of the population.

    ``share``: what a member's loss counts in that mean, times the number of ranks among which the members are dealt.
    A member whose loss is not finite does not count: it harms nobody else.
    """

    def __init__(self, part: Part, loss: MemberLoss, seed: int, share: float = 1.0, trace: Trace = SILENT):
        super().__init__(part, loss, seed, trace)
        self._recorder = None
        self._member_loss = loss
        self.share = share
        self.idle: frozenset[str] = frozenset()
        """Panels in which nobody learns any more."""

    @property
    def part(self) -> Part:
        """What this rank owns."""
        return self._part

    @property
    def loss(self) -> MemberLoss:
        """Of every member."""
        return self._member_loss

    @property
    def population(self) -> Packed:
        """The members of this rank."""
        return population_of_part(self._part)

    def replace(self, part: Part) -> None:
        """Go on with other members."""
        self._part = part
        self.parts = {part.name: part}
        self.idle = frozenset()

    def _backpropagate(self, batch: Batch, context: Pass, ready: Callable[[Part, slice], None]) -> Array:
        part, begun, version = self._part, self._trace.now(), self.staleness.updates
        weights, grads = part.weight_views.get(LAYER, EMPTY), part.grad_views.get(LAYER, EMPTY)
        total = 0.0
        for name, panel in self.population.panels:
            if name in self.idle:
                continue
            y, saved = panel.forward(weights[name], {}, batch.x, context)
            losses, dy = self._member_loss.members(y, batch.target, context)
            _, finish = panel.backward(weights[name], saved, dy, context)
            finish(grads[name])
            total += float(losses[np.isfinite(losses)].sum())
            # so that the next panel has their buffers, which are in the cache
            del y, saved, dy, finish
        ready(part, slice(0, part.layout.size))
        self._trace.add("forward", begun, batch.index, version)
        return np.asarray(total * self.share)

    def measure(self, batches: Iterable[Batch], panels: Iterable[str] | None = None, weights: Tree = EMPTY) -> Array:
        """Sums over the samples, (M, 3): loss, right predictions, samples, of the members of this rank in their order.

        Only those of ``panels``, if given, are measured; the sums of all others are 0. ``weights``: in place of their
        own.
        """
        part, population = self._part, self.population
        tree = (weights or part.weight_views).get(LAYER, EMPTY)
        wanted = {name for name, _ in population.panels} if panels is None else {*panels}
        sums = np.zeros((len(population.members), 3))
        context = Pass(part.pool, part.ops, training=False)
        for batch in batches:
            if not batch.count:
                continue
            place = 0
            for name, panel in population.panels:
                rows = slice(place, place + len(panel.members))
                place = rows.stop
                if name in wanted:
                    y, _ = panel.forward(tree[name], {}, batch.x, context)
                    sums[rows, 1] += part.ops.packed_correct(y.transpose(1, 2, 0), batch.target)
                    sums[rows, 0] += self._member_loss.members(y, batch.target, context)[0]
                    sums[rows, 2] += batch.count
        return sums


def population_of_part(part: Part) -> Packed:
    """The members that a part has; TypeError if it is no population."""
    population = population_of(part.network)
    if population is None:
        raise TypeError(f"{part.name} is no population")
    return population


def alone(part: Part, loss: Any, seed: int) -> Serial:
    """The schedule of a rank that owns a whole model, or some members of a population."""
    return (Serial if population_of(part.network) is None else Members)(part, loss, seed)
