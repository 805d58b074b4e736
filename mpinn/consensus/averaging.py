"""Weighted model averaging: replicas train alone and meet at a mean in which better ones weigh more.

Ramroach & Joshi 2021, "Weighted-averaging reparameterisation". Between meetings nothing is sent. At a meeting each
replica scores its own model, the scores are gathered (one scalar all-gather), and the weighted mean of everything that
is averaged is formed by one all-reduce of one vector; every replica goes on from the mean.

Each member of a population is averaged as the network that it is: its scores and weights are its own, so that one which
did well on a replica weighs much there, whatever the others did. All scores travel together, and so do all weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from msgspec import Meta

from mpinn.array.typing import Array, Shape
from mpinn.comm.channel import Channel
from mpinn.config import Deal, Period
from mpinn.consensus.consensus import Measure, Meeting, Passive
from mpinn.consensus.groups import Groups, MemberGroups, groups_of
from mpinn.consensus.packing import Packing
from mpinn.consensus.scores import SCORES, Local, ScoreName, mean_weights
from mpinn.datasets.batches import Batch
from mpinn.nn.layout import Layout
from mpinn.nn.part import Part

FISHER_FLOOR = 1e-6
"""The smallest Fisher information that an element is given, so that no denominator is zero."""
COUNTED = ("samples", "squares", "steps")
"""Since the last meeting: samples, squared norms of the mean gradient of each group, how many of those."""


@dataclass(frozen=True, kw_only=True)
class MeetingOptions:
    """When replicas meet, and what they weigh in the mean."""

    score: ScoreName
    """What a replica's weight in the mean is proportional to: 1 (uniform); its accuracy on the validation split
    (accuracy) or on its own samples (accuracy_shard); 1 / its loss, its error or its gradients' norm (inverse_...);
    exp(-sharpness x loss / sum of losses) (boltzmann); the samples it has seen since the last meeting (samples); its
    Fisher information, for each weight of the network apart (fisher); 1 for the most accurate, 0 for others (best)."""
    period: Period = Period("1 epoch")
    """How long replicas train alone before they meet."""
    sharpness: Annotated[float, Meta(ge=0)] = 1.0
    """How steeply the weights of the score ``boltzmann`` fall with the loss."""
    epsilon: Annotated[float, Meta(gt=0)] = 1e-6
    """What is added to the denominators of inverse scores, so that they stay finite."""
    fisher_samples: Annotated[int, Meta(ge=1)] = 64
    """Samples of a replica with which the score ``fisher`` estimates its information."""
    in_flight: Literal["drain", "keep"] = "drain"
    """Whether a decoupled schedule finishes what is in flight before a meeting, or keeps it and goes on with it from
    other weights; that of a replica which was left out counts nothing."""

    deal: ClassVar[Deal] = "fixed"


@dataclass(frozen=True, kw_only=True)
class AveragingOptions(MeetingOptions):
    """Replicas train alone and meet at a mean of their weights, in which better ones weigh more."""

    score: ScoreName = "accuracy"
    mix: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """How far a replica moves to the mean: b in theta + b (mean - theta)."""
    slots: Literal["keep", "reset", "average"] = "keep"
    """Whether the optimizer keeps what it remembers, forgets it, or averages it with the weights of the meeting."""

    def build(self, channel: Channel, steps_per_epoch: int) -> "Averaging":
        """The consensus of the replicas that ``channel`` joins."""
        return Averaging(channel, self, self.period.steps(steps_per_epoch))


class Averaging(Passive):
    """Replicas that meet every ``period`` steps, and after the last one. One replica never meets.

    A replica is left out of a meeting when something that it would contribute, or its score, is not finite. It goes on
    from the mean, and its optimizer starts anew, or from the mean too if slots are averaged.
    """

    def __init__(self, channel: Channel, options: AveragingOptions, period: int):
        self.masks = channel.size > 1
        self._channel = channel
        self._options = options
        self._period = period
        self._score = SCORES[options.score]
        self._packings: dict[str, Packing] = {}
        self._information: dict[str, Array] = {}
        self._groups: dict[str, Groups] = {}
        self._remember((channel.size,), 1)

    def _remember(self, merge: Shape, groups: int) -> None:
        """Make room for what is known of so many groups, of which nothing is known yet."""
        layout = Layout(
            {"merge": merge, "samples": (1,), "squares": (groups,), "steps": (1,), "agreed": (1,)}, np.float64
        )
        vector = np.zeros(layout.size)
        self.memory: Mapping[str, tuple[Layout, Array]] = {"averaging": (layout, vector)}
        views = layout.views(vector)
        self.merge: Array = views["merge"]
        self._samples, self._squares, self._steps, self._agreed = (views[name] for name in (*COUNTED, "agreed"))
        self.merge.fill(1 / self._channel.size)
        self._agreed.fill(1)

    @property
    def agreed(self) -> bool:
        """Whether no replica has moved since all went on from the same mean."""
        return bool(self._agreed[0])

    def prepare(self, parts: Mapping[str, Part]) -> None:
        """Nothing is kept of a network before it is used; of members that will meet, something of each."""
        self._packings.clear()
        self._groups.clear()
        for groups in map(self._grouped, parts.values()):
            if isinstance(groups, MemberGroups) and self._channel.size > 1:
                agreed = self.agreed
                self._remember((self._channel.size, groups.count), groups.count)
                self._agreed.fill(agreed)

    def _grouped(self, part: Part) -> Groups:
        if part.name not in self._groups:
            self._groups[part.name] = groups_of(part)
        return self._groups[part.name]

    def gradients(self, part: Part, batch: Batch) -> int:
        """The replica's own samples are all there are; a score is that of the model, so only its part is counted."""
        if batch.count and not part.auxiliary:
            self._samples += batch.count
            if self._options.score == "inverse_gradient_norm" and self._channel.size > 1:
                self._squares += self._grouped(part).squares(part.grads) / batch.count**2
                self._steps += 1
        self._agreed.fill(self._channel.size == 1)
        return batch.count

    def drains(self, step: int, last: bool) -> bool:
        """Before a meeting, unless what is in flight is to be kept."""
        return self._meets(step, last) and self._options.in_flight == "drain"

    def _meets(self, step: int, last: bool) -> bool:
        return self._channel.size > 1 and (step % self._period == 0 or last)

    def weights(self, parts: Mapping[str, Part], step: int, measure: Measure, last: bool) -> Meeting | None:
        """Meet when ``step`` is a multiple of the period, and after the last step."""
        if not self._meets(step, last):
            return None
        for name, part in parts.items():
            if name not in self._packings:
                self._packings[name] = Packing(part, self._options.slots == "average", self._grouped(part))
        numbers = self._gather(measure)
        weights = mean_weights(self._score, numbers, self._options.sharpness, self._options.epsilon)
        if weights is None and self.merge.ndim == 1:
            return Meeting(numbers[:, 0], None)
        if weights is None:
            # nobody of this shard can be saved, but members of others can
            weights = np.full(numbers.shape, 1 / len(numbers))
        bad = ~np.isfinite(numbers)
        # what no replica has as it should be does not go on from a mean of others
        masked = bad[self._channel.rank] & ~bad.all(axis=0)
        for name, part in parts.items():
            packing = self._packings[name]
            self._average(part, packing, weights, measure)
            packing.move(self._options.mix, masked)
            if self._options.slots == "reset":
                part.reset_slots()
            elif self._options.slots == "keep" and masked.any():
                packing.forget(part, masked)
        self.merge[...] = weights.reshape(self.merge.shape)
        for count in (self._samples, self._squares, self._steps):
            count.fill(0)
        self._agreed.fill(self._options.mix == 1)
        return self._meeting(numbers, weights, measure)

    def _meeting(self, numbers: Array, weights: Array, measure: Measure) -> Meeting:
        bad = ~np.isfinite(numbers)
        if self.merge.ndim == 1:
            return Meeting(numbers[:, 0], weights[:, 0], tuple(np.flatnonzero(bad).tolist()))
        met = ~bad.all(axis=0)
        terms = np.where(bad, 0, numbers), weights, bad
        scores, shares, masked = measure.across(np.array([term[:, met].sum(axis=1) for term in terms], np.float64))
        members = shares.sum()
        good = members - masked
        scores = np.divide(scores, good, out=np.full_like(scores, np.nan), where=good > 0.5)
        shares = shares / members if members else np.full_like(shares, 1 / len(shares))
        return Meeting(scores, shares, members=int(masked.sum()))

    def _gather(self, measure: Measure) -> Array:
        """What each replica brings to the score, (R, G), NaN for a group that it has not got as it should be."""
        groups = next(iter(self._packings.values())).groups
        bad = np.zeros(groups.count)
        for packing in self._packings.values():
            bad += ~packing.finite()
        bad = groups.across(measure, bad)
        own = np.full(groups.count, np.nan)
        if groups.count > 1 or not bad.any():
            own[:] = self._score.ask(measure, self._local(groups, measure))
            own[bad > 0] = np.nan
        numbers = np.empty((self._channel.size, groups.count))
        self._channel.all_gather(own, numbers).wait()
        return numbers

    def _local(self, groups: Groups, measure: Measure) -> Local:
        """Of the whole replica, whose stages need not be equally far: squared norms add up, the others are means."""
        own = np.concatenate([self._samples, self._steps, np.ones(1), self._squares])
        samples, steps, stages, *squares = groups.across(measure, own).tolist()
        return Local(np.sqrt(np.array(squares) / max(1.0, steps / stages)), samples / stages)

    def _average(self, part: Part, packing: Packing, weights: Array, measure: Measure) -> None:
        own = weights[self._channel.rank]
        if weights.shape[1] == 1 and weights.max() == 1:
            # the best replica is copied, not summed: it stays what it is to the last bit
            packing.copy()
            self._channel.broadcast(packing.buffer, int(weights.argmax())).wait()
        elif self._options.score == "fisher":
            self._fisher(part, packing, own, measure)
        else:
            packing.share(own)
            self._channel.all_sum(packing.buffer).wait()
            packing.merged()

    def _fisher(self, part: Part, packing: Packing, own: Array, measure: Measure) -> None:
        # sum_p w_p F_p theta_p / sum_p w_p F_p, elementwise (Matena & Raffel 2021)
        if part.name not in self._information:
            self._information[part.name] = np.zeros_like(part.weights)
        information = self._information[part.name]
        packing.share(own)
        if own[0]:
            self._inform(part, information, measure)
            np.multiply(packing.weights, information, out=packing.weights)
            np.multiply(information, float(own[0]), out=information)
        else:
            information.fill(0)
        for vector in (packing.buffer, information):
            self._channel.all_sum(vector).wait()
        packing.merged()
        np.divide(packing.weights, information, out=packing.weights)

    def _inform(self, part: Part, information: Array, measure: Measure) -> None:
        measure.fisher(part, information, self._options.fisher_samples)
        if not part.ops.all_finite(information):
            # an estimate that overflowed says nothing about this replica, and must not spread to the others
            information.fill(0)
        np.maximum(information, FISHER_FLOOR, out=information)
