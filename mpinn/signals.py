"""Signals that ask a run to stop. Imports nothing heavy, so that a run listens before it has loaded anything else."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

STOPPED = 75
"""Exit code of a run that a signal or --stop-after has ended early: its state is saved, run it again."""
AGAIN = 0.5
"""Seconds after which the keyboard has interrupted once more: a launcher may pass on what a terminal has told all."""


class Signals:
    """Remembers that a signal has asked this rank to stop, and which one."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._heeded = False
        self._since = 0.0

    def listen(self) -> None:
        """From now on SIGUSR1, SIGUSR2 and SIGTERM set the flag, until the rank leaves; and SIGINT, while heeded."""
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._receive)
        signal.signal(signal.SIGINT, self._interrupt)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """While a run looks at the flag, the first SIGINT asks it to stop. Any other ends the job at once."""
        self._heeded = True
        try:
            yield
        finally:
            self._heeded = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        before = self.received == number
        if before and monotonic() - self._since < AGAIN:
            return
        if before or not self._heeded:
            raise KeyboardInterrupt
        self.received, self._since = number, monotonic()


def stop_listening(code: int) -> None:
    """For a rank that is about to leave with ``code``: nobody asks any more, and SIGTERM or SIGINT end it if it hangs.

    Another signal must not kill a rank that leaves with an agreed code, which would change the code of the job.
    """
    # Ignored, not only caught: Python gives a caught signal its default back before MPI signs off.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN if code == STOPPED else signal.SIG_DFL)
