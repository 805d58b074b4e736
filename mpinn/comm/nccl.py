"""Collectives of device arrays by NCCL among the ranks of a machine, and by MPI between machines.

NCCL's work is asked of the device and ordered by events: the host does not wait for it, and so no meter counts its time
as waiting. Only sums of ranks on several machines need the host in between: each rank of a machine, of as many as the
smallest machine has, is given the sum of a piece of the array over its machine; MPI adds the pieces up between
machines, all at once, and they are spread within each machine again.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.channel import DONE, Channel, Pending, check_array, check_gather, check_rank, check_reducible
from mpinn.comm.group import IDENTITY, SUMMABLE, Group, Nccl
from mpinn.comm.library import MPI
from mpinn.comm.memory import Event, Memory
from mpinn.comm.mpi import MpiChannel, add_rows
from mpinn.comm.transport import Transports


@dataclass(frozen=True)
class Links:
    """How the ranks of a channel reach each other.

    inside: those of this machine, of which this one is number ``rank``; pieces: as many as the smallest machine has
    ranks; across: the ranks that have the same number on the other machines; None if nobody is on another one.
    """

    inside: Group
    rank: int
    pieces: int
    across: Channel | None


class NcclChannel(MpiChannel):
    """A channel whose sums of device arrays go by NCCL within a machine; on one machine all collectives of them do.

    All else is MPI's. Its groups are made when the first such array comes, by all ranks at once.
    """

    def __init__(self, communicator: MPI.Intracomm, name: str, transports: Transports, nccl: Nccl, **options: Any):
        super().__init__(communicator, name, transports, **options)
        self._nccl = nccl
        self._linked = False
        self._known: Links | None = None
        self.begun: deque[AcrossMachines] = deque()
        """Sums between machines of which MPI has not got its piece yet, in the order in which they were asked for."""
        self.asked: set[Asked] = set()
        """What NCCL works on, which is not to be freed before, even if whoever has asked forgets it."""

    def all_sum(self, array: Array) -> Pending:
        """Replace ``array`` by its sum over the ranks, equal bit for bit on all of them."""
        links = self._links(array) if array.dtype.char in SUMMABLE else None
        if links is None or (links.across and self.ordered):
            return super().all_sum(array)
        check_reducible(self.name, "all_sum", array)
        index = self._count("all_sum", array)
        if self.ordered:
            rows = np.empty_like(array, shape=(self.size, *array.shape))
            return self._gather_rows(array, rows, links, partial(add_rows, rows, array))
        if links.across:
            return AcrossMachines(self, self._nccl, links, links.across, array, index)
        return self._asked(links.inside.all_sum(array, self._nccl.memory.now()), array)

    def all_max(self, array: Array) -> Pending:
        """Replace ``array`` by its elementwise maximum over the ranks."""
        links = self._links(array) if array.dtype.char in SUMMABLE else None
        if links is None or links.across:
            return super().all_max(array)
        check_reducible(self.name, "all_max", array)
        self._count("all_max", array)
        return self._asked(links.inside.all_max(array, self._nccl.memory.now()), array)

    def all_gather(self, array: Array, into: Array) -> Pending:
        """Collect the ``array`` of every rank r in ``into[r]``; into: (size, *array.shape)."""
        links = self._links(array)
        if links is None or links.across:
            return super().all_gather(array, into)
        check_gather(self.name, array, into, self.size)
        self._count("all_gather", array)
        return self._gather_rows(array, into, links)

    def broadcast(self, array: Array, root: int) -> Pending:
        """Replace ``array`` by that of rank ``root``."""
        links = self._links(array)
        if links is None or links.across:
            return super().broadcast(array, root)
        check_array(self.name, "broadcast", array)
        check_rank(self.name, "broadcast", root, self.size)
        self._count("broadcast", array)
        return self._asked(links.inside.broadcast(array, root, self._nccl.memory.now(fresh=True)), array)

    def _count(self, operation: str, array: Array) -> int:
        self.meter.count(operation, array.nbytes)
        return self.meter.begin()

    def _gather_rows(
        self, array: Array, rows: Array, links: Links, finish: Callable[[], None] | None = None
    ) -> Pending:
        rows[self.rank] = array
        return self._asked(links.inside.all_gather(rows, self._nccl.memory.now(fresh=True)), rows, finish)

    def _asked(self, end: Event, array: Array, finish: Callable[[], None] | None = None) -> "Asked":
        return Asked(self, self._nccl.memory, end, array, finish)

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
        inside, rank, pieces = self._group(mates), mates.index(self.rank), int(sizes.min())
        if pieces == self.size:
            return Links(inside, rank, pieces, None)
        name = f"{self.name} between machines"
        between = MPI.Intracomm(self.communicator.Split(min(rank, pieces), self.rank))
        return Links(inside, rank, pieces, MpiChannel(between, name, self.transports, polite=self.polite))

    def _group(self, mates: Sequence[int]) -> Group:
        """The group of those ranks of the channel; one for all channels that have the same. Called by all of them."""
        nccl, key, rank = self._nccl, tuple(self.ranks[mate] for mate in mates), mates.index(self.rank)
        if key not in nccl.groups:
            identity = bytearray(IDENTITY if rank else nccl.identity())
            everyone = self.communicator.Get_group()
            together = everyone.Incl(mates)
            machine = MPI.Intracomm(self.communicator.Create_group(together))
            machine.Bcast(identity, 0)
            for handle in (machine, together, everyone):
                handle.Free()
            nccl.groups[key] = nccl.group(bytes(identity), rank, len(mates))
        group: Group = nccl.groups[key]
        return group


class Asked:
    """Work that NCCL has been asked for; the host waits for nothing."""

    __slots__ = ("_array", "_channel", "_end", "_finish", "_memory", "_open")

    def __init__(
        self, channel: NcclChannel, memory: Memory, end: Event, array: Array, finish: Callable[[], None] | None
    ):
        self._channel, self._memory, self._end, self._finish = channel, memory, end, finish
        self._array: Array | None = array
        self._open = True
        channel.asked.add(self)

    def test(self) -> bool:
        """Whether the device has done it; if so, the array may be used."""
        if self._open and self._end.done:
            self.wait()
        return not self._open

    def wait(self) -> None:
        """What is asked of the device from now on comes after it."""
        if not self._open:
            return
        self._open = False
        self._channel.asked.discard(self)
        self._memory.follow(self._end)
        if self._finish is not None:
            self._finish()
        self._array = self._finish = None


class AcrossMachines:
    """A sum over ranks on several machines.

    `test` moves it along but never to its end: the last step is NCCL's too, and all ranks ask NCCL for everything in
    one order only if that does not depend on how fast messages are. That also MPI's sums begin in one order, each waits
    for those that were asked for before it.
    """

    def __init__(self, channel: NcclChannel, nccl: Nccl, links: Links, across: Channel, array: Array, index: int):
        self._channel, self._nccl, self._links, self._across, self._index = channel, nccl, links, across, index
        self._pieces = cut(array.reshape(-1), links.pieces)
        self._collected = links.inside.collect(self._pieces, nccl.memory.now())
        self._sum: Pending = DONE
        self._open = True
        channel.begun.append(self)

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
        start, queue, memory = perf_counter(), self._channel.begun, self._nccl.memory
        while self in queue:
            queue.popleft()._add()
        self._sum.wait()
        self._channel.meter.waited(self._index, perf_counter() - start)
        memory.follow(self._links.inside.spread(self._pieces, memory.now(fresh=True)))


def cut(flat: Array, count: int) -> list[Array]:
    """An array of one dimension in ``count`` pieces of nearly the same length."""
    bounds = [flat.size * k // count for k in range(count + 1)]
    return [flat[start:stop] for start, stop in pairwise(bounds)]
