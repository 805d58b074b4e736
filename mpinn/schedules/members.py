"""A population on one rank: panel after panel runs forward, loss and backward while it is in the cache.

Where the kernels want many members at once, panels do not matter: a few fleets have all members of this rank.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np

from mpinn.array.typing import Array
from mpinn.datasets.batches import Batch
from mpinn.nn.fleet import Fleet, fleets, units_of
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
        self._member_loss = loss
        self.share = share
        self._idle: frozenset[str] = frozenset()
        self._fleets: dict[tuple[frozenset[str], int], list[Fleet]] = {}
        self._starts = starts_of(part)

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

    @property
    def idle(self) -> frozenset[str]:
        """Panels in which nobody learns any more."""
        return self._idle

    @idle.setter
    def idle(self, names: frozenset[str]) -> None:
        if names != self._idle:
            self._idle = names
            self._begin()
            # nobody writes their gradients any more, and a sum over replicas would let them grow from step to step
            for name in names:
                for values in self._part.grad_views[LAYER][name].values():
                    for array in values.values():
                        array.fill(0)

    def replace(self, part: Part) -> None:
        """Go on with other members."""
        self._part = part
        self.parts = {part.name: part}
        self._idle = frozenset()
        self._starts = starts_of(part)
        self._begin()

    def _begin(self) -> None:
        """What is known of a step holds no longer."""
        self._fleets.clear()
        if self._recorder is not None:
            self._recorder.close()
        self._recorder = None if self._trace.wanted else self._part.ops.recorder()

    def _fleets_of(self, names: frozenset[str], samples: int) -> list[Fleet]:
        layout = self._part.layout
        key = names, units_of(samples, layout.dtype)
        if key not in self._fleets:
            self._fleets[key] = fleets(self.population, layout, self._part.ops, *key)
        return self._fleets[key]

    def _backpropagate(self, batch: Batch, context: Pass, ready: Callable[[Part, slice], None]) -> Array:
        part, begun, version = self._part, self._trace.now(), self.staleness.updates
        if part.ops.TOGETHER:
            total = self._together(batch, context)
            ready(part, slice(0, part.layout.size))
        else:
            total = self._one_by_one(batch, context, ready)
        self._trace.add("forward", begun, batch.index, version)
        return total

    def _one_by_one(self, batch: Batch, context: Pass, ready: Callable[[Part, slice], None]) -> Array:
        """From the last panel on, since a gradient leaves from its end on."""
        part = self._part
        weights, grads = part.weight_views.get(LAYER, EMPTY), part.grad_views.get(LAYER, EMPTY)
        sums, end = [], part.layout.size
        for name, panel in reversed(self.population.panels):
            if name in self.idle:
                continue
            y, saved = panel.forward(weights[name], {}, batch.x, context)
            losses, dy = self._member_loss.members(y, batch.target, context)
            _, finish = panel.backward(weights[name], saved, dy, context)
            finish(grads[name])
            sums.append(float(part.ops.finite_sum(losses)))
            # so that the next panel has their buffers, which are in the cache
            del y, saved, dy, finish
            ready(part, slice(self._starts[name], end))
            end = self._starts[name]
        if end:
            ready(part, slice(0, end))
        return np.asarray(sum(reversed(sums), 0.0) * self.share)

    def _together(self, batch: Batch, context: Pass) -> Array:
        part = self._part
        total: Array = part.ops.LIBRARY.zeros((), np.float64)
        for fleet in self._fleets_of(self._names() - self.idle, len(batch.x)):
            y, units = fleet.forward(part.weights, batch.x, context)
            losses, dy = self._member_loss.members(y, batch.target, context)
            fleet.backward(part.weights, batch.x, units, dy, part.grads, context)
            total = total + part.ops.finite_sum(losses)
            # so that the next fleet has their buffers
            del y, units, losses, dy
        return total * self.share

    def _names(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.population.panels)

    @np.errstate(all="ignore")
    def measure(
        self, batches: Iterable[Batch], panels: Collection[str] | None = None, weights: Array | None = None
    ) -> Array:
        """Sums over the samples, (M, 3): loss, right predictions, samples, of the members of this rank in their order.

        Only those of ``panels``, if given, are measured; the sums of all others are 0. ``weights``: a vector in place
        of the part's own.
        """
        part, ops = self._part, self._part.ops
        vector, tree = part.weights, part.weight_views
        if weights is not None:
            vector, tree = weights, part.layout.views(weights)
        wanted = self._names() if panels is None else frozenset(panels)
        sums = ops.LIBRARY.zeros((len(self.population.members), 3))
        context = Pass(part.pool, ops, training=False)
        for batch in batches:
            if batch.count:
                for rows, y in self._outputs(batch, wanted, vector, tree, context):
                    sums[rows, 1] += ops.packed_correct(y.transpose(1, 2, 0), batch.target)
                    sums[rows, 0] += self._member_loss.members(y, batch.target, context)[0]
                    sums[rows, 2] += batch.count
        measured: Array = ops.on_host(sums)
        return measured

    def _outputs(
        self, batch: Batch, names: frozenset[str], vector: Array, tree: Tree, context: Pass
    ) -> Iterator[tuple[Array | slice, Array]]:
        """Places of some members, and what these predict, (B, M, O)."""
        if context.ops.TOGETHER:
            for fleet in self._fleets_of(names, len(batch.x)):
                yield fleet.places, fleet.forward(vector, batch.x, context)[0]
            return
        own, place = tree.get(LAYER, EMPTY), 0
        for name, panel in self.population.panels:
            rows = slice(place, place + len(panel.members))
            place = rows.stop
            if name in names:
                yield rows, panel.forward(own[name], {}, batch.x, context)[0]


def starts_of(part: Part) -> dict[str, int]:
    """Where in the vectors of the part each panel begins."""
    return {entry.path[1]: entry.start for entry in reversed([*part.layout])}


def population_of_part(part: Part) -> Packed:
    """The members that a part has; TypeError if it is no population."""
    population = population_of(part.network)
    if population is None:
        raise TypeError(f"{part.name} is no population")
    return population


def alone(part: Part, loss: Any, seed: int) -> Serial:
    """The schedule of a rank that owns a whole model, or some members of a population."""
    return (Serial if population_of(part.network) is None else Members)(part, loss, seed)
