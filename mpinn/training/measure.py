"""Measuring models: one replica's own, for its score, and the one model of the run, on all ranks together."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.random import default_rng

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel
from mpinn.consensus.consensus import Consensus, Qualities, Quality
from mpinn.consensus.packing import Packing
from mpinn.datasets.batches import Batch, Batches
from mpinn.nn.layer import Pass, Tree
from mpinn.nn.loss import Loss, correct
from mpinn.nn.part import Part
from mpinn.schedules.schedule import Schedule

FISHER_STREAM = 0x46495348
EVALUATION_BATCH = 256
"""Samples that one rank predicts at once."""

Views: TypeAlias = tuple[Tree, Tree]


@np.errstate(all="ignore")
def totals(schedule: Schedule, loss: Loss, batches: Iterable[Batch], views: Views | None = None) -> Array:
    """Sums over the samples of ``batches``: [loss, right predictions, samples]; ``views`` are (weights, state).

    Zeros on a rank on which the depth does not end. Where outputs overflow, the sums say so, and NumPy does not.
    """
    found: list[tuple[Array, Array, int]] = []
    part = next(iter(schedule.parts.values()))
    context = Pass(part.pool, part.ops, training=False)
    for batch in batches:
        if batch.count and (y := schedule.predict(batch.x, *(views or ()))) is not None:
            own, right = loss(y, batch.target, context)[0], correct(y, batch.target, context)
            found.append((own, right, batch.count))
    # a device is waited for once, at the end
    sums = np.zeros(3)
    for own, right, count in found:
        sums += float(own), float(right), count
    return sums


def quality(sums: Array) -> Quality:
    """Means from the sums of `totals`; NaN without samples."""
    found = qualities(sums[None])
    return Quality(float(found.loss[0]), float(found.accuracy[0]))


def qualities(sums: Array) -> Qualities:
    """Means of each group, from sums (G, 3) of loss, right predictions and samples; NaN without samples."""
    samples = np.where(sums[:, 2] > 0, sums[:, 2], np.nan)
    return Qualities(sums[:, 0] / samples, sums[:, 1] / samples)


class ReplicaMeasure:
    """What a score may ask about this replica: it sends no message that counts, and none to another replica."""

    def __init__(self, schedule: Schedule, loss: Loss, batches: Batches, step: int, seed: int, replica: int):
        self._schedule = schedule
        self._loss = loss
        self._batches = batches
        self._step = step
        self._key = (FISHER_STREAM, seed, step, replica)

    def validation(self) -> Qualities:
        """On the whole validation split."""
        return qualities(self._sums(self._batches.evaluation("validation", EVALUATION_BATCH)))

    def _sums(self, batches: Iterable[Batch]) -> Array:
        """(G, 3) of loss, right predictions and samples."""
        return self.across(totals(self._schedule, self._loss, batches))[None]

    def across(self, values: Array) -> Array:
        """The sum of ``values`` over the ranks that hold this replica, on all of them; the array is written."""
        return self._schedule.across(values)

    def shard(self) -> Qualities:
        """On the samples of the epoch that the last step belongs to; right about none of them if there are none."""
        sums = self._sums(map(self._batches.batch, self._epoch()))
        return qualities(np.where(sums[:, 2:] > 0, sums, (0, 0, 1)))

    def _epoch(self) -> range:
        length = self._batches.steps_per_epoch
        first = (self._step - 1) // length * length
        return range(first, first + length)

    def fisher(self, part: Part, out: Array, samples: int) -> None:
        """The mean of the squared gradients of single samples, with labels drawn from the model's own distribution.

        Zero for an auxiliary part, on which that distribution does not depend.
        """
        rng = default_rng(self._key)
        out.fill(0)
        if part.auxiliary:
            return
        done = 0
        for sample in self._singles(samples):
            y = self._schedule.predict(sample.x)
            if y is not None:
                drawn = self._loss.draw(part.ops.on_host(y), rng)
                sample = replace(sample, target=part.ops.on_device(drawn))
            self._schedule.gradient(sample)
            np.multiply(part.grads, part.grads, out=part.grads)
            np.add(out, part.grads, out=out)
            done += 1
        np.divide(out, max(1, done), out=out)

    def _singles(self, most: int) -> Iterable[Batch]:
        left = most
        for step in self._epoch():
            batch = self._batches.batch(step)
            for row in range(min(batch.count, left)):
                yield replace(batch, x=batch.x[row : row + 1], count=1)
            left -= min(batch.count, left)
            if not left:
                return


class RunMeasure:
    """The quality of the run's one model: replicas that differ are merged first, then all share the samples.

    ``column`` joins the ranks that hold the same parameters, one of each replica and in their order; without it these
    are all ranks. No count of messages includes it.
    """

    def __init__(
        self,
        schedule: Schedule,
        loss: Loss,
        batches: Batches,
        control: Channel,
        consensus: Consensus,
        column: Channel | None = None,
    ):
        self._schedule = schedule
        self._loss = loss
        self._batches = batches
        self._control = control
        self._column = column or control
        self._consensus = consensus
        self._packings: dict[str, Packing] = {}

    def quality(self, split: str, step: int = 0) -> Quality:
        """The merged model on ``split``; called by all ranks, after ``step`` if that matters."""
        (part,) = (part for part in self._schedule.parts.values() if not part.auxiliary)
        views = self._merged(part, self.merge_weights())
        rank, size = self._column.rank, self._column.size
        sums = totals(
            self._schedule, self._loss, self._batches.evaluation(split, EVALUATION_BATCH * size, rank, size), views
        )
        self._control.all_sum(sums).wait()
        return quality(sums)

    def merge_weights(self) -> Array:
        """The weights (R,) of the merge: the consensus's own, without replicas that are not finite."""
        if self._column.size == 1:
            return np.ones(1)
        parts = self._schedule.parts.values()
        bad = np.zeros(self._column.size)
        bad[self._column.rank] = not all(p.ops.all_finite(vector) for p in parts for vector in (p.weights, p.state))
        self._control.all_max(bad).wait()
        weights: Array = self._consensus.merge * (1 - bad)
        if not weights.any():
            weights = 1 - bad
        weights /= max(weights.sum(), 1e-300)
        return weights

    def _merged(self, part: Part, weights: Array) -> Views:
        shared = self._consensus.agreed
        if self._column.size == 1 or not weights.any() or (shared and not part.state.size):
            return part.weight_views, part.state_views
        if part.name not in self._packings:
            self._packings[part.name] = Packing(part, slots=False)
        packing = self._packings[part.name]
        summed = packing.statistics if shared else packing.buffer
        if weights.max() == 1:
            packing.copy()
            self._column.broadcast(summed, int(weights.argmax())).wait()
        else:
            packing.share(weights[self._column.rank :][:1])
            self._column.all_sum(summed).wait()
            packing.merged()
        merged = part.layout.views(packing.weights), part.state_layout.views(packing.state)
        return (part.weight_views, merged[1]) if shared else merged
