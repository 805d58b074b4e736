"""Signals that ask a run to stop. Imports nothing heavy, so that a run listens before it has loaded anything else."""

import signal
from types import FrameType

STOPPED = 75
"""Exit code of a run that a signal or --stop-after has ended early: its state is saved, run it again."""


class Signals:
    """Remembers that a signal has asked this rank to stop, and which one."""

    def __init__(self) -> None:
        self.received: int | None = None

    def listen(self) -> None:
        """From now on SIGUSR1, SIGUSR2 and SIGTERM set the flag, until the rank leaves."""
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number


def stop_listening(code: int) -> None:
    """For a rank that is about to leave with ``code``: nobody asks any more, and SIGTERM ends it should it hang.

    Another signal must not kill a rank that leaves with an agreed code, which would change the code of the job.
    """
    # Ignored, not only caught: Python gives a caught signal its default back before MPI signs off.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if code == STOPPED else signal.SIG_DFL)
