"""Channels over MPI; imported only once MPI is wanted. Called from the main thread only."""

import atexit
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import monotonic, sleep
from typing import NoReturn

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.channel import (
    Channel,
    NullChannel,
    Pending,
    check_array,
    check_gather,
    check_rank,
    check_reducible,
)
from mpinn.comm.job import JOB, ranks_of
from mpinn.comm.library import MPI
from mpinn.comm.meter import Meter
from mpinn.comm.ordered import OrderedSum
from mpinn.comm.pending import BLOCKED, LONGEST, LOST, SHORTEST, MpiPending, wait_politely
from mpinn.comm.transport import ALL, NOTHING, Direct, Loan, Transport, Transports, same

__all__ = ["BLOCKED", "JOB", "MPI", "wait_politely"]

CHUNK = 2**30
"""Largest number of bytes given to MPI at once: counts beyond 2**31 - 1 fail in libraries older than MPI 4."""
POKES = 1000
"""How often a message is moved along, at most, while its next piece is copied: a device that failed is never ready."""
PATIENCE = 10.0
"""Seconds that a rank which ends waits for the others to end too."""
FORWARDING = 0.25
"""Seconds that the launcher is given to pass on what was said: MPICH's drops what it holds when a job aborts."""
Start = Callable[[Array], MPI.Request]
"""Begins the message of a buffer."""
Begun = tuple[list[MPI.Request], Sequence[Loan]]
"""The requests of a message, and the loan of each; none where MPI works in the array as it is."""


class MpiChannel:
    """A channel over an MPI communicator, which it owns.

    polite: waiting sleeps between tests. ordered: sums are added in the order of the ranks (`mpinn.comm.ordered`), so
    that they do not depend on the algorithm that MPI chooses.
    """

    def __init__(
        self,
        communicator: MPI.Intracomm,
        name: str,
        transports: Transports | None = None,
        *,
        polite: bool = False,
        ordered: bool = False,
        chunk: int = CHUNK,
    ):
        self.communicator = communicator
        self.rank = communicator.Get_rank()
        self.size = communicator.Get_size()
        self.ranks = ranks_of(communicator, JOB.everyone)
        """The number that each rank of the channel has in the job."""
        self.name = name
        self.meter = Meter()
        self.transports = transports or same(Direct())
        self.polite = polite
        self.ordered = ordered
        self._slices = MPI.Intracomm(communicator.Dup()) if ordered else communicator
        """For messages of sums in order, which meet no others."""
        self._sums = 0
        self.under_way: set[MpiPending] = set()
        self._chunk = chunk
        self._longest = min(chunk, self.transports.messages.piece)
        """Bytes of a piece of a message."""
        JOB.opens(self)

    def send(self, array: Array, to: int, tag: int = 0) -> Pending:
        """Send to rank ``to``; messages between two ranks arrive in the order in which they were sent."""
        check_array(self.name, "send", array)
        check_rank(self.name, "send", to, self.size)
        self.meter.count("send", array.nbytes)
        requests, loans = self._bytes(array, lambda buffer: self.communicator.Isend(_raw(buffer), to, tag), ALL, False)
        return MpiPending(self, ("send to rank", to), requests, loans)

    def receive(self, into: Array, source: int, tag: int = 0) -> Pending:
        """Receive from rank ``source`` exactly as many bytes as ``into`` has."""
        check_array(self.name, "receive", into)
        check_rank(self.name, "receive", source, self.size)
        self.meter.count("receive", into.nbytes)
        sizes: list[int] = []

        def start(buffer: Array) -> MPI.Request:
            sizes.append(buffer.nbytes)
            return self.communicator.Irecv(_raw(buffer), source, tag)

        requests, loans = self._bytes(into, start, NOTHING, True)
        return MpiPending(self, ("receive from rank", source), requests, loans, sizes=sizes)

    def all_sum(self, array: Array) -> Pending:
        """Replace ``array`` by its sum over the ranks, equal bit for bit on all of them."""
        return self._sum_in_order(array) if self.ordered else self._reduce("all_sum", array, MPI.SUM)

    def all_max(self, array: Array) -> Pending:
        """Replace ``array`` by its elementwise maximum over the ranks."""
        return self._reduce("all_max", array, MPI.MAX)

    def all_gather(self, array: Array, into: Array) -> Pending:
        """Collect the ``array`` of every rank r in ``into[r]``; into: (size, *array.shape)."""
        check_gather(self.name, array, into, self.size)
        self.meter.count("all_gather", array.nbytes)
        index = self.meter.begin()
        into[self.rank] = array
        return MpiPending(self, ("all_gather", None), *self._gather(into), index=index)

    def broadcast(self, array: Array, root: int) -> Pending:
        """Replace ``array`` by that of rank ``root``."""
        check_array(self.name, "broadcast", array)
        check_rank(self.name, "broadcast", root, self.size)
        self.meter.count("broadcast", array.nbytes)
        index = self.meter.begin()
        return MpiPending(self, ("broadcast", None), *self._spread(array, root), index=index)

    def barrier(self) -> None:
        """Block until every rank is here."""
        self.meter.count("barrier", 0)
        index = self.meter.begin()
        MpiPending(self, ("barrier", None), [self.communicator.Ibarrier()], index=index).wait()

    def split(self, color: int, key: int, name: str) -> Channel:
        """The channel of the ranks that give the same ``color``, ordered by ``key``; called by all ranks."""
        return among(MPI.Intracomm(self.communicator.Split(color, key)), name, self._like)

    def _like(self, communicator: MPI.Intracomm, name: str) -> "MpiChannel":
        """A channel of the same kind over another communicator."""
        return MpiChannel(
            communicator, name, self.transports, polite=self.polite, ordered=self.ordered, chunk=self._chunk
        )

    def with_chunk(self, chunk: int) -> "MpiChannel":
        """The same ranks with at most ``chunk`` bytes given to MPI at once; called by all ranks."""
        return MpiChannel(
            MPI.Intracomm(self.communicator.Dup()),
            self.name,
            self.transports,
            polite=self.polite,
            ordered=self.ordered,
            chunk=chunk,
        )

    def revoke(self) -> None:
        """Let the messages of all its ranks fail, for ever."""
        self.communicator.Revoke()
        if self.ordered:
            self._slices.Revoke()

    def settle(self) -> None:
        """Return when MPI has done with the arrays of a channel that is revoked."""
        for pending in list(self.under_way):
            pending.abandon()

    def _reduce(self, name: str, array: Array, operation: MPI.Op) -> Pending:
        check_reducible(self.name, name, array)
        self.meter.count(name, array.nbytes)
        index = self.meter.begin()
        sums = self.transports.sums

        def start(buffer: Array) -> MPI.Request:
            return self.communicator.Iallreduce(MPI.IN_PLACE, buffer, operation)

        requests, loans = _begin(sums, _cut(array, min(self._chunk, sums.piece)), start, ALL, True)
        return MpiPending(self, (name, None), requests, loans, index=index)

    def _sum_in_order(self, array: Array) -> Pending:
        check_reducible(self.name, "all_sum", array)
        self.meter.count("all_sum", array.nbytes)
        self._sums += 1
        return OrderedSum(self, array, self._sums, self.meter.begin())

    def exchange(
        self, leaving: Iterable[tuple[int, Array]], coming: Iterable[tuple[int, Array]], tag: int, index: int
    ) -> Pending:
        """Messages of a sum in order; empty arrays are none."""
        requests: list[MPI.Request] = []
        loans: list[Loan] = []
        for peers, way, filled in ((coming, self._slices.Irecv, NOTHING), (leaving, self._slices.Isend, ALL)):
            for rank, array in peers:
                start = partial(_between, way, rank, tag)
                begun = self._bytes(array, start, filled, filled is NOTHING, fresh=True) if array.size else ([], ())
                requests += begun[0]
                loans += begun[1]
        return MpiPending(self, ("all_sum", None), requests, loans, index=index)

    def _gather(self, into: Array) -> Begun:
        """Collect row r of ``into`` from rank r; rows too long for one message are broadcast in pieces.

        One's own row has just been copied there.
        """
        if into[0].nbytes <= self._longest:
            length, whole = into[0].nbytes, self.communicator.Iallgather

            def start(buffer: Array) -> MPI.Request:
                return whole(MPI.IN_PLACE, [buffer, length, MPI.BYTE])

            return _begin(self.transports.messages, [into], start, slice(self.rank, self.rank + 1), True, fresh=True)
        spread = [self._spread(into[root], root) for root in range(self.size)]
        return [request for requests, _ in spread for request in requests], [loan for _, own in spread for loan in own]

    def _spread(self, array: Array, root: int) -> Begun:
        shown = ALL if self.rank == root else NOTHING
        start = partial(self._cast, root)
        return self._bytes(array, start, shown, self.rank != root, fresh=True)

    def _cast(self, root: int, buffer: Array) -> MPI.Request:
        return self.communicator.Ibcast(_raw(buffer), root)

    def _bytes(self, array: Array, start: Start, filled: slice, wanted: bool, fresh: bool = False) -> Begun:
        """Begin a message; where it is cut follows from its bytes: at the other end there may be another dtype."""
        flat = array.reshape(-1)
        pieces = [flat] if flat.nbytes <= self._longest else _cut(flat.view(np.uint8), self._longest)
        return _begin(self.transports.messages, pieces, start, filled, wanted, fresh)


def _between(way: Callable[..., MPI.Request], rank: int, tag: int, buffer: Array) -> MPI.Request:
    return way(_raw(buffer), rank, tag)


def _begin(
    transport: Transport, pieces: list[Array], start: Start, filled: slice, wanted: bool, fresh: bool = False
) -> Begun:
    """Start a request for each piece, and for each loan that stands for one; see `Transport.lend`."""
    if not transport.takes(pieces[0]):
        return [start(piece) for piece in pieces], ()
    loans = transport.lend(pieces, filled, wanted, fresh)
    return _start(loans, start), loans


def _start(loans: Sequence[Loan], start: Start) -> list[MPI.Request]:
    """Start a request for each loan as soon as it is ready; meanwhile those before are moved along."""
    requests: list[MPI.Request] = []
    for loan in loans:
        for _ in range(POKES if requests else 0):
            if loan.ready:
                break
            # moves it along; Test would take the status of a message that is complete, and who waits for it needs that
            requests[-1].Get_status()
        while JOB.joined and not loan.ready:
            # the device may wait for a rank that waits for a message of this one, which moves while MPI is called
            JOB.everyone.Iprobe()
        requests.append(start(loan.begin()))
    return requests


def _cut(array: Array, limit: int) -> list[Array]:
    """An array as one line, in pieces of ``limit`` bytes."""
    flat = array.reshape(-1)
    if flat.nbytes <= limit:
        return [flat]
    step = max(1, limit // flat.itemsize)
    return [flat[start : start + step] for start in range(0, flat.size, step)]


def among(communicator: MPI.Intracomm, name: str, make: Callable[[MPI.Intracomm, str], Channel]) -> Channel:
    """The channel that is made over a new communicator, unless that is of one rank."""
    if communicator.Get_size() > 1:
        return make(communicator, name)
    communicator.Free()
    return NullChannel(name)


def place() -> tuple[int, int]:
    """What MPI itself sees: (rank, number of ranks)."""
    return MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()


def library() -> tuple[str, str]:
    """The MPI library in use: (vendor and version, its own full description)."""
    vendor, version = MPI.get_vendor()
    return f"{vendor} {'.'.join(map(str, version))}", MPI.Get_library_version().strip("\0\n ")


def abort(code: int) -> NoReturn:
    """End every rank of the job at once."""
    sleep(FORWARDING)
    JOB.abandon()
    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.COMM_WORLD.Abort(code)
    os._exit(code)  # MPICH's Abort may come back before its launcher has killed this rank


def end_together(patience: float, report: str = "") -> None:
    """Finalize MPI once all ranks are here; when they are not after ``patience`` seconds, end the job with ``report``.

    Without an own finalization, a rank that leaves alone would wait in MPI for ranks that wait for its messages. A rank
    that others go on without waits for nobody.
    """
    if not MPI.Is_initialized() or MPI.Is_finalized() or JOB.everyone == MPI.COMM_NULL:
        return
    try:
        _wait_for_all(patience, report)
    except MPI.Exception as error:
        if error.Get_error_class() not in LOST:
            raise
        # one died when all was done; others may still wait for it
        JOB.everyone.Revoke()
    JOB.part()
    if JOB.leave():
        MPI.Finalize()


def _wait_for_all(patience: float, report: str) -> None:
    deadline = monotonic() + patience
    request, pause = JOB.everyone.Ibarrier(), SHORTEST
    while not request.Test():
        if monotonic() > deadline:
            said = f"rank {MPI.COMM_WORLD.Get_rank()} has ended while others have not: the job is ended"
            print("\n".join([said, *filter(None, [report])]), file=sys.__stderr__, flush=True)
            abort(1)
        sleep(pause)
        pause = min(2 * pause, LONGEST)


atexit.register(end_together, PATIENCE)


def _raw(piece: Array) -> list[object]:
    """The bytes of a buffer: any dtype travels, also those for which MPI has no name."""
    return [piece, piece.nbytes, MPI.BYTE]
