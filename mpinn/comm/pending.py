"""Messages under way over MPI, and how a rank waits for them."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter, sleep
from typing import Protocol

from mpinn.comm.channel import LostRankError, MessageError, Pending
from mpinn.comm.library import MPI
from mpinn.comm.meter import Meter
from mpinn.comm.transport import Loan

SPINS = 50
"""Tests before a polite wait begins to sleep: a message that is nearly there is not slept through."""
SHORTEST, LONGEST = 1e-6, 1e-4
"""Seconds slept between two tests; doubled from the first to the second."""


LOST = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED)
"""Classes of the errors that ULFM adds to MPI."""


class Blocked:
    """What the main thread waits for now; another thread may look."""

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending: MpiPending | None = None


BLOCKED = Blocked()


class Owner(Protocol):
    """The channel on which a message is under way, which holds it until it is complete."""

    name: str
    ranks: list[int]
    polite: bool
    meter: Meter
    under_way: set["MpiPending"]


class MpiPending:
    """Requests under way, the loans that they use, and what to do when they are complete.

    The channel holds it until then, so that MPI never works in memory that was freed because a caller forgot it. Each
    loan ends with its request, so that one piece of a message is copied to its array while the next one arrives.
    loans: one for each request, or none at all. sizes: bytes that each request must bring. finish: what is left to do
    with the arrays then.
    """

    __slots__ = (
        "_channel",
        "_done",
        "_finish",
        "_index",
        "_label",
        "_loans",
        "_open",
        "_requests",
        "_sizes",
        "_status",
    )

    def __init__(
        self,
        channel: Owner,
        label: tuple[str, int | None],
        requests: Sequence[MPI.Request],
        loans: Sequence[Loan] = (),
        *,
        index: int | None = None,
        sizes: Sequence[int] = (),
        finish: Callable[[], None] | None = None,
    ):
        self._channel = channel
        self._label = label
        self._requests = requests
        self._loans = loans
        self._done = 0
        self._open = True
        self._finish = finish
        self._index = index
        self._sizes = sizes
        self._status = MPI.Status() if sizes else None
        channel.under_way.add(self)

    def test(self) -> bool:
        """Whether all requests are complete; if so, the array may be used. Also moves the pieces along."""
        while self._done < len(self._requests):
            try:
                if not self._requests[self._done].Test(self._status):
                    return False
            except MPI.Exception as error:
                raise self._broken(error) from None
            self._next()
        self._complete()
        return True

    def wait(self) -> None:
        """Block until all requests are complete, politely where ranks outnumber the cores."""
        if not self._open:
            return
        start = perf_counter()
        BLOCKED.pending = self
        try:
            self._block()
        finally:
            BLOCKED.pending = None
        self._channel.meter.waited(self._index, perf_counter() - start)

    def _block(self) -> None:
        if self._channel.polite:
            wait_politely(self)
            return
        for request in self._requests[self._done :]:
            try:
                request.Wait(self._status)
            except MPI.Exception as error:
                raise self._broken(error) from None
            self._next()
        self._complete()

    def __str__(self) -> str:
        operation, peer = self._label
        return f"{self._channel.name}: {operation}{'' if peer is None else f' {self._channel.ranks[peer]}'}"

    def _next(self) -> None:
        """One request more is complete."""
        done = self._done
        self._done = done + 1
        if self._status is not None:
            expected, received = self._sizes[done], self._status.Get_count(MPI.BYTE)
            if received != expected:
                self._give_up()
                raise MessageError(f"{self}: {received} bytes came, but the array has {expected}")
        if self._loans:
            self._loans[done].end()

    def _broken(self, error: MPI.Exception) -> MessageError:
        if error.Get_error_class() in LOST:
            # its other requests may still be under way: `abandon` is to come
            return LostRankError(f"{self}: {error}")
        self._give_up()
        if error.Get_error_class() == MPI.ERR_TRUNCATE:
            return MessageError(f"{self}: more bytes came than the array has")
        return MessageError(f"{self}: {error}")

    def _complete(self) -> None:
        if not self._open:
            return
        self._open = False
        self._channel.under_way.discard(self)
        for loan in self._loans:
            loan.settle()
        if self._finish is not None:
            self._finish()
        self._loans = ()

    def abandon(self) -> None:
        """Return when MPI has done with the arrays, on a channel that is revoked: what came is of no use."""
        for request in self._requests:
            # a request that fails is complete
            with suppress(MPI.Exception):
                while not request.Test():
                    sleep(LONGEST)
        self._give_up()

    def _give_up(self) -> None:
        self._requests = self._loans = ()
        self._open = False
        self._channel.under_way.discard(self)


def wait_politely(pending: Pending) -> None:
    """Wait without taking the core from a rank that has work: a short spin, then sleeps of growing length."""
    for _ in range(SPINS):
        if pending.test():
            return
    pause = SHORTEST
    while not pending.test():
        sleep(pause)
        pause = min(2 * pause, LONGEST)
