"""A second thread for a pass that does not depend on what the main thread computes at the same time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any

from mpinn.array.pool import Pool

SLICE = 1e-3
"""Seconds that the main thread waits at a time, before it moves messages along."""


class Beside:
    """Runs one pass at a time in a thread; what is to be done with the result is done in the thread that asks for it.

    NumPy, BLAS and the compiled kernels let other threads run while they compute. A pool belongs to one thread, so the
    pass draws its buffers from ``pool``; messages are the main thread's.
    """

    def __init__(self) -> None:
        self.pool = Pool()
        self._thread = ThreadPoolExecutor(1, "beside")
        self._future: Future[Any] | None = None
        self._then: Callable[[Any], None] = _nothing

    def begin(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Run ``work`` in the thread, and ``then`` with its result at the first `poll` after that."""
        # a context of its own: how NumPy treats overflow is part of it
        self._future, self._then = self._thread.submit(copy_context().run, work), then

    def poll(self) -> None:
        """If the work is done, see to its result; raises what it has raised."""
        if self._future is not None and self._future.done():
            future, then = self._future, self._then
            self._future, self._then = None, _nothing
            then(future.result())

    def finish(self, poke: Callable[[], None]) -> None:
        """Return when the work is done and its result seen to; ``poke`` polls, and moves messages along."""
        while self._future is not None:
            wait([self._future], SLICE)
            poke()


def _nothing(result: Any) -> None:
    """No work, no result."""
