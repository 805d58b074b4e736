"""Preparing what comes next in a thread, while the present is being worked on."""

import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """Calls ``make(step)`` for step k + 1 in a thread as soon as step k has been handed out.

    Any step may be asked for: one that was not expected is made at once, after the one under way. ``make`` is never
    called twice at the same time. What it raises is raised by the call that asks for that step. The thread takes no
    signals, and it ends with this object or with the program, whichever is first.
    """

    def __init__(self, make: Callable[[int], Item]):
        self._make = make
        self._thread = ThreadPoolExecutor(1, "ahead", initializer=_without_signals)
        self._coming: tuple[int, Future[Item]] | None = None

    def __call__(self, step: int) -> Item:
        """What ``make`` gives for ``step``."""
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == step:
            item = coming[1].result()
        else:
            if coming is not None:
                wait([coming[1]])
            item = self._make(step)
        self._coming = step + 1, self._thread.submit(self._make, step + 1)
        return item


def _without_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
