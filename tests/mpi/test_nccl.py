"""Channels whose collectives within a machine are NCCL's, on machines that are told apart by number alone."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from test_staged import LENGTHS, OPERATIONS, OPS, PIECE, numbers

from mpinn.array.device import choose_device, count_devices, open_nccl
from mpinn.array.typing import Array
from mpinn.comm.channel import Channel, MessageError
from mpinn.comm.grid import World
from mpinn.comm.group import IDENTITY
from mpinn.comm.groups import Groups
from mpinn.comm.memory import PAST, Event, HostMemory
from mpinn.comm.mpi import MPI
from mpinn.comm.nccl import NcclChannel, cut
from mpinn.comm.transport import Direct, Staged, same

pytestmark = pytest.mark.mpi

MACHINES: dict[str, Callable[[int], int]] = {
    "one machine": lambda rank: 0,
    "two machines": lambda rank: rank % 2,
    "one rank elsewhere": lambda rank: int(rank == 1),
    "each alone": lambda rank: rank,
}


class Sooner:
    """An event that has come, which is seen at the second look or the third, on some ranks earlier than on others."""

    def __init__(self, looks: int):
        self._looks = looks

    @property
    def done(self) -> bool:
        self._looks -= 1
        return self._looks < 0

    def synchronize(self) -> None:
        """It has come."""


@dataclass(frozen=True)
class HostGroup:
    """What NCCL does, by messages between hosts; each is complete when it is asked for, so all must ask alike."""

    channel: Channel
    said: list[str]

    def all_sum(self, array: Array, after: Event) -> Event:
        return self._note("all_sum", lambda: self.channel.all_sum(array))

    def all_max(self, array: Array, after: Event) -> Event:
        return self._note("all_max", lambda: self.channel.all_max(array))

    def all_gather(self, into: Array, after: Event) -> Event:
        return self._note("all_gather", lambda: self.channel.all_gather(into[self.channel.rank].copy(), into))

    def broadcast(self, array: Array, root: int, after: Event) -> Event:
        return self._note("broadcast", lambda: self.channel.broadcast(array, root))

    def collect(self, pieces: Sequence[Array], after: Event) -> Event:
        for place, piece in enumerate(pieces):
            total = piece.copy()
            self._note("collect", lambda total=total: self.channel.all_sum(total))
            piece[...] = total if place == self.channel.rank else 99
        return Sooner((len(self.said) + self.channel.rank) % 3)

    def spread(self, pieces: Sequence[Array], after: Event) -> Event:
        for root, piece in enumerate(pieces):
            self._note("spread", lambda root=root, piece=piece: self.channel.broadcast(piece, root))
        return PAST

    def failure(self) -> str:
        return ""

    def close(self) -> None:
        self.said.append("close")

    def abort(self) -> None:
        self.said.append("abort")

    def _note(self, name: str, begin: Callable[[], Any]) -> Event:
        self.said.append(name)
        begin().wait()
        return PAST


class HostWait:
    """A wait of a device for one second, of which the host hears when it is read."""

    def __init__(self, read: list[float]):
        self._read = read

    @property
    def done(self) -> bool:
        return False

    def seconds(self) -> float:
        self._read.append(1.0)
        return 1.0


class HostNccl:
    """NCCL of ranks whose devices are the host. Groups are made by all ranks of the job at once."""

    def __init__(self, world: World, machine: int):
        self.machine, self.memory, self.world = machine, HostMemory(), world
        self.said: list[str] = []
        self.waits: list[float] = []
        self.identities: list[bytes] = []

    def identity(self) -> bytes:
        return (self.world.rank + 1).to_bytes(IDENTITY, "little")

    def group(self, identity: bytes, rank: int, size: int) -> HostGroup:
        self.identities.append(identity)
        inside = self.world.channel("inside", color=int.from_bytes(identity, "little"))
        assert (inside.rank, inside.size) == (rank, size)
        return HostGroup(inside, self.said)

    def follow(self, event: Event) -> "HostWait":
        return HostWait(self.waits)

    def here(self) -> nullcontext[None]:
        return nullcontext()

    def as_of(self, event: Event) -> nullcontext[None]:
        return nullcontext()


KINDS = ("host", "gpu") if count_devices()[0] >= MPI.COMM_WORLD.size else ("host",)
"""NCCL wants a GPU for each rank."""


def opened(world: World, kind: str, machines: str, **options: Any) -> tuple[Channel, Any]:
    """A channel among all ranks, and NCCL on its machines."""
    machine = MACHINES[machines](world.rank)
    if kind == "host":
        nccl: Any = HostNccl(world, machine)
        return world.channel("nccl", transports=replace(same(Direct()), nccl=Groups(nccl)), **options), nccl
    # a rank has the GPU of its number
    device = choose_device("gpu", "plain", world.rank)
    nccl, _ = open_nccl(device, machine)
    transports = replace(same(Staged(device.memory, PIECE)), nccl=Groups(nccl))
    return world.channel("nccl", transports=transports, **options), nccl


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("machines", MACHINES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_nccl_brings_what_mpi_brings(operation: str, machines: str, kind: str, world: World) -> None:
    if world.size == 1:
        return
    run, plain, (channel, _) = OPERATIONS[operation], world.channel("plain"), opened(world, kind, machines)
    assert isinstance(channel, NcclChannel)
    for dtype, length in product(("uint8", "float64"), LENGTHS):
        own = numbers(world.rank, length, dtype)
        expected = run(plain, own.copy())
        found = run(channel, OPS.on_device(own.copy()) if kind == "gpu" else own.copy())
        assert OPS.on_host(found).tobytes() == expected.tobytes(), (dtype, length)
    assert channel.meter.counts == plain.meter.counts
    assert channel.meter.drain(last=True)[0].size == plain.meter.drain()[0].size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("machines", MACHINES)
def test_ordered_sums_are_those_of_a_loop(machines: str, kind: str, world: World) -> None:
    if world.size == 1:
        return
    arrays = [np.random.default_rng(rank).normal(size=1001) for rank in range(world.size)]
    expected = arrays[0].copy()
    for array in arrays[1:]:
        expected += array
    channel, _ = opened(world, kind, machines, ordered=True)
    found = OPS.on_device(arrays[world.rank]) if kind == "gpu" else arrays[world.rank].copy()
    channel.all_sum(found).wait()
    assert OPS.on_host(found).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("machines", MACHINES)
def test_sums_in_flight_are_moved_along_in_any_order(machines: str, kind: str, world: World) -> None:
    """Each rank looks at its messages when it likes; MPI and NCCL are asked for the same things in the same order."""
    if world.size == 1:
        return
    channel, nccl = opened(world, kind, machines)
    rng = np.random.default_rng(world.rank)
    for turn in range(5):
        arrays = [np.full(3000 + k, float(world.rank + k + turn)) for k in range(4)]
        if kind == "gpu":
            arrays = [OPS.on_device(array) for array in arrays]
        pending = []
        for array in arrays:
            pending.append(channel.all_sum(array))
            # the stand-in for a device would wait here for ranks that look at theirs later
            for place in rng.permutation(len(pending))[: rng.integers(5)] if kind == "host" else ():
                pending[place].test()
        # the last one first: those before begin before it
        pending[-1].wait()
        pending[-1].wait()
        for one in pending:
            one.wait()
            assert one.test()
        assert isinstance(channel, NcclChannel)
        assert not channel.begun
        for k, array in enumerate(arrays):
            total = sum(rank + k + turn for rank in range(world.size))
            assert (OPS.on_host(array) == total).all()
    if kind == "host":
        told = world.gather_text(" ".join(nccl.said))
        mates = [told[r] for r in range(world.size) if MACHINES[machines](r) == nccl.machine]
        assert set(mates) == {told[world.rank]}
        everybody_alone = len(set(map(MACHINES[machines], range(world.size)))) == world.size
        assert (told[world.rank] == "") == everybody_alone


@pytest.mark.parametrize("machines", MACHINES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_device_keeps_the_order_of_what_it_is_asked_for(kind: str, machines: str, world: World) -> None:
    """Many rounds without any wait of the host's own: each adds up what the one before has just computed."""
    if world.size == 1:
        return
    channel, nccl = opened(world, kind, machines)
    library = OPS.LIBRARY if kind == "gpu" else np
    own, busy = library.full(10_007, float(world.rank)), library.zeros(100_000)
    rows = library.empty((world.size, 10_007))
    for _ in range(10):
        own += world.rank
        channel.all_sum(own).wait()
        own -= world.size
        rows.fill(-1)
        now = nccl.memory.now()
        busy += 1
        with nccl.as_of(now):
            # its own row is copied only now
            gathered = channel.all_gather(own, rows)
        gathered.wait()
        np.divide(rows[0], world.size, out=own)
        channel.broadcast(own, world.size - 1).wait()
    total, ranks = float(world.rank), sum(range(world.size))
    for step in range(10):
        before = ranks if step == 0 else world.size * total
        total = (before + ranks - world.size) / world.size
    np.testing.assert_allclose(OPS.on_host(own) if kind == "gpu" else own, total, rtol=1e-12)


def test_only_sums_between_machines_need_the_host_and_each_rank_has_a_piece(world: World) -> None:
    """On two machines MPI has the pieces alone, of arrays of the device alone."""
    if world.size < 4:
        return
    channel, nccl = opened(world, "host", "two machines")
    channel.all_sum(np.ones(101)).wait()
    assert isinstance(channel, NcclChannel)
    links = channel._known
    assert links is not None
    assert links.across is not None
    place = world.rank // 2
    assert links.across.meter.counts == {"all_sum": (1, 8 * cut(np.ones(101), 2)[place].size)}
    assert nccl.said == ["collect"] * 2 + ["spread"] * 2
    assert nccl.identities == [(world.rank % 2 + 1).to_bytes(IDENTITY, "little")]
    assert [*channel.groups._groups] == [(world.rank % 2, world.rank % 2 + 2)]
    again = world.channel("again", transports=channel.transports)
    again.all_sum(np.ones(1)).wait()
    assert len(nccl.identities) == 1, "the same ranks have one group"
    said = len(nccl.said)
    channel.all_max(np.ones(3)).wait()
    assert len(nccl.said) == said


def test_what_is_not_on_the_device_goes_by_mpi(world: World) -> None:
    if world.size == 1:
        return
    channel, nccl = opened(world, "host", "one machine")
    nccl.memory = type("Elsewhere", (HostMemory,), {"owns": lambda self, array: False})()
    array = np.full(5, 1.0)
    channel.all_sum(array).wait()
    assert (array == world.size).all()
    assert not nccl.said


def test_parts_of_a_channel_have_groups_of_their_own(world: World) -> None:
    if world.size < 4:
        return
    channel, nccl = opened(world, "host", "one machine")
    half = channel.split(world.rank // 2, world.rank, "half")
    array = np.full(5, float(world.rank))
    half.all_sum(array).wait()
    assert (array == (1 if world.rank < 2 else 5)).all()
    assert nccl.said == ["all_sum"]


@pytest.mark.parametrize("machines", ["one machine", "two machines"])
def test_what_the_computing_waits_is_in_the_meter_once_it_has_waited(machines: str, world: World) -> None:
    if world.size < 4:
        return
    channel, nccl = opened(world, "host", machines)
    rows = np.empty((world.size, 5))
    pending = [channel.all_sum(np.ones(5)), channel.all_max(np.ones(5)), channel.all_gather(np.ones(5), rows)]
    pending += [channel.broadcast(np.ones(5), 0)]
    for one in reversed(pending):
        one.wait()
    assert channel.meter.drain()[0].size == 0
    assert not nccl.waits, "nobody waits for the device when a line of the log is written"
    seconds = channel.meter.drain()[0]
    by_nccl = [1, 1, 1, 1] if machines == "one machine" else [1, 0, 0, 0]
    np.testing.assert_allclose(seconds, by_nccl, atol=0.5)
    done = channel.all_max(np.ones(5))
    while not done.test():
        pass
    assert channel.meter.drain(last=True)[0].size == 1
    assert len(nccl.waits) == sum(by_nccl), "what is done is not waited for"


def test_the_first_rank_says_when_it_cannot_begin(world: World) -> None:
    if world.size < 2:
        return
    channel, nccl = opened(world, "host", "one machine")

    def fails() -> bytes:
        raise RuntimeError("no network")

    nccl.identity = fails
    with pytest.raises(RuntimeError, match="no network" if world.rank == 0 else "rank 0 cannot begin"):
        channel.all_sum(np.ones(1))


def test_mistakes_are_those_of_every_channel(world: World) -> None:
    if world.size == 1:
        return
    channel, _ = opened(world, "host", "one machine")
    with pytest.raises(MessageError, match="cannot reduce"):
        channel.all_sum(np.zeros(3, np.complex128))
    with pytest.raises(MessageError, match="not contiguous"):
        channel.broadcast(np.zeros((4, 4))[:, 1], 0)
    with pytest.raises(MessageError, match="it needs"):
        channel.all_gather(np.zeros(3), np.zeros((world.size, 4)))


@pytest.mark.parametrize(("length", "count"), [(0, 3), (2, 3), (10, 3), (9, 3), (7, 1)])
def test_pieces_are_the_array_in_its_order(length: int, count: int, world: World) -> None:
    flat = np.arange(length)
    pieces = cut(flat, count)
    assert len(pieces) == count
    assert np.concatenate(pieces).tolist() == flat.tolist()
    assert max(piece.size for piece in pieces) - min(piece.size for piece in pieces) <= 1
