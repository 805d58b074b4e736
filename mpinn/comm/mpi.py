"""Channels over MPI; imported only once MPI is wanted. Called from the main thread only."""

import atexit
import os
import sys
import warnings
from functools import partial
from time import monotonic, perf_counter, sleep
from typing import NoReturn, Protocol

import mpi4py
import numpy as np

mpi4py.rc.thread_level = "serialized"
mpi4py.rc.finalize = False  # done by `end_together`: finalizing waits for the other ranks, for ever if one is gone
with warnings.catch_warnings():
    # It suspects a launcher of another MPI; `grid.connect` knows, and says so once.
    warnings.simplefilter("ignore", RuntimeWarning)
    from mpi4py import MPI

from mpinn.array.typing import Array  # noqa: E402
from mpinn.comm.channel import (  # noqa: E402
    Channel,
    MessageError,
    NullChannel,
    Pending,
    check_array,
    check_gather,
    check_rank,
    check_reducible,
)
from mpinn.comm.meter import Meter  # noqa: E402
from mpinn.comm.transport import Direct, Transport  # noqa: E402

CHUNK = 2**30
"""Largest number of bytes given to MPI at once: counts beyond 2**31 - 1 fail in libraries older than MPI 4."""
SPINS = 50
"""Tests before a polite wait begins to sleep: a message that is nearly there is not slept through."""
SHORTEST, LONGEST = 1e-6, 1e-4
"""Seconds slept between two tests; doubled from the first to the second."""
PATIENCE = 10.0
"""Seconds that a rank which ends waits for the others to end too."""
FORWARDING = 0.25
"""Seconds that the launcher is given to pass on what was said: MPICH's drops what it holds when a job aborts."""


class Blocked:
    """What the main thread waits for now; another thread may look."""

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending: MpiPending | None = None


BLOCKED = Blocked()


class Finish(Protocol):
    """What is left to do when the requests of a message are complete."""

    def __call__(self) -> None:
        """Give buffers back to their transport, and add up what was gathered."""


class MpiPending:
    """Requests under way, the buffers that they use, and what to do when they are complete.

    The channel holds it until then, so that MPI never works in memory that was freed because a caller forgot it.
    """

    __slots__ = ("_channel", "_expected", "_finish", "_index", "_label", "_requests", "_status")

    def __init__(
        self,
        channel: "MpiChannel",
        label: tuple[str, int | None],
        requests: list[MPI.Request],
        finish: Finish,
        index: int | None = None,
        expected: list[int] | None = None,
    ):
        self._channel = channel
        self._label = label
        # In reverse: complete requests are taken from the end.
        self._requests = requests[::-1]
        self._finish: Finish | None = finish
        self._index = index
        self._expected = expected[::-1] if expected else None
        self._status = MPI.Status() if expected else None
        channel.under_way.add(self)

    def test(self) -> bool:
        """Whether all requests are complete; if so, the array may be used."""
        while self._requests:
            try:
                if not self._requests[-1].Test(self._status):
                    return False
            except MPI.Exception as error:
                raise self._broken(error) from None
            self._check_size()
        self._complete()
        return True

    def wait(self) -> None:
        """Block until all requests are complete, politely where ranks outnumber the cores."""
        if self._finish is None:
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
        while self._requests:
            try:
                self._requests[-1].Wait(self._status)
            except MPI.Exception as error:
                raise self._broken(error) from None
            self._check_size()
        self._complete()

    def __str__(self) -> str:
        operation, peer = self._label
        return f"{self._channel.name}: {operation}{'' if peer is None else f' {self._channel.ranks[peer]}'}"

    def _check_size(self) -> None:
        self._requests.pop()
        if self._expected is None or self._status is None:
            return
        expected, received = self._expected.pop(), self._status.Get_count(MPI.BYTE)
        if received != expected:
            self._give_up()
            raise MessageError(f"{self}: {received} bytes came, but the array has {expected}")

    def _broken(self, error: MPI.Exception) -> MessageError:
        self._give_up()
        if error.Get_error_class() == MPI.ERR_TRUNCATE:
            return MessageError(f"{self}: more bytes came than the array has")
        return MessageError(f"{self}: {error}")

    def _complete(self) -> None:
        if self._finish is not None:
            finish, self._finish = self._finish, None
            self._channel.under_way.discard(self)
            finish()

    def _give_up(self) -> None:
        self._requests.clear()
        self._finish = None
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


class MpiChannel:
    """A channel over an MPI communicator, which it owns.

    polite: waiting sleeps between tests. ordered: sums are gathered and added in the order of the ranks, so that they
    do not depend on the algorithm that MPI chooses; takes ``size`` times the memory, meant for tests.
    """

    def __init__(
        self,
        communicator: MPI.Intracomm,
        name: str,
        transport: Transport | None = None,
        *,
        polite: bool = False,
        ordered: bool = False,
        chunk: int = CHUNK,
    ):
        self._communicator = communicator
        self.rank = communicator.Get_rank()
        self.size = communicator.Get_size()
        self.ranks = _ranks_of(communicator)
        """The number that each rank of the channel has in the job."""
        self.name = name
        self.meter = Meter()
        self.transport = transport or Direct()
        self.polite = polite
        self.ordered = ordered
        self.under_way: set[MpiPending] = set()
        self._chunk = chunk

    def send(self, array: Array, to: int, tag: int = 0) -> Pending:
        """Send to rank ``to``; messages between two ranks arrive in the order in which they were sent."""
        check_array(self.name, "send", array)
        check_rank(self.name, "send", to, self.size)
        self.meter.count("send", array.nbytes)
        buffer = self.transport.lend(array, filled=True)
        requests = [self._communicator.Isend(_raw(piece), to, tag) for piece in self._pieces(buffer)]
        return MpiPending(self, ("send to rank", to), requests, partial(self.transport.take_back, buffer, None))

    def receive(self, into: Array, source: int, tag: int = 0) -> Pending:
        """Receive from rank ``source`` exactly as many bytes as ``into`` has."""
        check_array(self.name, "receive", into)
        check_rank(self.name, "receive", source, self.size)
        self.meter.count("receive", into.nbytes)
        buffer = self.transport.lend(into, filled=False)
        pieces = self._pieces(buffer)
        return MpiPending(
            self,
            ("receive from rank", source),
            [self._communicator.Irecv(_raw(piece), source, tag) for piece in pieces],
            partial(self.transport.take_back, buffer, into),
            expected=[piece.nbytes for piece in pieces],
        )

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
        buffer = self.transport.lend(into, filled=True)
        requests = self._gather(buffer)
        return MpiPending(self, ("all_gather", None), requests, partial(self.transport.take_back, buffer, into), index)

    def broadcast(self, array: Array, root: int) -> Pending:
        """Replace ``array`` by that of rank ``root``."""
        check_array(self.name, "broadcast", array)
        check_rank(self.name, "broadcast", root, self.size)
        self.meter.count("broadcast", array.nbytes)
        index = self.meter.begin()
        buffer = self.transport.lend(array, filled=self.rank == root)
        requests = [self._communicator.Ibcast(_raw(piece), root) for piece in self._pieces(buffer)]
        into = None if self.rank == root else array
        return MpiPending(self, ("broadcast", None), requests, partial(self.transport.take_back, buffer, into), index)

    def barrier(self) -> None:
        """Block until every rank is here."""
        self.meter.count("barrier", 0)
        index = self.meter.begin()
        MpiPending(self, ("barrier", None), [self._communicator.Ibarrier()], _nothing, index).wait()

    def split(self, color: int, key: int, name: str) -> Channel:
        """The channel of the ranks that give the same ``color``, ordered by ``key``; called by all ranks."""
        communicator = MPI.Intracomm(self._communicator.Split(color, key))
        if communicator.Get_size() == 1:
            communicator.Free()
            return NullChannel(name)
        return MpiChannel(
            communicator, name, self.transport, polite=self.polite, ordered=self.ordered, chunk=self._chunk
        )

    def with_chunk(self, chunk: int) -> "MpiChannel":
        """The same ranks with at most ``chunk`` bytes given to MPI at once; called by all ranks."""
        return MpiChannel(
            MPI.Intracomm(self._communicator.Dup()),
            self.name,
            self.transport,
            polite=self.polite,
            ordered=self.ordered,
            chunk=chunk,
        )

    def _reduce(self, name: str, array: Array, operation: MPI.Op) -> Pending:
        check_reducible(self.name, name, array)
        self.meter.count(name, array.nbytes)
        index = self.meter.begin()
        buffer = self.transport.lend(array, filled=True)
        requests = [self._communicator.Iallreduce(MPI.IN_PLACE, piece, operation) for piece in self._pieces(buffer)]
        return MpiPending(self, (name, None), requests, partial(self.transport.take_back, buffer, array), index)

    def _sum_in_order(self, array: Array) -> Pending:
        check_reducible(self.name, "all_sum", array)
        self.meter.count("all_sum", array.nbytes)
        index = self.meter.begin()
        gathered = np.empty_like(array, shape=(self.size, *array.shape))
        gathered[self.rank] = array
        buffer = self.transport.lend(gathered, filled=True)

        def finish() -> None:
            self.transport.take_back(buffer, gathered)
            array[...] = gathered[0]
            for rank in range(1, self.size):
                np.add(array, gathered[rank], out=array)

        return MpiPending(self, ("all_sum", None), self._gather(buffer), finish, index)

    def _gather(self, buffer: Array) -> list[MPI.Request]:
        """Collect row r of ``buffer`` from rank r; rows too long for one message are broadcast in pieces."""
        if buffer[0].nbytes <= self._chunk:
            return [self._communicator.Iallgather(MPI.IN_PLACE, [buffer, buffer[0].nbytes, MPI.BYTE])]
        return [
            self._communicator.Ibcast(_raw(piece), root)
            for root in range(self.size)
            for piece in self._pieces(buffer[root])
        ]

    def _pieces(self, buffer: Array) -> list[Array]:
        if buffer.nbytes <= self._chunk:
            return [buffer]
        flat, step = buffer.reshape(-1), max(1, self._chunk // buffer.itemsize)
        return [flat[start : start + step] for start in range(0, flat.size, step)]


def open_channel(color: int, key: int, name: str, transport: Transport, polite: bool, ordered: bool) -> Channel:
    """A channel among all ranks of the job that give the same ``color``; called by all of them."""
    everyone = MPI.Intracomm(MPI.COMM_WORLD.Dup())
    channel = MpiChannel(everyone, name, transport, polite=polite, ordered=ordered).split(color, key, name)
    everyone.Free()
    return channel


def open_local(name: str) -> Channel:
    """The channel of the ranks on this machine; called by all ranks."""
    communicator = MPI.Intracomm(MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED))
    return NullChannel(name) if communicator.Get_size() == 1 else MpiChannel(communicator, name, polite=True)


def _ranks_of(communicator: MPI.Intracomm) -> list[int]:
    own, everyone = communicator.Get_group(), MPI.COMM_WORLD.Get_group()
    ranks = own.Translate_ranks(None, everyone)
    own.Free()
    everyone.Free()
    return list(ranks)


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
    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.COMM_WORLD.Abort(code)
    os._exit(code)  # MPICH's Abort may come back before its launcher has killed this rank


def end_together(patience: float, report: str = "") -> None:
    """Finalize MPI once all ranks are here; when they are not after ``patience`` seconds, end the job with ``report``.

    Without an own finalization, a rank that leaves alone would wait in MPI for ranks that wait for its messages.
    """
    if not MPI.Is_initialized() or MPI.Is_finalized():
        return
    deadline = monotonic() + patience
    request, pause = MPI.COMM_WORLD.Ibarrier(), SHORTEST
    while not request.Test():
        if monotonic() > deadline:
            said = f"rank {MPI.COMM_WORLD.Get_rank()} has ended while others have not: the job is ended"
            print("\n".join([said, *filter(None, [report])]), file=sys.__stderr__, flush=True)
            abort(1)
        sleep(pause)
        pause = min(2 * pause, LONGEST)
    MPI.Finalize()


atexit.register(end_together, PATIENCE)


def _raw(piece: Array) -> list[object]:
    """The bytes of a buffer: any dtype travels, also those for which MPI has no name."""
    return [piece, piece.nbytes, MPI.BYTE]


def _nothing() -> None:
    pass
