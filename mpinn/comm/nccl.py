"""Collectives of device arrays by NCCL among the ranks of a machine, and by MPI between machines.

NCCL's work is asked of the device and ordered by events: the host does not wait for it. The meter counts what the
computing of the device waits for it, as the device has timed it. Only sums of ranks on several machines need the host
in between: each rank of a machine, of as many as the smallest machine has, is given the sum of a piece of the array
over its machine; MPI adds the pieces up between machines, all at once, and they are spread within each machine again.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.channel import DONE, Channel, Pending, check_array, check_gather, check_rank, check_reducible
from mpinn.comm.group import IDENTITY, SUMMABLE, Group
from mpinn.comm.groups import Groups, Joined
from mpinn.comm.job import JOB
from mpinn.comm.library import MPI
from mpinn.comm.memory import Event
from mpinn.comm.meter import DeviceMeter
from mpinn.comm.mpi import MpiChannel
from mpinn.comm.ordered import add_rows
from mpinn.comm.transport import Transports

Finish: TypeAlias = Callable[[], None]
"""What is left to do when a collective is complete."""


@dataclass(frozen=True)
class Links:
    """How the ranks of a channel reach each other.

    inside: those of this machine, of which this one is number ``rank``; pieces: as many as the smallest machine has
    ranks; across: the ranks that have the same number on the other machines; None if nobody is on another one.
    """

    inside: Joined
    rank: int
    pieces: int
    across: Channel | None


class NcclChannel(MpiChannel):
    """A channel whose sums of device arrays go by NCCL within a machine; on one machine all collectives of them do.

    All else is MPI's. Its groups are made when the first such array comes, by all ranks at once.
    """

    def __init__(self, communicator: MPI.Intracomm, name: str, transports: Transports, groups: Groups, **options: Any):
        super().__init__(communicator, name, transports, **options)
        self.meter = self._meter = DeviceMeter()
        self.groups = groups
        JOB.joins(groups)
        self._nccl = groups.nccl
        self._linked = False
        self._known: Links | None = None
        self.begun: deque[AcrossMachines] = deque()
        """Sums between machines of which MPI has not got its piece yet, in the order in which they were asked for."""
        self.asked: set[Asked] = set()
        """What NCCL works on, which is not to be freed before, even if whoever has asked forgets it."""

    def _like(self, communicator: MPI.Intracomm, name: str) -> MpiChannel:
        own: dict[str, Any] = {"polite": self.polite, "ordered": self.ordered, "chunk": self._chunk}
        return NcclChannel(communicator, name, self.transports, self.groups, **own)

    def all_sum(self, array: Array) -> Pending:
        """Replace ``array`` by its sum over the ranks, equal bit for bit on all of them."""
        links = self._links(array) if array.dtype.char in SUMMABLE else None
        if links is None or (links.across and self.ordered):
            return super().all_sum(array)
        check_reducible(self.name, "all_sum", array)
        index = self._count("all_sum", array)
        if self.ordered:
            rows = np.empty_like(array, shape=(self.size, *array.shape))
            return self._gather_rows(array, rows, links, index, partial(add_rows, rows, array))
        if links.across:
            return AcrossMachines(self, links, links.across, array, index)
        now = self._nccl.memory.now()
        return self._ask(links, "all_sum", array, index, lambda group: group.all_sum(array, now))

    def all_max(self, array: Array) -> Pending:
        """Replace ``array`` by its elementwise maximum over the ranks."""
        links = self._links(array) if array.dtype.char in SUMMABLE else None
        if links is None or links.across:
            return super().all_max(array)
        check_reducible(self.name, "all_max", array)
        index, now = self._count("all_max", array), self._nccl.memory.now()
        return self._ask(links, "all_max", array, index, lambda group: group.all_max(array, now))

    def all_gather(self, array: Array, into: Array) -> Pending:
        """Collect the ``array`` of every rank r in ``into[r]``; into: (size, *array.shape)."""
        links = self._links(array)
        if links is None or links.across:
            return super().all_gather(array, into)
        check_gather(self.name, array, into, self.size)
        return self._gather_rows(array, into, links, self._count("all_gather", array))

    def broadcast(self, array: Array, root: int) -> Pending:
        """Replace ``array`` by that of rank ``root``."""
        links = self._links(array)
        if links is None or links.across:
            return super().broadcast(array, root)
        check_array(self.name, "broadcast", array)
        check_rank(self.name, "broadcast", root, self.size)
        index, now = self._count("broadcast", array), self._nccl.memory.now(fresh=True)
        return self._ask(links, "broadcast", array, index, lambda group: group.broadcast(array, root, now))

    def _count(self, operation: str, array: Array) -> int:
        self.meter.count(operation, array.nbytes)
        return self.meter.begin()

    def _gather_rows(
        self, array: Array, rows: Array, links: Links, index: int, finish: Finish | None = None
    ) -> "Asked":
        rows[self.rank] = array
        now = self._nccl.memory.now(fresh=True)
        return self._ask(links, "all_gather", rows, index, lambda group: group.all_gather(rows, now), finish)

    def _ask(
        self, links: Links, name: str, array: Array, index: int, work: Callable[[Group], Event],
        finish: Finish | None = None,
    ) -> "Asked":  # fmt: skip
        end = links.inside.ask(f"{self.name}: {name}", array.nbytes, work)
        return Asked(self, end, array, index, finish)

    def follow(self, end: Event, index: int) -> None:
        """Let the computing come after the end of collective ``index``; the meter counts what it waits for it."""
        self._meter.waits(index, self._nccl.follow(end))

    def _links(self, array: Array) -> Links | None:
        """How NCCL carries an array; None where MPI does: one of the host, or where no two ranks share a machine."""
        if not self._nccl.memory.owns(array):
            return None
        if not self._linked:
            self._known, self._linked = self._link(), True
        return self._known

    def _link(self) -> Links | None:
        """Called by all ranks."""
        machines = np.empty(self.size, np.int64)
        self.communicator.Allgather(np.array([self._nccl.machine]), machines)
        sizes = np.unique(machines, return_counts=True)[1]
        if sizes.max() == 1:
            return None
        mates = np.flatnonzero(machines == self._nccl.machine).tolist()
        rank, pieces = mates.index(self.rank), int(sizes.min())
        inside = self.groups.of(tuple(self.ranks[mate] for mate in mates), rank, partial(self._meet, mates))
        if pieces == self.size:
            return Links(inside, rank, pieces, None)
        name = f"{self.name} between machines"
        between = MPI.Intracomm(self.communicator.Split(min(rank, pieces), self.rank))
        return Links(inside, rank, pieces, MpiChannel(between, name, self.transports, polite=self.polite))

    def _meet(self, mates: Sequence[int]) -> bytes:
        """The name of a new group of those ranks, which the first gives; if it cannot, none waits for it."""
        identity, failure = bytearray(IDENTITY), None
        if self.rank == mates[0]:
            try:
                identity[:] = self._nccl.identity()
            except RuntimeError as error:
                failure = error
        everyone = self.communicator.Get_group()
        together = everyone.Incl(mates)
        machine = MPI.Intracomm(self.communicator.Create_group(together))
        machine.Bcast(identity, 0)
        for handle in (machine, together, everyone):
            handle.Free()
        if failure is not None:
            raise failure
        if not any(identity):
            raise RuntimeError(f"rank {self.ranks[mates[0]]} cannot begin")
        return bytes(identity)


class Asked:
    """Work that NCCL has been asked for; the host waits for nothing."""

    __slots__ = ("_array", "_channel", "_end", "_finish", "_index", "_open")

    def __init__(self, channel: NcclChannel, end: Event, array: Array, index: int, finish: Finish | None):
        self._channel, self._end, self._index, self._finish = channel, end, index, finish
        self._array: Array | None = array
        self._open = True
        channel.asked.add(self)

    def test(self) -> bool:
        """Whether the device has done it; if so, the array may be used."""
        if self._open and self._end.done:
            self._channel.groups.nccl.memory.follow(self._end)
            self._complete()
        return not self._open

    def wait(self) -> None:
        """What is asked of the device from now on comes after it."""
        if self._open:
            self._channel.follow(self._end, self._index)
            self._complete()

    def _complete(self) -> None:
        self._open = False
        self._channel.asked.discard(self)
        if self._finish is not None:
            self._finish()
        self._array = self._finish = None


class AcrossMachines:
    """A sum over ranks on several machines.

    `test` moves it along but never to its end: the last step is NCCL's too, and all ranks ask NCCL for everything in
    one order only if that does not depend on how fast messages are. That also MPI's sums begin in one order, each waits
    for those that were asked for before it.
    """

    def __init__(self, channel: NcclChannel, links: Links, across: Channel, array: Array, index: int):
        self._channel, self._links, self._across, self._index = channel, links, across, index
        self._nccl = channel.groups.nccl
        self._size = array.nbytes
        self._pieces = pieces = cut(array.reshape(-1), links.pieces)
        now = self._nccl.memory.now()
        self._collected = self._ask("sum of pieces", lambda group: group.collect(pieces, now))
        self._sum: Pending = DONE
        self._open = True
        channel.begun.append(self)

    def _ask(self, what: str, work: Callable[[Group], Event]) -> Event:
        return self._links.inside.ask(f"{self._channel.name}: {what}", self._size, work)

    def test(self) -> bool:
        """Whether `wait` has been called; moves it along."""
        queue = self._channel.begun
        while queue and queue[0]._collected.done:
            queue.popleft()._add()
        self._sum.test()
        return not self._open

    def _add(self) -> None:
        """Let MPI begin to add up the piece of this rank."""
        if self._links.rank < len(self._pieces):
            with self._nccl.as_of(self._collected):
                self._sum = self._across.all_sum(self._pieces[self._links.rank])

    def wait(self) -> None:
        """Block until MPI has added up the piece; what is asked of the device from now on finds the whole sum."""
        if not self._open:
            return
        self._open = False
        start, queue, pieces = perf_counter(), self._channel.begun, self._pieces
        while self in queue:
            queue.popleft()._add()
        self._sum.wait()
        self._channel.meter.waited(self._index, perf_counter() - start)
        now = self._nccl.memory.now(fresh=True)
        self._channel.follow(self._ask("spreading", lambda group: group.spread(pieces, now)), self._index)


def cut(flat: Array, count: int) -> list[Array]:
    """An array of one dimension in ``count`` pieces of nearly the same length."""
    bounds = [flat.size * k // count for k in range(count + 1)]
    return [flat[start:stop] for start, stop in pairwise(bounds)]
