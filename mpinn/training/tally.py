"""What is counted between two lines of the log: losses, samples, and where the time went."""

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel
from mpinn.comm.meter import split_time
from mpinn.nn.layout import Layout

NEVER = float(2**53)


class Tally:
    """This replica's summed loss since the last line of the log, and the first step at which it was not finite.

    Losses stay where they were computed, unread, until `settle`; the sums live in a vector that a checkpoint keeps, so
    that a run which stops between two lines goes on as if it had not.
    """

    def __init__(self) -> None:
        self.layout = Layout({"loss": (1,), "samples": (1,), "first_bad": (1,)}, np.float64)
        self.vector: Array = np.zeros(self.layout.size)
        views = self.layout.views(self.vector)
        self._loss, self._samples, self._first_bad = views["loss"], views["samples"], views["first_bad"]
        self._unread: list[tuple[int, Array, int]] = []
        self.clear()

    def add(self, step: int, loss: Array | None, samples: int) -> None:
        """Note the summed loss of this replica's share of the batch of ``step``, without reading it."""
        if loss is not None:
            self._unread.append((step, loss, samples))

    def settle(self) -> None:
        """Read the losses, in order."""
        for step, loss, samples in self._unread:
            value = float(loss)
            self._loss += value
            self._samples += samples
            if not np.isfinite(value):
                self._first_bad[0] = min(self._first_bad[0], step)
        self._unread.clear()

    def clear(self) -> None:
        """Start the next line."""
        self._unread.clear()
        self.vector.fill(0)
        self._first_bad.fill(NEVER)

    def gather(self, control: Channel) -> Array:
        """(R, 3): summed loss, samples, and first bad step (or `NEVER`) of every replica; called by all ranks."""
        self.settle()
        own = np.array([self._loss[0], self._samples[0], self._first_bad[0]])
        everyone = np.empty((control.size, 3))
        control.all_gather(own, everyone).wait()
        return everyone


@dataclass(slots=True)
class Times:
    """Seconds of this rank: in steps and meetings altogether, and of these in messages and waiting for other ranks."""

    training: float = 0.0
    communicating: float = 0.0
    waiting: float = 0.0
    other: float = 0.0
    """Evaluating, saving and logging, which ``training`` leaves out."""


class Stopwatch:
    """Divides the time of training; see `mpinn.comm.meter.split_time` for what communicating and waiting mean.

    ``column`` joins the same ranks as ``replicas``, and is counted by nobody.
    """

    def __init__(self, replicas: Channel, stages: Channel, column: Channel):
        self.times = Times()
        self._replicas, self._stages, self._column = replicas, stages, column
        self._begun = self._since = perf_counter()

    def start(self) -> None:
        """Training begins: what has passed since the last call belongs to nothing."""
        self._begun = self._since = perf_counter()

    def training(self) -> None:
        """What has passed since the last call was training."""
        self.times.training += self._lap()

    def other(self) -> None:
        """What has passed since the last call was not."""
        self.times.other += self._lap()

    def pace(self, steps: int) -> float:
        """Seconds per step since the start, of which there were ``steps``, whatever they were spent on."""
        return (perf_counter() - self._begun) / max(1, steps)

    def _lap(self) -> float:
        now = perf_counter()
        lap, self._since = now - self._since, now
        return lap

    def settle(self, last: bool = True) -> None:
        """Compare this rank's waits with those of the other replicas since the last call; called by all ranks.

        What a device may still be waiting for is left for the next call, unless this is the ``last``.
        Messages between stages travel while the stages compute: who still waits for one waits for a stage that is late.
        """
        own, messages = self._replicas.meter.drain(last)
        everyone = np.empty((self._column.size, own.size))
        self._column.all_gather(own, everyone).wait()
        communicating, waiting = split_time(own, everyone)
        self.times.communicating += communicating + float(messages.sum())
        self.times.waiting += waiting + sum(float(waits.sum()) for waits in self._stages.meter.drain(last))
