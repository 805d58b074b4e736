"""What a rank did when: events for a timeline, and nothing but a comparison where no timeline is wanted."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

NONE = -1


@dataclass(frozen=True, slots=True)
class Event:
    """One thing done: ``begun`` and ``ended`` in seconds of `perf_counter`.

    ``batch`` is the index of the batch, ``version`` the number of updates that the weights have seen, and ``size`` the
    bytes of a message; each `NONE` where it has no meaning. ``row``: 0 in the main thread, 1 beside it.
    """

    name: str
    begun: float
    ended: float
    batch: int = NONE
    version: int = NONE
    size: int = NONE
    row: int = 0


class Trace:
    """The first ``limit`` events of this rank, in the order in which they ended.

    ``settle`` waits for a device that works behind the program's back, so that events last as long as their work.
    """

    def __init__(self, limit: int = 0, settle: Callable[[], None] = lambda: None):
        self.events: list[Event] = []
        self.dropped = 0
        self.zero = 0.0
        """The moment from which a timeline counts, the same on all ranks."""
        self._limit = limit
        self._settle = settle

    @property
    def wanted(self) -> bool:
        """Whether events are kept at all."""
        return self._limit > 0

    def now(self) -> float:
        """The time to begin an event with."""
        if not self._limit:
            return 0.0
        self._settle()
        return perf_counter()

    def add(
        self, name: str, begun: float, batch: int = NONE, version: int = NONE, size: int = NONE, row: int = 0
    ) -> None:
        """An event that began at ``begun`` ends now."""
        if not self._limit:
            return
        self._settle()
        if len(self.events) < self._limit:
            self.events.append(Event(name, begun, perf_counter(), batch, version, size, row))
        else:
            self.dropped += 1


SILENT = Trace()
"""Keeps nothing."""
