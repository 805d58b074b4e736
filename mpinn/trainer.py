"""The loop: step, meet, log, evaluate, stop or save."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from time import monotonic
from typing import Any, Protocol

import numpy as np

from mpinn.agreement import Agreement, Signals
from mpinn.array.typing import Array
from mpinn.comm.channel import Channel
from mpinn.consensus.consensus import Consensus, Meeting, Quality
from mpinn.datasets.batches import Batches
from mpinn.measure import ReplicaMeasure, RunMeasure
from mpinn.nn.part import Part
from mpinn.reporter import Reporter
from mpinn.schedules.schedule import Schedule, Update
from mpinn.tally import NEVER, Stopwatch, Tally


class Outcome(Enum):
    """How a run ended."""

    FINISHED = "finished"
    STOPPED = "stopped"


class DivergedError(Exception):
    """A loss, or every replica, stopped being finite. Raised on all ranks together."""


@dataclass(frozen=True)
class Moment:
    """What a checkpoint says besides the state of the ranks: the step, the last validation accuracy, totals so far.

    ``merge`` (R,) are the weights with which replicas that differ are merged to one model.
    """

    step: int
    score: float | None
    merge: Array
    samples: int
    seconds: float


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
    reporter: Reporter
    samples: int = 0
    """Samples that the replicas together have been trained on since the run began."""
    seconds: float = 0.0
    """Of training before this start."""
    quality: Quality | None = None
    meeting: Meeting | None = None
    _saved_at: float = field(default_factory=monotonic)

    def run(self) -> Outcome:
        """Train; raises `DivergedError` after saving a file for inspection."""
        step = self.plan.start
        self.stopwatch.other()
        while step < self.plan.total:
            batch = self.batches.batch(step)
            self.tally.add(step, self.schedule.step(batch, self.update), batch.count)
            self.samples += batch.total
            step += 1
            last = step == self.plan.total
            self._meet(step, last)
            self._look(step, last)
            if self._agreed(step, last):
                return Outcome.STOPPED
        self.agreement.close()
        self.keeper.wait()
        return Outcome.FINISHED

    def elapsed(self) -> float:
        """Seconds of training since the run began, restarts included."""
        return self.seconds + self.stopwatch.times.training

    def _meet(self, step: int, last: bool) -> None:
        meeting = self.consensus.weights(self.schedule.parts, step, self.replica_measure(step), last)
        if meeting is None:
            return
        if meeting.weights is None:
            self._diverge(step, step - 1, 0, "no replica is finite")
        self.meeting = meeting
        weights, scores = np.asarray(meeting.weights).tolist(), meeting.scores.tolist()
        self.keeper.record({"step": step, "meeting_weights": weights, "meeting_scores": scores})
        for replica in meeting.reseeded:
            self.reporter.line(f"step {step}: replica {replica} is not finite; it goes on from the mean of the others")

    def _look(self, step: int, last: bool) -> None:
        """Log and evaluate; none of it counts as training."""
        log = last or step % self.plan.log == 0
        evaluate = last or step % self.plan.evaluate == 0
        if not (log or evaluate):
            return
        self.stopwatch.training()
        status = self._log(step) if log else ""
        if evaluate:
            self.quality = self.measure.quality("validation")
            loss, accuracy = self.quality.loss, self.quality.accuracy
            self.keeper.record({"step": step, "validation_loss": loss, "validation_accuracy": accuracy})
        if log:
            validated = f"  validation {self.quality.accuracy:.4f}" if self.quality else ""
            self.reporter.progress(step, status + validated)
        self.stopwatch.other()

    def _log(self, step: int) -> str:
        sums = self.tally.gather(self.control)
        self.stopwatch.settle()
        self._check(step, sums)
        self.tally.clear()
        finite = np.isfinite(sums[:, 0])
        loss = float(sums[finite, 0].sum() / max(1.0, sums[finite, 1].sum()))
        rate, seconds = self.rate(step - 1), self.elapsed()
        epoch = step / self.batches.steps_per_epoch
        record = {"step": step, "epoch": epoch, "loss": loss, "rate": rate, "samples": self.samples, "seconds": seconds}
        self.keeper.record(record)
        speed = self.samples / seconds if seconds else 0.0
        return f"epoch {epoch:.1f}  {speed:,.0f}/s  loss {loss:.4f}"

    def _check(self, step: int, sums: Array) -> None:
        bad = sums[:, 2] < NEVER
        if bad.any() and not self.consensus.masks:
            rank = int(np.argmin(sums[:, 2]))
            self._diverge(step, int(sums[rank, 2]), rank, "the loss is not finite")

    def _diverge(self, step: int, first: int, rank: int, what: str) -> None:
        layers = np.empty((self.control.size, 1))
        names = [name for part in self.schedule.parts.values() for name in part.weight_views]
        own = [i for part in self.schedule.parts.values() for i in bad_layers(part, names)]
        self.control.all_gather(np.array([own[0] if own else -1.0]), layers).wait()
        index = int(layers[rank, 0])
        layer = f"layer {names[index]} is the first whose weights are not" if index >= 0 else "all weights still are"
        path = self.keeper.inspection(self._moment(step))
        raise DivergedError(f"step {first + 1}, rank {rank}: {what}; {layer}. The state is in {path}")

    def _moment(self, step: int) -> Moment:
        score = self.quality.accuracy if self.quality else None
        return Moment(step, score, self.measure.merge_weights(), self.samples, self.elapsed())

    def _agreed(self, step: int, last: bool) -> bool:
        """Save if it is time; whether all ranks stop here."""
        every = self.plan.save_seconds
        overdue = bool(every) and monotonic() - self._saved_at >= every
        pace = self.stopwatch.pace(step - self.plan.start)
        stop, save = self.agreement.at(step, self.signals.received is not None, overdue, pace)
        stop = stop or step == self.plan.stop_after
        save = save or (bool(self.plan.save) and step % self.plan.save == 0)
        if not (last or stop or save):
            return False
        self.stopwatch.training()
        self._saved_at = monotonic()
        self.tally.settle()
        self.keeper.save(self._moment(step))
        if stop and not last:
            self.agreement.close()
            self.keeper.wait()
        self.stopwatch.other()
        return stop and not last


def bad_layers(part: Part, names: list[str]) -> list[int]:
    """Indices in ``names`` of the layers of ``part`` with a weight that is not finite."""
    views = {name: part.layout.span((name,)) for name in part.weight_views}
    return [names.index(name) for name, span in views.items() if not np.isfinite(part.weights[span]).all()]
