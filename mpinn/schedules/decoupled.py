"""Decoupled backpropagation: stages that work on different batches at the same time, with delayed gradients.

FDG (Zhuang, Wang, Liu & Lin, arXiv 1906.09108; the pipeline of Pham & Ahn, arXiv 2509.05679): in iteration t stage k of
K, counted from 1, runs batch t - k + 1 forward and batch t - 2K + k + 1 backward. Whatever it needs from a neighbour
was sent one iteration earlier, so nobody waits inside an iteration for the batch that it works on.

DDG (Huo, Gu, Yang & Huang, ICML 2018) and FR (Huo, Gu & Huang, NeurIPS 2018): batch t passes forward through all stages
within iteration t, and stage k runs batch t - K + k backward.

Which weights a delayed gradient is computed with, and what is kept until then:

=========  ===========  =====================================================  ================================
versions   recompute    gradient of batch b                                    kept for a batch in flight
=========  ===========  =====================================================  ================================
stash      false        exact, at the weights of its forward pass              what the layers save, the weights
stash      true         the same to the last bit                               the input, the weights
mixed      false        activations of the forward pass, weights of today      what the layers save
                        (the code of the FDG paper, which updates in place)
mixed      true         exact, at the weights of today, for an old input       the input
                        (features replay)
=========  ===========  =====================================================  ================================

Running statistics move once for a batch, in its first forward pass (the published code of FR moves them twice).
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from msgspec import Meta

from mpinn.array.typing import Array
from mpinn.datasets.batches import Batch
from mpinn.nn.layer import Saved
from mpinn.nn.loss import Loss
from mpinn.nn.part import Part
from mpinn.schedules.beside import Beside
from mpinn.schedules.flight import awaited, emptied, flatten, landed, unflatten
from mpinn.schedules.options import StagedOptions
from mpinn.schedules.schedule import Flight, Measured, Staleness, Update
from mpinn.schedules.stage import Message, Place, Stage, Total
from mpinn.schedules.staged import Staged
from mpinn.schedules.versions import Stash, Version


@dataclass(frozen=True, kw_only=True)
class DecoupledOptions(StagedOptions):
    """Decoupled backpropagation: stages work on different batches at the same time, with delayed gradients (FDG, arXiv
    1906.09108).

    See the module for what ``versions`` and ``recompute`` mean together.
    """

    order: Literal["forward_first", "backward_first"] = "backward_first"
    """Which of its two batches a stage runs first in an iteration."""
    versions: Literal["stash", "mixed"] = "stash"
    """The weights with which a delayed gradient is computed: those of the batch's forward pass, which are kept
    (stash), or those of today (mixed)."""
    recompute: bool = False
    """Keep only the input of a batch in flight, and run its forward pass again before the backward pass."""
    shrink: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """What multiplies a gradient that arrives from the next stage, once per hop."""
    accumulate: Annotated[int, Meta(ge=1)] = 1
    """Gradients that are added up for one update (ADL, arXiv 2012.03747)."""
    drain: bool = True
    """Finish what is in flight at the end, or at a meeting; false drops it."""

    chained: ClassVar[bool] = False
    """Whether a batch passes forward through all stages within one iteration."""

    def build(self, part: Part, loss: Loss, seed: int, place: Place) -> "Decoupled":
        """The schedule of one stage."""
        return Decoupled(Stage(part, loss, seed, place), self)

    def held(self, stages: int) -> int:
        """How many batches must stay valid besides the one in use."""
        return stages - 1 if self.chained else 2 * (stages - 1)

    def delay(self, stages: int, stage: int = 1) -> float:
        """2(K - k), or K - k if a batch passes forward through all stages; 1 less if the backward pass comes first."""
        passes = (stages - stage) * (1 if self.chained else 2)
        return max(0, passes - (self.order == "backward_first")) / self.accumulate


@dataclass(frozen=True, kw_only=True)
class DDGOptions(DecoupledOptions):
    """As fdg, but a batch passes forward through all stages within one iteration (DDG, Huo et al., ICML 2018)."""

    order: Literal["forward_first", "backward_first"] = "forward_first"

    chained: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class FROptions(DDGOptions):
    """Features replay (Huo et al., NeurIPS 2018): ddg that keeps inputs only, and replays them with today's weights."""

    versions: Literal["stash", "mixed"] = "mixed"
    recompute: bool = True


@dataclass(slots=True, eq=False)
class Work:
    """A batch between its forward and its backward pass; ``number`` counts the updates before its forward pass."""

    batch: Batch
    x: Array | None
    saved: Saved
    version: Version | None
    number: int


class Decoupled(Staged):
    """One stage; iterations are counted since nothing was in flight."""

    def __init__(self, stage: Stage, options: DecoupledOptions, beside: Beside | None = None):
        super().__init__(stage)
        self.most_in_flight = 0
        k, count = stage.number + 1, stage.count
        self._options = options
        self._beside = beside
        if beside:
            stage.between = beside.poll
        self._forward_lag = 0 if options.chained else k - 1
        self._backward_lag = count - k if options.chained else 2 * count - k - 1
        self._longest = options.held(count)
        self.staleness = Staleness(options.delay(count, k))
        self._stash = Stash(stage.part) if options.versions == "stash" and not stage.last else None
        self._total: Total | None = stage.total() if options.accumulate > 1 else None
        self._begin()

    def _begin(self) -> None:
        self._iteration = self._given = 0
        self._batches: dict[int, Batch] = {}
        self._works: deque[Work] = deque()
        self._activation: Message | None = None
        self._gradient: Message | None = None
        self._summed: list[Batch] = []
        self._void = 0
        """Batches up to this one count nothing."""

    @property
    def behind(self) -> int:
        """Of the batches handed in, how many have not been applied by all stages."""
        applied = max(0, self._given - self._longest)
        return self._given - applied // self._options.accumulate * self._options.accumulate

    def step(self, batch: Batch, update: Update) -> Sequence[Measured]:
        """One iteration with a new batch at its beginning."""
        self._given += 1
        self._batches[self._given] = batch
        return self._iterate(update)

    def drain(self, update: Update) -> Sequence[Measured]:
        """Iterations without a new batch until nothing is in flight; or what is in flight is dropped."""
        measured: list[Measured] = []
        if self._options.drain:
            for _ in range(self._longest if self._given else 0):
                measured += self._iterate(update)
            self._apply(update)
        else:
            self._forget()
            for work in self._works:
                self._release(work)
        self._stage.settle()
        self._begin()
        return measured

    def met(self, anew: bool) -> None:
        """The next forward pass has other weights; what is in flight counts nothing if the replica begins ``anew``.

        Its batches go on through the stages without their samples, so that all replicas stay equally far.
        """
        if self._stash:
            self._stash.met()
        if not anew:
            return
        self._forget()
        self._void = self._given
        self._batches = emptied(self._batches, self._void)
        for work in self._works:
            work.x = work.saved = None
        if self._summed:
            self._stage.part.grads.fill(0)
            self._summed = [replace(batch, count=0) for batch in self._summed]

    def _forget(self) -> None:
        """Receive what is on its way, for nothing."""
        for message in (self._activation, self._gradient):
            if message is not None:
                message.pending.wait()
        self._activation = self._gradient = None

    def _iterate(self, update: Update) -> list[Measured]:
        self._iteration += 1
        forward = self._batches.get(self._iteration - self._forward_lag)
        backward = self._batches.get(self._iteration - self._backward_lag)
        activation, gradient = self._activation, self._gradient
        if self._options.chained and forward is not None:
            activation = self._stage.receive("activation", forward)
        self._expect()
        measured = []
        if self._stage.last:
            if forward is not None:
                measured = self._turn(forward, activation, update)
        elif self._options.order == "forward_first":
            self._forward(forward, activation, self._beside if backward is not None else None)
            self._backward(backward, gradient, update)
        else:
            self._backward(backward, gradient, update)
            self._forward(forward, activation)
        self._batches.pop(self._iteration - self._backward_lag, None)
        return measured

    def _expect(self) -> None:
        """Begin to receive what the next iteration needs: the neighbours send it in this one, and all compute then."""
        forward = self._batches.get(self._iteration + 1 - self._forward_lag)
        backward = self._batches.get(self._iteration + 1 - self._backward_lag)
        self._activation = None if forward is None else self._stage.receive("activation", forward)
        self._gradient = None if backward is None else self._stage.receive("gradient", backward)

    def _forward(self, batch: Batch | None, message: Message | None, beside: Beside | None = None) -> None:
        if batch is None:
            return
        stage, recompute = self._stage, self._options.recompute
        x = stage.take(message, batch)
        version = self._stash.hold(stage.version) if self._stash else None
        work = Work(batch, x if recompute else None, None, version, stage.version)
        self._works.append(work)
        self.most_in_flight = max(self.most_in_flight, len(self._works))
        if not batch.count:
            return
        run = partial(stage.forward, batch, x, recompute=recompute)
        if beside:
            beside.begin(partial(run, pool=beside.pool), partial(self._passed, work))
        else:
            self._passed(work, run())

    def _passed(self, work: Work, found: tuple[Array, Saved]) -> None:
        y, work.saved = found
        self._stage.pass_on(y, work.batch)

    def _backward(self, batch: Batch | None, message: Message | None, update: Update) -> None:
        if batch is None:
            return
        stage, work = self._stage, self._works.popleft()
        if message is not None:
            dy = stage.take(message, batch)
            if self._options.shrink != 1:
                np.multiply(dy, self._options.shrink, out=dy)
            saved = work.saved
            if work.x is not None:
                _, saved = stage.forward(batch, work.x, work.version, again=True)
            stage.backward(batch, saved, dy, update, work.version, self._opened())
        else:
            stage.nothing(update.ready, self._opened())
        self._release(work)
        if self._beside:
            # the weights are about to change
            self._beside.finish(stage.poke)
        self._complete(batch, work.number, update)

    def _release(self, work: Work) -> None:
        if self._stash and work.version:
            self._stash.release(work.version)

    def _turn(self, batch: Batch, message: Message | None, update: Update) -> list[Measured]:
        """Forward, loss and backward of one batch, on the last stage."""
        stage, measured = self._stage, []
        x = stage.take(message, batch)
        if batch.count:
            y, saved = stage.forward(batch, x)
            loss, dy = stage.loss(y, batch)
            del y
            measured.append(Measured(batch.index, loss, batch.count))
            stage.backward(batch, saved, dy, update, total=self._opened())
        else:
            stage.nothing(update.ready, self._opened())
        self._complete(batch, stage.version, update)
        return measured

    def _opened(self) -> Total | None:
        if self._total is not None:
            self._total.first = not self._summed
            self._total.last = len(self._summed) + 1 == self._options.accumulate
        return self._total

    def _complete(self, batch: Batch, number: int, update: Update) -> None:
        """The gradient of a batch has been added; its age is counted in updates."""
        self._summed.append(batch)
        self.staleness.add(self._stage.version - number)
        if len(self._summed) == self._options.accumulate:
            self._apply(update)

    def _apply(self, update: Update) -> None:
        if not self._summed:
            return
        if len(self._summed) < self._options.accumulate:
            update.ready(self._stage.part, slice(0, self._stage.part.layout.size))
        counts = [(batch.count, batch.total) for batch in self._summed]
        count, total = (sum(numbers) for numbers in zip(*counts, strict=True))
        update(self._stage.part, replace(self._summed[-1], count=count, total=total))
        self._stage.version += 1
        self._summed.clear()

    def chained(self, values: Sequence[float]) -> Sequence[float]:
        """Stages apply gradients of different batches, each on its own."""
        return values

    def flight(self) -> Flight | None:
        """What is in flight, to be saved: what is on its way has been sent, and is waited for."""
        if not self.behind:
            return None
        arrays: dict[str, Array] = {}
        works = [self._packed(work, f"work{place}", arrays) for place, work in enumerate(self._works)]
        if self._summed:
            arrays["sum"] = self._stage.part.ops.on_host(self._stage.part.grads)
        return Flight(
            {
                "iteration": self._iteration,
                "given": self._given,
                "void": self._void,
                "batches": [[position, batch.index] for position, batch in self._batches.items()],
                "works": works,
                "summed": [[batch.index, batch.epoch, batch.count, batch.total] for batch in self._summed],
                "activation": landed(self._activation, arrays, self._stage.part.ops),
                "gradient": landed(self._gradient, arrays, self._stage.part.ops),
            },
            arrays,
        )

    def _packed(self, work: Work, name: str, arrays: dict[str, Array]) -> dict[str, Any]:
        packed = {"index": work.batch.index, "age": self._stage.version - work.number}
        ops = self._stage.part.ops
        packed["x"] = flatten(None if self._stage.first else work.x, f"{name}.x", arrays, ops)
        packed["saved"] = flatten(work.saved, f"{name}.saved", arrays, ops)
        if self._stash and work.version:
            packed["meetings"] = self._stash.meetings - work.version.meetings
            arrays[_copy(packed)] = ops.on_host(work.version.vector)
        return packed

    def resume(self, flight: Flight, batch: Callable[[int], Batch]) -> None:
        """Go on with what was in flight; ages count from here."""
        facts, arrays, ops = flight.facts, flight.arrays, self._stage.part.ops
        self._iteration, self._given = facts["iteration"], facts["given"]
        known = {index: (position, batch(index)) for position, index in facts["batches"]}
        self._void = facts.get("void", 0)
        self._batches = emptied(dict(known.values()), self._void)
        for packed in facts["works"]:
            self._works.append(self._unpacked(packed, arrays, known[packed["index"]][1]))
        self._activation = awaited(facts["activation"], "activation", arrays, ops)
        self._gradient = awaited(facts["gradient"], "gradient", arrays, ops)
        if facts["summed"]:
            ops.fill(self._stage.part.grads, arrays["sum"])
            self._summed = [_bare(*numbers) for numbers in facts["summed"]]

    def _unpacked(self, packed: Mapping[str, Any], arrays: Mapping[str, Array], batch: Batch) -> Work:
        ops = self._stage.part.ops
        age, x = packed["age"], unflatten(packed["x"], arrays, ops)
        if self._options.recompute and self._stage.first:
            x = batch.x
        version = None
        if self._stash:
            version = self._stash.known(-age, -packed.get("meetings", 0), ops.on_device(arrays[_copy(packed)]))
        return Work(batch, x, unflatten(packed["saved"], arrays, ops), version, -age)


def _copy(packed: Mapping[str, Any]) -> str:
    """The name of the weights that a forward pass was made with: how many updates ago, and meetings, if any."""
    meetings = packed.get("meetings", 0)
    return f"version{packed['age']}" + (f".{meetings}" if meetings else "")


def _bare(index: int, epoch: int, count: int, total: int) -> Batch:
    """A batch whose gradient is known, so that its samples are not needed any more."""
    nothing = np.empty(0)
    return Batch(index, epoch, nothing, nothing, count, total, (0, 1), nothing)
