"""The loop: step, meet, log, evaluate, stop or save."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from math import nan
from signal import SIGINT
from time import monotonic
from typing import Any, NoReturn, Protocol

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel
from mpinn.consensus.consensus import Consensus, Quality
from mpinn.datasets.batches import Batches
from mpinn.errors import FatalError
from mpinn.nn.layout import Entry
from mpinn.nn.part import Part
from mpinn.schedules.schedule import Measured, Schedule, Update
from mpinn.signals import Signals
from mpinn.trace import SILENT, Trace
from mpinn.training.agreement import Agreement
from mpinn.training.boundary import Boundaries, Standing
from mpinn.training.measure import ReplicaMeasure, RunMeasure
from mpinn.training.reporter import Reporter, Silent
from mpinn.training.tally import NEVER, Stopwatch, Tally
from mpinn.words import loss_text

ADVICE = "A smaller optimizer.rate, a longer optimizer.warmup or train.clip may prevent it"
NAME = 256
"""Bytes of the longest name of a layer that one rank tells another."""


class Outcome(Enum):
    """How a run ended."""

    FINISHED = "finished"
    STOPPED = "stopped"


class DivergedError(FatalError):
    """A loss, or every replica, stopped being finite. Raised on all ranks together."""


@dataclass(frozen=True)
class Moment:
    """What a checkpoint says besides the state of the ranks: the step, the last validation, totals so far.

    ``score`` is higher for a better model; ``merge`` are the weights with which replicas that differ are merged, (R,),
    or (R, M) if each member of a population has its own.
    """

    step: int
    quality: Quality | None
    score: float | None
    merge: Array
    samples: int
    seconds: float
    behind_samples: int = 0
    """Of ``samples``, how many not all stages have applied."""


class Keeper(Protocol):
    """Keeps the state of the run in files; every method is called by all ranks."""

    def save(self, moment: Moment) -> None:
        """Start saving a checkpoint."""
        ...

    def inspection(self, moment: Moment) -> str:
        """Save a file to look at, which no run resumes from, and return its path."""
        ...

    def record(self, record: Mapping[str, Any]) -> None:
        """Append to the metrics."""
        ...

    def wait(self) -> None:
        """Return when everything is durable."""
        ...


class Selection(Protocol):
    """Decides which members of a population stay."""

    def after(self, step: int, last: bool) -> Sequence[str]:
        """Called by all ranks after an evaluation; returns sentences for the log."""
        ...


@dataclass(frozen=True)
class Plan:
    """When what happens, in steps; 0 is never. ``save_seconds`` is a cadence by the clock, 0 for none."""

    start: int
    total: int
    log: int
    evaluate: int
    save: int
    save_seconds: float = 0.0
    stop_after: int = 0
    rungs: Sequence[int] = ()
    """Steps after which it evaluates in any case."""


@dataclass(eq=False)
class Trainer:
    """Trains to the end of the plan, or until all ranks agree to stop; leaves a durable checkpoint either way."""

    plan: Plan
    control: Channel
    schedule: Schedule
    consensus: Consensus
    update: Update
    rate: Callable[[int], float]
    batches: Batches
    measure: RunMeasure
    replica_measure: Callable[[int], ReplicaMeasure]
    agreement: Agreement
    signals: Signals
    tally: Tally
    stopwatch: Stopwatch
    keeper: Keeper
    classes: int
    """Of the data; 0 for a regression, which has no accuracy."""
    reporter: Reporter = field(default_factory=Silent)
    ranks_per_replica: int = 1
    selection: Selection | None = None
    """What becomes of the members of a population, which may diverge each for itself."""
    trace: Trace = SILENT
    boundaries: Boundaries | None = None
    """Copies of the state, where the run is to survive the death of ranks."""
    samples: int = 0
    """Samples that the replicas together have been trained on since the run began."""
    seconds: float = 0.0
    """Of training before this start."""
    quality: Quality | None = None
    """On the validation split, when it was last measured."""
    _saved_at: float = 0.0
    _interrupted: bool = False

    def run(self) -> Outcome:
        """Train; raises `DivergedError` after saving a file for inspection."""
        step = self.plan.start
        self.stopwatch.start()
        self._saved_at = monotonic()
        while step < self.plan.total:
            batch = self.batches.batch(step)
            self._count(self.schedule.step(batch, self.update))
            self.samples += batch.total
            step += 1
            self.reporter.at(step)
            last = step == self.plan.total
            if last or self.consensus.drains(step, last):
                self._count(self.schedule.drain(self.update))
            self._meet(step, last)
            self._look(step, last)
            if self._agreed(step, last):
                self.consensus.close()
                return Outcome.STOPPED
        self.consensus.close()
        self.agreement.close()
        if not self.plan.total or (self.boundaries is not None and self.plan.start == self.plan.total):
            self._save(self.plan.total)
        self.keeper.wait()
        return Outcome.FINISHED

    def _count(self, measured: Iterable[Measured]) -> None:
        for known in measured:
            self.tally.add(known.index, known.loss, known.count)

    def elapsed(self) -> float:
        """Seconds of training since the run began, restarts included."""
        return self.seconds + self.stopwatch.times.training

    def _meet(self, step: int, last: bool) -> None:
        begun = self.trace.now()
        meeting = self.consensus.weights(self.schedule.parts, step, self.replica_measure(step), last)
        if meeting is None:
            return
        self.trace.add("mix", begun, step - 1)
        if meeting.weights is None:
            self._check_weights(step)
            self.reporter.line(f"step {step}: no replica has a score that is finite: none moves to a mean")
            return
        self.schedule.met(self.control.rank // self.ranks_per_replica in meeting.reseeded)
        weights, scores = np.asarray(meeting.weights).tolist(), meeting.scores.tolist()
        self.keeper.record({"step": step, "meeting_weights": weights, "meeting_scores": scores})
        for replica in meeting.reseeded:
            self.reporter.line(f"step {step}: replica {replica} is not finite; it goes on from the mean of the others")
        if meeting.members:
            count = "1 member is" if meeting.members == 1 else f"{meeting.members:,} members are"
            self.reporter.line(f"step {step}: {count} not finite on a replica; there the mean of the others goes on")

    def _look(self, step: int, last: bool) -> None:
        """Log and evaluate; none of it counts as training."""
        log = last or step % self.plan.log == 0
        evaluate = last or step % self.plan.evaluate == 0 or step in self.plan.rungs
        if not (log or evaluate):
            return
        self._trained()
        status = self._log(step, last) if log else ""
        if evaluate:
            self._evaluate(step)
            for said in self.selection.after(step, last) if self.selection else ():
                self.reporter.line(said)
        if log:
            self.reporter.progress(step, status + self._validated())
        self.stopwatch.other()

    def _trained(self) -> None:
        """Training ends here for a while; what a device is still at belongs to it, so its losses are read first."""
        self.tally.settle()
        self.stopwatch.training()

    def _log(self, step: int, last: bool) -> str:
        sums = self.tally.gather(self.control)
        self.stopwatch.settle(last)
        self._check_losses(step, sums)
        self.tally.clear()
        finite = np.isfinite(sums[:, 0])
        total, samples = sums[finite, :2].sum(axis=0).tolist()
        rate, seconds = self.rate(step - 1), self.elapsed()
        epoch = step / self.batches.steps_per_epoch
        # before the first batch has come to the end of the depth there is no loss
        loss = {"loss": total / samples} if samples else {}
        record = {"step": step, "epoch": epoch, **loss, "rate": rate, "samples": self.samples, "seconds": seconds}
        self.keeper.record(record)
        speed = self.samples / seconds if seconds else 0.0
        return f"epoch {epoch:.1f}  {speed:,.0f}/s" + "".join(f"  loss {loss_text(value)}" for value in loss.values())

    def _evaluate(self, step: int) -> None:
        found = self.measure.quality("validation", step)
        self.quality = found if self.classes else replace(found, accuracy=nan)
        record = {"step": step, "validation_loss": self.quality.loss}
        if self.classes:
            record["validation_accuracy"] = self.quality.accuracy
        self.keeper.record(record)

    def _validated(self) -> str:
        if self.quality is None:
            return ""
        measured = f"{self.quality.accuracy:.4f}" if self.classes else f"loss {loss_text(self.quality.loss)}"
        return f"  validation {measured}"

    def _agreed(self, step: int, last: bool) -> bool:
        """Save if it is time; whether all ranks stop here."""
        every = self.plan.save_seconds
        overdue = bool(every) and monotonic() - self._saved_at >= every
        pace = self.stopwatch.pace(step - self.plan.start)
        stop, save = self.agreement.at(step, self._asked(), overdue, pace)
        stop = (stop or step == self.plan.stop_after) and not last
        save = save or (bool(self.plan.save) and step % self.plan.save == 0)
        if self.agreement.passed == step:
            self.stopwatch.training()
            self.keep(step)
        if not (last or stop or save):
            return False
        self._trained()
        self._save(step)
        if stop:
            self.agreement.close()
            self.keeper.wait()
        self.stopwatch.other()
        return stop

    def _asked(self) -> bool:
        """Whether a signal has asked this rank to stop; of the keyboard it is said what it will do."""
        if self.signals.received == SIGINT and not self._interrupted:
            self._interrupted = True
            self.reporter.line("interrupted: the state is saved, then the run stops; once more ends it at once")
        return self.signals.received is not None

    def keep(self, step: int) -> None:
        """Copy the state, if that is wanted."""
        if self.boundaries is None:
            return
        standing = Standing(
            step, self.samples, self.elapsed(), self.quality, self.schedule.behind, self._behind(step), monotonic()
        )
        self.tally.settle()
        self.boundaries.keep(standing)

    def _behind(self, step: int) -> int:
        """Samples that not all stages have applied."""
        return sum(self.batches.total(before) for before in range(step - self.schedule.behind, step))

    def _save(self, step: int) -> None:
        """Save what a run can go on from: nothing is saved, and the run ends, if that would not be finite."""
        self._saved_at = monotonic()
        sums = self.tally.gather(self.control)
        # what is in a file is not behind what is in memory; and now all have come here, and have the copy before
        self.keep(step)
        self._check_losses(step, sums)
        self._check_weights(step)
        self.keeper.save(self._moment(step))

    def _check_losses(self, step: int, sums: Array) -> None:
        rank = int(np.argmin(sums[:, 2]))
        if sums[rank, 2] < NEVER and not self.consensus.masks:
            self._diverge(step, int(sums[rank, 2]), rank, "the loss is not finite", self._bad_layers())

    def _check_weights(self, step: int) -> None:
        if self.selection:
            return
        layers = self._bad_layers()
        bad = [rank for rank, layer in enumerate(layers) if layer]
        replicas = {rank // self.ranks_per_replica for rank in bad}
        if len(replicas) * self.ranks_per_replica == len(layers) or (bad and not self.consensus.masks):
            what = "no replica is finite" if self.consensus.masks else "the weights are not finite"
            self._diverge(step, step - 1, bad[0], what, layers)

    def _bad_layers(self) -> list[str]:
        """For every rank the name of its first layer that is not finite, or nothing; called by all ranks."""
        parts = self.schedule.parts.values()
        every = ((part, *pair) for part in parts for pair in part_entries(part))
        named = ((part, entry) for part, entry, values in every if not part.ops.all_finite(values))
        own = next((f"{part.name}/{entry.path[0]}" if part.auxiliary else entry.path[0] for part, entry in named), "")
        name, names = np.zeros(NAME, np.uint8), np.empty((self.control.size, NAME), np.uint8)
        text = np.frombuffer(own.encode()[:NAME], np.uint8)
        name[: len(text)] = text
        self.control.all_gather(name, names).wait()
        return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in names]

    def _diverge(self, step: int, first: int, rank: int, what: str, layers: Sequence[str]) -> NoReturn:
        begin = rank // self.ranks_per_replica * self.ranks_per_replica
        layer = next(filter(None, layers[begin : begin + self.ranks_per_replica]), "")
        where = f"the first layer that is not finite is {layer}" if layer else "all weights are still finite"
        if first + 1 < step:
            where = f"noticed at step {step}, when {where}"
        path = self.keeper.inspection(self._moment(step))
        self.consensus.close()
        raise DivergedError(f"step {first + 1}, rank {rank}: {what}; {where}. {ADVICE}. The state is in {path}")

    def _moment(self, step: int) -> Moment:
        quality = self.quality
        score = None if quality is None else quality.accuracy if self.classes else -quality.loss
        merge = self.measure.merge_weights()
        return Moment(step, quality, score, merge, self.samples, self.elapsed(), self._behind(step))


def part_entries(part: Part) -> list[tuple[Entry, Array]]:
    """Every weight and running statistic of a part, with its values."""
    pairs = ((part.layout, part.weights), (part.state_layout, part.state))
    return [(entry, vector[entry.slice]) for layout, vector in pairs for entry in layout]
