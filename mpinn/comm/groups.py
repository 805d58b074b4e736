"""The groups of ranks that NCCL joins on this rank, from the first to the end of the job."""

from collections.abc import Callable
from threading import Lock
from time import monotonic, sleep

from mpinn.comm.group import Group, Nccl
from mpinn.comm.ledger import Account, Ledger, Ranks
from mpinn.comm.memory import Event
from mpinn.words import name_ranks

PATIENCE = 10.0
"""Seconds that NCCL is given, in the end, for what it was asked for."""
PAUSE = 1e-4
"""Seconds between two looks."""


class Groups:
    """What this rank has of NCCL: groups of ranks, and what they were asked for.

    All ranks of a group make it together, and give it back together. Another thread may ask for ``failure`` and
    ``account``, and ``abort``.
    """

    def __init__(self, nccl: Nccl):
        self.nccl = nccl
        self.ledger = Ledger()
        self._groups: dict[Ranks, Group] = {}
        self._lock = Lock()
        """No group ends while another thread asks it something."""

    @property
    def made(self) -> bool:
        """Whether there is any."""
        return bool(self._groups)

    def of(self, ranks: Ranks, rank: int, meet: Callable[[], bytes]) -> "Joined":
        """The group of those ranks, of which this one is number ``rank``; called by all of them.

        meet: tells them all the name of a new one. Raises RuntimeError.
        """
        if ranks not in self._groups:
            self._groups[ranks] = self.nccl.group(meet(), rank, len(ranks))
        return Joined(self, self._groups[ranks], ranks)

    def quiet(self, patience: float) -> bool:
        """Whether NCCL has done all that it was asked for, or has so within ``patience`` seconds."""
        deadline = monotonic() + patience
        while self.ledger.unfinished():
            if monotonic() > deadline:
                return False
            sleep(PAUSE)
        return True

    def failure(self) -> str:
        """What has gone wrong in which group, or nothing; any thread may ask."""
        self.nccl.here()
        with self._lock:
            for ranks, group in tuple(self._groups.items()):
                if found := group.failure():
                    return f"NCCL fails among {name_ranks(ranks)}: {found}"
        return ""

    def account(self) -> Account:
        """What NCCL was asked for; any thread may ask."""
        self.nccl.here()
        return self.ledger.account()

    def close(self) -> None:
        """Give all groups back, in the order in which they were made, or give them up; called by all ranks.

        NCCL wants all ranks of a group on a machine to end it, and is not to be ended by the interpreter: the driver
        may be gone by then.
        """
        if not self.quiet(PATIENCE):
            self.abort()
            return
        with self._lock:
            for group in self._groups.values():
                group.close()
            self._groups.clear()

    def abort(self) -> None:
        """Give all groups up, and what the device is at; from any thread.

        Otherwise the driver may wait in the end of the process for work that waits for other ranks.
        """
        self.nccl.here()
        with self._lock:
            for group in self._groups.values():
                group.abort()
            self._groups.clear()


class Joined:
    """A group, with the book that is kept of what it is asked for."""

    def __init__(self, groups: Groups, group: Group, ranks: Ranks):
        self._ledger, self._group, self._ranks = groups.ledger, group, ranks

    def ask(self, what: str, size: int, work: Callable[[Group], Event]) -> Event:
        """Ask it for something; the event of its end. ``what`` and ``size`` are for reports; size: bytes."""
        entry = self._ledger.opens(self._ranks, what, size)
        entry.end = work(self._group)
        return entry.end
