"""Ranks that agree on the step at which all of them stop or save, though none waits for another within a step."""

import numpy as np

from mpinn.comm.channel import Channel, Pending

HORIZON = 0.5
"""Seconds between two boundaries: how far a rank may run ahead, and half of how late a stop may be."""
MOST_STEPS = 1000


class Agreement:
    """A rolling, non-blocking maximum of what the ranks ask for.

    At a boundary, a step number that is the same on all ranks, each rank completes the maximum that was started at the
    boundary before, acts on it, and starts the next one. No rank passes a boundary before the maximum of the last one
    is complete, so all act at the same step. How far off the next boundary is follows the slowest rank's pace.
    """

    def __init__(self, channel: Channel, step: int):
        self.step = step
        """The last step that this rank has done."""
        self.passed = step
        """The last boundary: all ranks have come to the one before it."""
        self._channel = channel
        self._boundary = step + 1
        self._interval = 1
        self._pending: Pending | None = None
        self._asked = np.zeros(3)

    def at(self, step: int, stop: bool, save: bool, seconds_per_step: float) -> tuple[bool, bool]:
        """Whether all ranks stop, and whether all save, at the boundary after ``step`` steps."""
        self.step = step
        if self._channel.size == 1:
            return stop, save
        if step < self._boundary:
            return False, False
        agreed = self._complete()
        self.passed = step
        # At most doubled, since the pace of the first steps is not that of a run which saves and evaluates.
        fitting = HORIZON / agreed[2] if agreed[2] > 0 else 1
        self._interval = int(np.clip(fitting, 1, min(2 * self._interval, MOST_STEPS)))
        self._boundary = step + self._interval
        # What was just agreed on is done now and need not be asked for again.
        self._asked[:] = stop, save and not agreed[1], seconds_per_step
        self._pending = self._channel.all_max(self._asked)
        return bool(agreed[0]), bool(agreed[1])

    def close(self) -> None:
        """Complete what is under way; called by all ranks at the same step."""
        self._complete()

    def _complete(self) -> tuple[float, float, float]:
        if self._pending is None:
            return 0.0, 0.0, 0.0
        self._pending.wait()
        self._pending = None
        stop, save, seconds = self._asked
        return float(stop), float(save), float(seconds)
