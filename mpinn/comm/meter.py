"""Counts of what a channel sends, and how long this rank waited for it."""

from array import array
from collections import deque

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.memory import Wait


class Meter:
    """Counts calls and bytes by operation and records the seconds of every blocking wait.

    Bytes are those of the caller's array, whatever the algorithm inside MPI makes of them: for ``all_gather`` the
    array that this rank contributes. A receive is counted apart from the send that it answers.
    """

    __slots__ = ("_collectives", "_counts", "_first", "_messages")

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._collectives = array("d")
        self._messages = array("d")
        self._first = 0

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """Operation -> (calls, bytes) since the channel was made."""
        return {name: (calls, size) for name, (calls, size) in self._counts.items()}

    def count(self, operation: str, size: int) -> None:
        """Count one call of ``operation`` on an array of ``size`` bytes."""
        try:
            entry = self._counts[operation]
        except KeyError:
            entry = self._counts[operation] = [0, 0]
        entry[0] += 1
        entry[1] += size

    def begin(self) -> int:
        """Open the record of a collective, so that records stand in the order of operations on every rank."""
        self._collectives.append(0.0)
        return self._first + len(self._collectives) - 1

    def waited(self, index: int | None, seconds: float) -> None:
        """Add a blocking wait to collective ``index``; None means a message between two ranks."""
        if index is None:
            self._messages.append(seconds)
        elif index >= self._first:  # older: the record was drained while the operation was under way
            self._collectives[index - self._first] += seconds

    def drain(self, last: bool = False) -> tuple[Array, Array]:
        """Seconds waited since the last call: (collectives in order of operation, messages); the record is emptied.

        ``last``: nothing follows, and what a device is still at is waited for.
        """
        return self._drain(len(self._collectives))

    def _drain(self, count: int) -> tuple[Array, Array]:
        """Take the first ``count`` collectives and all messages."""
        collectives, messages = np.array(self._collectives[:count]), np.array(self._messages)
        self._first += count
        self._collectives, self._messages = self._collectives[count:], array("d")
        return collectives, messages


class DeviceMeter(Meter):
    """The meter of a channel that lets the computing of a device wait, as the device itself has timed it.

    Its waits are known when the device has had them. What was begun after the last call of `drain` is left for the next
    one, so that the host need not wait for it, and all ranks speak of the same collectives.
    """

    __slots__ = ("_begun", "_waits")

    def __init__(self) -> None:
        super().__init__()
        self._waits: deque[tuple[int, Wait]] = deque()
        self._begun = 0

    def waits(self, index: int, wait: Wait) -> None:
        """Add a wait of the device's to collective ``index``, when it is over."""
        self._waits.append((index, wait))
        while self._waits and self._waits[0][1].done:
            self._read()

    def drain(self, last: bool = False) -> tuple[Array, Array]:
        """What had been begun when this was last called, or all of it; see `Meter.drain`."""
        begun = self._first + len(self._collectives)
        until, self._begun = (begun if last else self._begun), begun
        while any(index < until for index, _ in self._waits):
            self._read()
        return self._drain(max(0, until - self._first))

    def _read(self) -> None:
        index, wait = self._waits.popleft()
        self.waited(index, wait.seconds())


def split_time(own: Array, all_ranks: Array) -> tuple[float, float]:
    """Divide the seconds that this rank spent in collectives into (communicating, waiting).

    own: (N,), seconds per collective; all_ranks: (R, N), the same of every rank. The last rank to arrive waits for
    nobody, so the smallest time over the ranks is what the collective itself took; the rest of the own time was spent
    waiting for ranks that were late. An operation that overlapped with computing counts only for what was left of it.
    """
    if all_ranks.shape[1:] != own.shape:
        raise ValueError(f"{own.size} collectives on this rank and {all_ranks.shape[1:]} on all: records do not match")
    communicating = float(all_ranks.min(axis=0).sum())
    return communicating, float(own.sum()) - communicating
