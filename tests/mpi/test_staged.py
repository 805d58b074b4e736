"""Messages through host buffers, in pieces, from and to memory that is as late as that of a device may be."""

from collections.abc import Callable
from math import ceil
from typing import cast

import numpy as np
import pytest
from late import LateMemory

from mpinn.array.device import choose_device
from mpinn.array.typing import Array
from mpinn.comm.channel import Channel
from mpinn.comm.grid import World
from mpinn.comm.memory import HostMemory, Memory
from mpinn.comm.mpi import MpiChannel
from mpinn.comm.transport import Direct, Staged, Transports, same

pytestmark = pytest.mark.mpi

PIECE = 1000
LENGTHS = (0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + PIECE // 2)
"""Bytes, or elements of eight bytes."""
MEMORIES: dict[str, Callable[[], Memory]] = {"host": HostMemory, "late": LateMemory}
DEVICE = choose_device("auto", "plain", 0)
if DEVICE.name:
    MEMORIES["gpu"] = lambda: cast("Memory", DEVICE.memory)
OPS = DEVICE.kernels


def numbers(rank: int, length: int, dtype: str) -> Array:
    """Whole numbers, so that sums are exact in whatever order they are added."""
    return np.random.default_rng([rank, length]).integers(0, 60, length).astype(dtype)


def ring(channel: Channel, own: Array) -> Array:
    into = np.full_like(own, 77)
    arriving = channel.receive(into, (channel.rank - 1) % channel.size)
    channel.send(own, (channel.rank + 1) % channel.size).wait()
    arriving.wait()
    return into


def gather(channel: Channel, own: Array) -> Array:
    into = np.full_like(own, 77, shape=(channel.size, *own.shape))
    channel.all_gather(own, into).wait()
    return into


def broadcast(channel: Channel, own: Array) -> Array:
    channel.broadcast(own, channel.size - 1).wait()
    return own


def add(channel: Channel, own: Array) -> Array:
    channel.all_sum(own).wait()
    return own


def largest(channel: Channel, own: Array) -> Array:
    channel.all_max(own).wait()
    return own


OPERATIONS = {function.__name__: function for function in (ring, gather, broadcast, add, largest)}


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_pieces_bring_what_a_whole_message_brings(
    operation: str, length: int, dtype: str, memory: str, world: World
) -> None:
    if world.size == 1:
        return
    run, own = OPERATIONS[operation], numbers(world.rank, length, dtype)
    whole = world.channel("whole")
    expected = run(whole, own.copy())
    device = MEMORIES[memory]()
    pieces = world.channel("pieces", transports=same(Staged(device, PIECE)))
    array = OPS.on_device(own.copy()) if memory == "gpu" else own.copy()
    if operation != "gather" and isinstance(device, LateMemory):
        array.fill(99)
        device.compute(lambda: np.copyto(array, own))
    found = run(pieces, array)
    if isinstance(device, LateMemory):
        device.finish()
    assert OPS.on_host(found).tobytes() == expected.tobytes()
    assert pieces.meter.counts == whole.meter.counts


@pytest.mark.parametrize("memory", [name for name in MEMORIES if name != "late"])
def test_what_is_asked_of_a_device_before_and_after_a_message_keeps_its_order(memory: str, world: World) -> None:
    """Many rounds without any wait of the host's own: each sends what the one before has just computed."""
    if world.size == 1:
        return
    library = OPS.LIBRARY if memory == "gpu" else np
    channel = world.channel("rounds", transports=same(Staged(MEMORIES[memory](), 1 << 16)))
    own, into = library.full(100_003, float(world.rank)), library.empty(100_003)
    for _ in range(20):
        into.fill(-1)
        arriving = channel.receive(into, (world.rank - 1) % world.size)
        leaving = channel.send(own, (world.rank + 1) % world.size)
        arriving.wait()
        leaving.wait()
        np.add(into, 1, out=own)
        channel.all_sum(own).wait()
        np.subtract(into, own, out=own)
        np.multiply(own, 0, out=own)
        np.add(own, into, out=own)
        np.add(own, 1, out=own)
    assert (OPS.on_host(own) == (world.rank - 20) % world.size + 20).all()


@pytest.mark.parametrize("length", LENGTHS)
def test_ordered_sums_of_pieces_are_those_of_a_loop(length: int, world: World) -> None:
    arrays = [np.random.default_rng(rank).normal(size=length) for rank in range(world.size)]
    expected = arrays[0].copy()
    for array in arrays[1:]:
        expected += array
    channel = world.channel("ordered", transports=same(Staged(piece=PIECE)), ordered=True)
    found = arrays[world.rank].copy()
    channel.all_sum(found).wait()
    assert found.tobytes() == expected.tobytes()


def test_ends_with_other_dtypes_cut_alike(world: World) -> None:
    if world.size == 1:
        return
    channel = world.channel("cut", transports=same(Staged(piece=PIECE + 3)))
    into = np.empty(3504, np.uint8)
    arriving = channel.receive(into, (world.rank - 1) % world.size)
    channel.send(np.arange(438.0) + world.rank, (world.rank + 1) % world.size).wait()
    arriving.wait()
    assert (into.view(np.float64) == np.arange(438.0) + (world.rank - 1) % world.size).all()


def test_a_host_array_at_one_end_is_cut_as_the_device_array_at_the_other(world: World) -> None:
    if world.size == 1:
        return
    memory = LateMemory()
    channel = world.channel("mixed", transports=same(Staged(memory, PIECE)))
    into, own = np.empty(437), np.arange(437.0) + world.rank
    memory.host += [into if world.rank % 2 else own]
    arriving = channel.receive(into, (world.rank - 1) % world.size)
    channel.send(own, (world.rank + 1) % world.size).wait()
    arriving.wait()
    memory.finish()
    assert (into == np.arange(437.0) + (world.rank - 1) % world.size).all()
    assert ("in" in memory.diary, "out" in memory.diary) == ((False, True) if world.rank % 2 else (True, False))


def test_copies_go_beside_messages_and_the_host_waits_once(world: World) -> None:
    """All pieces are on their way out before the host waits for the first; what came in, it never waits for."""
    if world.size == 1:
        return
    memory, own, into = LateMemory(), np.arange(3500.0).astype("uint8"), np.zeros(3500, np.uint8)
    channel = world.channel("pieces", transports=same(Staged(memory, PIECE)))
    leaving = channel.send(own, (world.rank + 1) % world.size)
    assert memory.diary == ["pinned", "out"] * 4 + ["wait for out"]
    memory.diary.clear()
    arriving = channel.receive(into, (world.rank - 1) % world.size)
    assert isinstance(channel, MpiChannel)
    assert [len(pending._requests) for pending in channel.under_way] == [4, 4]
    arriving.wait()
    assert memory.diary == ["pinned"] * 4 + ["in"] * 4 + ["follow"] * 4
    assert not into.any(), "nothing has made the device copy yet"
    memory.finish()
    assert into.tobytes() == own.tobytes()
    leaving.wait()
    assert memory.diary == ["pinned"] * 4 + ["in"] * 4 + ["follow"] * 4


def test_a_piece_is_copied_while_the_next_one_is_on_its_way(world: World) -> None:
    if world.size == 1:
        return
    memory, into = LateMemory(), np.zeros(2 * PIECE, np.uint8)
    channel = world.channel("pieces", transports=same(Staged(memory, PIECE)))
    plain = world.channel("plain")
    to, source = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    arriving = channel.receive(into, source)
    halves = [channel.send(np.full(PIECE, 1, np.uint8), to)]
    while not memory.diary.count("in"):
        assert not arriving.test()
    plain.barrier()  # everybody has one half, and nobody has sent the other one
    assert memory.diary.count("in") == 1
    halves.append(channel.send(np.full(PIECE, 2, np.uint8), to))
    for pending in (arriving, *halves):
        pending.wait()
    memory.finish()
    assert into.tolist() == [1] * PIECE + [2] * PIECE


@pytest.mark.parametrize("length", [10, 3 * PIECE])
def test_each_kind_of_message_has_its_transport(length: int, world: World) -> None:
    if world.size == 1:
        return
    memory = LateMemory()
    channel = world.channel("kinds", transports=Transports(Direct(memory), Staged(memory, PIECE)))
    own = numbers(world.rank, length, "uint8")
    for function in (ring, broadcast, gather):
        function(channel, own.copy())
        assert "pinned" not in memory.diary
    for function in (add, largest):
        memory.diary.clear()
        function(channel, own.copy())
        pieces = ceil(length / PIECE)
        assert memory.diary.count("out") == memory.diary.count("in") == pieces
    other = world.channel("kinds", transports=Transports(Staged(memory, PIECE), Direct(memory)))
    for function in (add, largest):
        memory.diary.clear()
        function(other, own.copy())
        assert not {"out", "in"} & set(memory.diary)
    for function in (ring, broadcast, gather):
        memory.diary.clear()
        function(other, own.copy())
        assert {"out", "in"} & set(memory.diary)


def test_ranks_that_send_long_messages_to_each_other_do_not_wait_for_ever(world: World) -> None:
    """A send is under way in all its pieces when it returns, whatever its rank does then."""
    if world.size == 1:
        return
    channel = world.channel("ring", transports=same(Staged(piece=PIECE)))
    own, into = np.full(200_000, float(world.rank)), np.empty(200_000)
    if world.rank == 0:
        leaving = channel.send(own, 1)
        channel.receive(into, world.size - 1).wait()
        leaving.wait()
    else:
        channel.receive(into, world.rank - 1).wait()
        channel.send(own, (world.rank + 1) % world.size).wait()
    assert (into == (world.rank - 1) % world.size).all()
