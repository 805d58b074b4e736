"""What a step of a parareal network costs, and where a model is best cut into fine blocks that run abreast.

Seconds of forward and backward pass together: p_j of predictor j, g_j of fine block j, F_j of coarse network j, h of
the head and the loss. A step with one sweep over N blocks takes about

    max_j (p_j + g_j) + sum_j F_j + h + messages

and cuts are chosen for the least such sum. `forecast` follows every pass and every message instead. Half of a coarse
network's backward pass, its weight gradient, waits until the adjoint has gone on. Messages occupy who sends them, as in
`mpinn.partition.costs`; where the coarse sweep is gathered, all of them go through its rank one after the other, as
fast as the link is wide, and latency counts once there and once back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod
from typing import TypeAlias

import numpy as np

from mpinn.array.typing import Array, Shape
from mpinn.models.model import Model
from mpinn.nn.block import Block, Form, Way, corrects, guesses, sweeps_of
from mpinn.nn.parareal import Parareal
from mpinn.partition.costs import ASSUMED, Forecast, Link
from mpinn.partition.profile import Cost, together, units
from mpinn.partition.sides import Sides
from mpinn.partition.split import Partition, partition_abreast, stages_only, sums_of

NOTHING = Cost("", 0, 0.0, 0.0, 0, 0, 0, 0)

Letters: TypeAlias = dict[tuple[Way, int, int], float]
"""When a message is there, by (way, interface, sweep)."""


@dataclass(frozen=True)
class Abreast:
    """A block and what its networks cost, for a ``sample`` of this shape; the ``head`` is that of the last one."""

    block: Block
    sample: Shape
    fine: Cost
    predictor: Cost = NOTHING
    coarse: Cost = NOTHING
    head: Cost = NOTHING

    @property
    def costs(self) -> tuple[Cost, ...]:
        """Of all its networks."""
        return self.predictor, self.fine, self.coarse, self.head

    @property
    def parameter_bytes(self) -> int:
        """One vector of its parameters."""
        return sum(cost.parameter_bytes for cost in self.costs)

    @property
    def in_flight(self) -> float:
        """Bytes that it holds besides weights, gradients and slots: what passes keep, and what has arrived."""
        runs = len(self.block.sweeps)
        corrections = runs * _twice(self.block.form)
        arrived = len(self.block.heard) * self.fine.input_bytes * (2 if self.block.number > 2 else 1)
        kept = self.predictor.kept_bytes + runs * self.fine.kept_bytes + corrections * self.coarse.kept_bytes
        return kept + self.head.kept_bytes + (arrived if self.block.number > 1 else 0)


def abreast(network: Parareal, model: Model, costs: Sequence[Cost], bounds: Sequence[int], sides: Sides,
            beside: Sequence[Cost]) -> tuple[Abreast, ...]:  # fmt: skip
    """The blocks of a network with their costs: those of the units of the model, and those ``beside`` fine blocks."""
    known = dict(zip(sides.names, beside, strict=True))
    ends = [0, *accumulate(cost.layers for cost in costs)]
    found = []
    for block, (start, stop) in zip(network.blocks, pairwise(bounds), strict=True):
        own = list(costs[ends.index(start) : ends.index(stop)])
        head = head_of(model, costs) if block.last else NOTHING
        if head is not NOTHING:
            own.pop()
        found.append(
            Abreast(
                block,
                model.shape,
                together(own),
                NOTHING if block.predictor is None else known[sides.predictors[start]],
                NOTHING if block.coarse is None else known[sides.coarses[start, stop]],
                head,
            )
        )
    return tuple(found)


def _twice(form: Form) -> int:
    """How often a coarse network runs for one correction."""
    return 2 if form == "difference" else 1


# Where to cut


@dataclass(frozen=True)
class Wanted:
    """The network that is to be cut: N blocks, their form and sweeps, the optimizer's slots."""

    count: int
    form: Form
    iterations: int
    slots: int = 0


def head_of(model: Model, costs: Sequence[Cost]) -> Cost:
    """The cost of the head, by the costs of the units; of one without parameters, which is no unit, nothing."""
    return costs[-1] if units(model)[-1].start >= len(model.network) - model.head else NOTHING


def choose(
    wanted: Wanted, costs: Sequence[Cost], head: Cost, sides: Sides, beside: Sequence[Cost], link: Link,
    memory: float | None = None,
) -> Partition:  # fmt: skip
    """The best partition into fine blocks; ``costs`` are those of the units of the frame, with the head in the last."""
    known = dict(zip(sides.names, beside, strict=True))
    ends = [0, *accumulate(cost.layers for cost in costs)]
    size = len(ends)
    predictor = [known[sides.predictors[end]] if end in sides.predictors else NOTHING for end in ends]
    coarse = np.full((size, size), NOTHING, object)
    for (start, stop), name in sides.coarses.items():
        coarse[ends.index(start), ends.index(stop)] = known[name]
    number = _Numbers(costs, head, predictor, coarse, link, wanted)
    stages = range(1, wanted.count + 1)
    return partition_abreast(
        costs,
        [number.times(stage) for stage in stages],
        [number.chained(stage) for stage in stages],
        memory,
        [number.held(stage) for stage in stages] if memory is not None else (),
    )


@dataclass(frozen=True)
class _Numbers:
    """Tables (U + 1, U + 1) of what a stage of the units i..j-1 takes.

    predictor: (U + 1) costs, of that of a stage that begins with each unit; coarse: (U + 1, U + 1).
    """

    costs: Sequence[Cost]
    head: Cost
    predictor: Sequence[Cost]
    coarse: Array
    link: Link
    wanted: Wanted

    @cached_property
    def crossing(self) -> Array:
        """(U + 1,): seconds of a message across the cut before each unit."""
        return np.array([0.0, *(self.link.seconds(cost.output_bytes) for cost in self.costs[:-1]), 0.0])

    @cached_property
    def fine(self) -> Array:
        """(U + 1, U + 1): both passes of the units, without the head."""
        found = sums_of([_both(cost) for cost in self.costs])
        found[:, -1] -= _both(self.head)
        return found

    @cached_property
    def small(self) -> tuple[Array, Array, Array]:
        """(U + 1, U + 1) each: both passes of the coarse network, its parameters, and what a pass keeps."""
        seconds, parameters, kept = np.zeros((3, *self.coarse.shape))
        for place in zip(*np.nonzero(self.coarse != NOTHING), strict=True):
            cost = self.coarse[place]
            seconds[place], parameters[place], kept[place] = _both(cost), cost.parameter_bytes, cost.kept_bytes
        return seconds, parameters, kept

    def times(self, stage: int) -> Array:
        """What runs at once: the fine block in its sweeps, its predictor, and the message of its value."""
        wanted = self.wanted
        runs = len(sweeps_of(stage, wanted.count, wanted.iterations))
        guess = np.array([_both(cost) for cost in self.predictor]) * guesses(stage, wanted.count, wanted.iterations)
        return stages_only(runs * (self.fine + self.crossing) + guess[:, None])

    def chained(self, stage: int) -> Array:
        """What waits for the stage before: the coarse network, its value, and the adjoint."""
        wanted = self.wanted
        runs = len(sweeps_of(stage, wanted.count, wanted.iterations))
        again = runs * _twice(wanted.form) * corrects(stage, wanted.count, wanted.iterations)
        seconds = again * self.small[0]
        messages = self.crossing[:, None] + (self.crossing if 1 < stage < wanted.count else 0)
        return stages_only(seconds + runs * messages)

    def held(self, stage: int) -> Array:
        """Bytes: weights, gradients, slots, and all that is in flight, but for arrays that have arrived."""
        wanted, copies = self.wanted, 2 + self.wanted.slots
        runs = len(sweeps_of(stage, wanted.count, wanted.iterations))
        guessed = guesses(stage, wanted.count, wanted.iterations)
        corrected = corrects(stage, wanted.count, wanted.iterations)
        fine = sums_of([copies * cost.parameter_bytes + runs * cost.kept_bytes for cost in self.costs])
        guess = np.array([copies * cost.parameter_bytes + cost.kept_bytes for cost in self.predictor]) * guessed
        again = runs * _twice(wanted.form)
        _, parameters, kept = self.small
        return stages_only(fine + guess[:, None] + (copies * parameters + again * kept) * corrected)


def _both(cost: Cost) -> float:
    return cost.forward + cost.backward


# What a step takes


def forecast(blocks: Sequence[Abreast], link: Link, gathered: bool = False) -> Forecast:
    """A step of all blocks; the next one begins when all of them are done."""
    clock = _Clock(link)
    done = clock.gathered(blocks) if gathered else clock.chained(blocks)
    held = tuple(entry.in_flight for entry in blocks)
    return Forecast("parareal, gathered" if gathered else "parareal", done, done, clock.messages, held)


def waits(blocks: Sequence[Block], size: int, link: Link = ASSUMED) -> tuple[float, float]:
    """Seconds of a step in which messages are waited for, where blocks are even: in a chain, and gathered.

    ``size``: bytes of one number of every sample.
    """
    even = [
        Abreast(block, (), Cost("", 1, 1.0, 1.0, size * prod(block.inputs), size * prod(block.outputs), 0, 0))
        for block in blocks
    ]
    chain, gather = (forecast(even, link, gathered).seconds - 2 for gathered in (False, True))
    return chain, gather


@dataclass
class _Clock:
    """Follows passes and messages."""

    link: Link
    messages: int = 0

    def chained(self, blocks: Sequence[Abreast]) -> float:
        """Seconds until all blocks are done."""
        letters: Letters = {}
        times = [self._forward(entry, letters) for entry in blocks]
        letters = {}
        found = [self._backward(entry, time, letters) for entry, time in zip(blocks[::-1], times[::-1], strict=True)]
        return max(found)

    def _sent(self, now: float, size: float) -> float:
        self.messages += 1
        return now + self.link.seconds(size)

    def _forward(self, entry: Abreast, letters: Letters) -> float:
        block, now = entry.block, entry.predictor.forward
        for sweep in block.rounds:
            if sweep in block.sweeps:
                now += entry.fine.forward
                if not block.last:
                    now = letters["fine", block.number, sweep] = self._sent(now, entry.fine.output_bytes)
            if sweep in block.heard:
                now = max(now, letters["fine", block.number - 1, sweep])
                if block.corrected(sweep):
                    now = max(now, letters["coarse", block.number - 1, sweep])
                if sweep in block.sweeps and block.coarse:
                    now += entry.coarse.forward * _twice(block.form)
                    if not block.last:
                        now = letters["coarse", block.number, sweep] = self._sent(now, entry.fine.output_bytes)
        return now + entry.head.forward

    def _backward(self, entry: Abreast, now: float, letters: Letters) -> float:
        block, later = entry.block, entry.predictor.backward
        now += entry.head.backward
        for sweep in reversed(block.rounds):
            if sweep in block.sweeps:
                if not block.last:
                    now = max(now, letters["adjoint", block.number, sweep])
                if sweep in block.heard and block.coarse:
                    half = entry.coarse.backward * _twice(block.form) / 2
                    now, later = now + half, later + half
            if sweep in block.heard:
                now = letters["adjoint", block.number - 1, sweep] = self._sent(now, entry.fine.input_bytes)
            if sweep in block.sweeps:
                now += entry.fine.backward
        return now + later

    def gathered(self, blocks: Sequence[Abreast]) -> float:
        """The same where the last rank has all coarse networks; one sweep."""
        *others, last = blocks
        own = last.predictor.forward + last.fine.forward
        # guesses leave before the fine blocks run
        values = [entry.predictor.forward + entry.fine.forward for entry in others]
        arrivals = [(entry.predictor.forward, entry.fine.input_bytes) for entry in others[1:]]
        arrivals += [(done, entry.fine.output_bytes) for done, entry in zip(values, others, strict=True)]
        arrived = 0.0
        for left, size in sorted(arrivals):
            arrived = self._through(max(arrived, left + self.link.latency), size)
        twice = _twice(last.block.form)
        now = max(own, arrived) + sum(entry.coarse.forward * twice for entry in blocks)
        now += last.head.forward + last.head.backward
        found, later = [], 0.0
        for entry in reversed(blocks):
            half = entry.coarse.backward * twice / 2
            if entry is not last:
                now = self._through(now, entry.fine.output_bytes)
                loses = self._through(now + half, entry.fine.input_bytes) if entry.block.number > 1 else now
                found.append(loses + self.link.latency + entry.fine.backward + entry.predictor.backward)
                now = max(now, loses - half)
            now, later = now + half, later + half
        return max([*found, now + last.fine.backward + last.predictor.backward + later])

    def _through(self, now: float, size: float) -> float:
        """When a message has gone through the one rank that all of them pass."""
        self.messages += 1
        return now + size / self.link.bandwidth
