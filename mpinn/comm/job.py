"""The ranks of the job, of which some may die, and how the others go on without them.

By User-Level Failure Mitigation (Bland et al. 2013), which Open MPI has since version 5: a message that needs a rank
which has died fails, whoever sees that revokes all communicators, so that the messages of all fail, and those that
live shrink the communicator to themselves. Only the messages of an attempt may fail so.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from threading import Thread
from time import monotonic, sleep
from typing import Protocol

from mpinn.comm.channel import LostRankError, MessageError
from mpinn.comm.groups import Groups
from mpinn.comm.library import MPI
from mpinn.comm.pending import LONGEST, LOST

SWITCH = "OMPI_MCA_mpi_ft_enable"
"""What ``mpirun --with-ft ulfm`` sets. Without it Open MPI has all functions, and its mpirun ends the job anyway."""

NOTICE = 1.0
"""Seconds in which a message that failed otherwise is explained by a death of which Open MPI hears later."""

ABANDON = 5.0
"""Seconds that NCCL is given to give up what it is at, which it may not do."""


class Opened(Protocol):
    """A channel as it is given up."""

    def revoke(self) -> None:
        """Let the messages of all its ranks fail."""

    def settle(self) -> None:
        """Return when nothing is under way: what has not come will not come any more."""


class Job:
    """All ranks, or those that still train; made once, before MPI is known to be there."""

    def __init__(self) -> None:
        self._everyone: MPI.Intracomm | None = None
        self._opened: list[Opened] | None = None
        self.joined: list[Groups] = []
        """What joins ranks beside MPI, and is to end before it."""

    @property
    def everyone(self) -> MPI.Intracomm:
        """Joins all ranks that train, of which this is one unless it is COMM_NULL."""
        return MPI.COMM_WORLD if self._everyone is None else self._everyone

    def leave(self) -> bool:
        """This rank has done; whether it may finalize MPI, which may hang if a rank has died, and has no use then."""
        whole = self._everyone is None
        if not whole:
            self._everyone = MPI.Intracomm(MPI.COMM_NULL)
        return whole

    def opens(self, channel: Opened) -> None:
        """A channel has been opened; in an attempt it is held, so that it can be revoked."""
        if self._opened is not None:
            self._opened.append(channel)

    def joins(self, groups: Groups) -> None:
        """Ranks are about to be joined beside MPI."""
        if groups not in self.joined:
            self.joined.append(groups)

    def part(self) -> None:
        """End what joins ranks beside MPI, when nothing is left to do; called by all ranks."""
        while self.joined:
            self.joined.pop(0).close()

    def abandon(self) -> None:
        """Give up what joins ranks beside MPI, and what it is at; from any thread."""
        threads = [Thread(target=groups.abort, name="abandon", daemon=True) for groups in self.joined]
        for thread in threads:
            thread.start()
        deadline = monotonic() + ABANDON
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))

    def mortal(self, environment: Mapping[str, str] = os.environ) -> str:
        """Why no rank survives the death of another; nothing where they do."""
        vendor, version = MPI.get_vendor()
        name = f"{vendor} {'.'.join(map(str, version))}"
        if vendor != "Open MPI" or version < (5,) or not _can_revoke():
            return f"{name} has no ULFM, which lets ranks survive: use Open MPI 5, as mpirun --with-ft ulfm"
        if environment.get(SWITCH, "").lower() not in ("1", "true", "yes", "t", "y"):
            return f"{name} was started without ULFM, which lets ranks survive: start with mpirun --with-ft ulfm"
        return ""

    def attempt(self, work: Callable[[], int]) -> int | None:
        """What ``work`` returns; None, on all ranks that live, if one has died before all had finished.

        All channels that it uses must be opened in it.
        """
        self._opened = []
        code: int | None = None
        try:
            code = work()
        except (MessageError, MPI.Exception) as error:
            if not (_is_loss(error) or self._has_lost()):
                raise
            self._give_up()
        if _agree(self.everyone, code is not None):
            return code
        if code is not None:
            self._give_up()
        return None

    def _has_lost(self) -> bool:
        """Whether a rank is known to have died: then any message may fail, and not only by the errors of ULFM."""
        deadline = monotonic() + NOTICE
        while monotonic() < deadline:
            failed = self.everyone.Get_failed()
            count = failed.Get_size()
            failed.Free()
            if count or self.everyone.Is_revoked():
                return True
            sleep(LONGEST)
        return False

    def _give_up(self) -> None:
        for channel in self._opened or ():
            channel.revoke()
        self.everyone.Revoke()
        for channel in self._opened or ():
            channel.settle()
        self._opened = None

    def shrink(self, stay: Callable[[Sequence[int]], Sequence[int]]) -> Sequence[int]:
        """Go on with those that ``stay`` chooses from the living; returns the living, which all call it.

        Ranks count as before. A rank that does not stay belongs to nobody from then on. If nobody would, all do.
        """
        before = self.everyone
        rank = before.Get_rank()
        while True:
            living = MPI.Intracomm(before.Shrink())
            living.Set_errhandler(MPI.ERRORS_RETURN)
            numbers = ranks_of(living, before)
            chosen = stay(numbers)
            try:
                after = MPI.Intracomm(living.Split(0 if rank in chosen or not chosen else MPI.UNDEFINED, rank))
            except MPI.Exception:
                living.Revoke()
                after = None
            if _agree(living, after is not None) and after is not None:
                self._everyone = after
                return numbers


def _is_loss(error: Exception) -> bool:
    return isinstance(error, LostRankError) or (isinstance(error, MPI.Exception) and error.Get_error_class() in LOST)


def _agree(communicator: MPI.Intracomm, fine: bool) -> bool:
    """Whether all live and find it ``fine``."""
    try:
        return bool(communicator.Agree(int(fine)))
    except MPI.Exception:
        return False


def _can_revoke() -> bool:
    """Whether MPI and mpi4py have what it needs; tried on a communicator of this rank alone."""
    own = MPI.COMM_SELF.Dup()
    try:
        own.Revoke()
        return bool(own.Is_revoked())
    except (NotImplementedError, MPI.Exception):
        return False
    finally:
        own.Free()


def ranks_of(communicator: MPI.Intracomm, everyone: MPI.Intracomm) -> list[int]:
    """The number that each rank of a communicator has among all."""
    own, whole = communicator.Get_group(), everyone.Get_group()
    ranks = own.Translate_ranks(None, whole)
    own.Free()
    whole.Free()
    return list(ranks)


JOB = Job()
