"""An outer optimizer over local training: DiLoCo (Douillard et al., arXiv 2311.08105).

Replicas train alone. When they meet, what each has moved since the meeting before is a gradient for Nesterov's method:

d = sum_r w_r (theta_start - theta_r);  v <- mu v + d;  theta_start <- theta_start - eta (d + mu v)

and all go on from theta_start. What the inner optimizers remember stays with each replica. With eta = 1 and mu = 0 this
is weighted averaging, bit for bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel
from mpinn.consensus.averaging import AveragingOptions, MeetingOptions
from mpinn.consensus.consensus import Measure, Meeting, Passive
from mpinn.consensus.scores import ScoreName
from mpinn.datasets.batches import Batch
from mpinn.nn.layout import Layout
from mpinn.nn.part import Part


@dataclass(frozen=True, kw_only=True)
class OuterOptions(MeetingOptions):
    """Replicas train alone, and an outer optimizer takes a step along the mean of what they have moved (DiLoCo).

    The defaults are those of an open implementation; its period is 500 steps, and a run here may be as short as that.
    """

    score: ScoreName = "uniform"
    rate: Annotated[float, Meta(gt=0)] = 0.7
    """The learning rate of the outer optimizer, eta."""
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    """The momentum of the outer optimizer, mu."""
    nesterov: bool = True
    """Nesterov's momentum in place of the heavy ball's."""

    @property
    def reach(self) -> float:
        """How far all steps together go for one unit that replicas have moved: eta / (1 - mu)."""
        return self.rate / (1 - self.momentum)

    def build(self, channel: Channel, steps_per_epoch: int) -> "Outer":
        """The consensus of the replicas that ``channel`` joins."""
        return Outer(channel, self, steps_per_epoch)


class Outer(Passive):
    """Replicas that meet as under `Averaging`, with its messages, and take the outer step from the mean.

    The step is the same on every replica, so the start and the momentum are too, and are stored once. One replica never
    meets. A replica that is not finite is left out, and goes on from the new weights with its optimizer reset.
    """

    def __init__(self, channel: Channel, options: OuterOptions, steps_per_epoch: int):
        self._averaging = AveragingOptions(
            score=options.score,
            period=options.period,
            sharpness=options.sharpness,
            epsilon=options.epsilon,
            fisher_samples=options.fisher_samples,
            in_flight=options.in_flight,
        ).build(channel, steps_per_epoch)
        self._options = options
        self._alone = channel.size == 1
        self.masks = self._averaging.masks
        self.memory: Mapping[str, tuple[Layout, Array]] = self._averaging.memory
        self._begun: set[str] = set()

    @property
    def agreed(self) -> bool:
        """Whether no replica has moved since all went on from the same weights."""
        return self._averaging.agreed

    @property
    def merge(self) -> Array:
        """The weights of the last meeting."""
        return self._averaging.merge

    def prepare(self, parts: Mapping[str, Part]) -> None:
        """Make room for the start, which is NaN until the first update begins from it, and for the momentum."""
        self._averaging.prepare(parts)
        memory = dict(self._averaging.memory)
        for name, part in {} if self._alone else parts.items():
            memory[f"outer/start/{name}"] = part.layout, _unknown(part)
            memory[f"outer/momentum/{name}"] = part.layout, np.zeros_like(part.weights)
        self.memory = memory

    def gradients(self, part: Part, batch: Batch) -> int:
        """The replica's own samples are all there are; before the first of them is the start."""
        self._begin(part)
        return self._averaging.gradients(part, batch)

    def _begin(self, part: Part) -> None:
        if self._alone or part.name in self._begun:
            return
        self._begun.add(part.name)
        start = self._start(part)
        # a run that was resumed on its own grid has its start, in which a member may be NaN that diverged on all
        # replicas; on another grid the merged weights are one
        if all(bool(np.isnan(start[entry.slice]).all()) for entry in part.layout):
            np.copyto(start, part.weights)

    def drains(self, step: int, last: bool) -> bool:
        """Before a meeting, unless what is in flight is to be kept."""
        return self._averaging.drains(step, last)

    def weights(self, parts: Mapping[str, Part], step: int, measure: Measure, last: bool) -> Meeting | None:
        """Meet when ``step`` is a multiple of the period, and after the last step."""
        for part in parts.values():
            self._begin(part)
        meeting = self._averaging.weights(parts, step, measure, last)
        if meeting is not None and meeting.weights is not None:
            for part in parts.values():
                self._step(part)
        return meeting

    def _start(self, part: Part) -> Array:
        return self.memory[f"outer/start/{part.name}"][1]

    def _step(self, part: Part) -> None:
        """From the mean, which the part's weights are, to the outer optimizer's new weights."""
        start, momentum = self._start(part), self.memory[f"outer/momentum/{part.name}"][1]
        rate, mu = self._options.rate, self._options.momentum
        size = min(part.ops.STEP, start.size)
        difference, move = (part.pool.empty((size,), start.dtype) for _ in range(2))
        for first in range(0, start.size, max(1, size)):
            block = slice(first, min(first + size, start.size))
            w, s, v = part.weights[block], start[block], momentum[block]
            d, m = difference[: w.size], move[: w.size]
            np.subtract(s, w, out=d)
            np.multiply(v, mu, out=v)
            np.add(v, d, out=v)
            if self._options.nesterov:
                np.multiply(v, mu, out=m)
                np.add(m, d, out=m)
            else:
                np.copyto(m, v)
            # start - rate m as mean + (d - rate m), which is the mean itself for a rate of 1 without momentum
            np.multiply(m, rate, out=m)
            np.subtract(d, m, out=m)
            np.add(w, m, out=w)
            np.copyto(s, w)


def _unknown(part: Part) -> Array:
    """A start that is not known: every number is NaN, and the padding, which is moved to no other part, is zero."""
    start = np.zeros_like(part.weights)
    for entry in part.layout:
        start[entry.slice] = np.nan
    return start
