"""Every operation of a channel on all ranks of the job, with both transports."""

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel, MessageError
from mpinn.comm.grid import Grid, World
from mpinn.comm.meter import split_time
from mpinn.comm.mpi import MpiChannel
from mpinn.comm.transport import Direct, Staged, Transport, same
from mpinn.config import InputError

pytestmark = pytest.mark.mpi

DTYPES = ("float32", "float64", "uint8")
SHAPES = ((), (1,), (7, 3), (5000,), (0,))


@pytest.fixture(params=[Direct, Staged])
def channel(world: World, request: pytest.FixtureRequest) -> Iterator[Channel]:
    transport: Transport = request.param()
    opened = world.channel("tested", transports=same(transport))
    yield opened
    if isinstance(opened, MpiChannel):
        assert not opened.under_way


def values(rank: int, shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    """The array of ``rank``, which every rank can compute."""
    rng = np.random.default_rng([seed, rank])
    return np.asarray(rng.integers(0, 60, shape) if dtype == "uint8" else rng.normal(size=shape)).astype(dtype)


def neighbours(channel: Channel) -> tuple[int, int]:
    return (channel.rank - 1) % channel.size, (channel.rank + 1) % channel.size


@pytest.mark.parametrize("dtype", [*DTYPES, "float16", "bool"])
@pytest.mark.parametrize("shape", SHAPES)
def test_ring_moves_every_bit(channel: Channel, shape: tuple[int, ...], dtype: str) -> None:
    if channel.size == 1:
        with pytest.raises(MessageError, match="alone"):
            channel.send(np.zeros(1), 0)
        return
    left, right = neighbours(channel)
    into = np.empty(shape, dtype)
    arriving = channel.receive(into, left)
    leaving = channel.send(values(channel.rank, shape, dtype), right)
    arriving.wait()
    leaving.wait()
    assert into.tobytes() == values(left, shape, dtype).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sum_is_right_and_equal_everywhere(channel: Channel, shape: tuple[int, ...], dtype: str) -> None:
    array = values(channel.rank, shape, dtype)
    channel.all_sum(array).wait()
    expected = np.sum([values(r, shape, dtype) for r in range(channel.size)], axis=0, dtype=dtype)
    np.testing.assert_allclose(array, expected, rtol=0, atol=0 if dtype == "uint8" else 8 * np.finfo(dtype).eps)
    everywhere = np.empty((channel.size, *shape), dtype)
    channel.all_gather(array, everywhere).wait()
    assert all(row.tobytes() == array.tobytes() for row in everywhere)


@pytest.mark.parametrize("dtype", DTYPES)
def test_maximum(channel: Channel, dtype: str) -> None:
    array = values(channel.rank, (100,), dtype)
    channel.all_max(array).wait()
    np.testing.assert_array_equal(array, np.max([values(r, (100,), dtype) for r in range(channel.size)], axis=0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gather(channel: Channel, shape: tuple[int, ...], dtype: str) -> None:
    into = np.full((channel.size, *shape), 77, dtype)
    channel.all_gather(values(channel.rank, shape, dtype), into).wait()
    np.testing.assert_array_equal(into, [values(r, shape, dtype) for r in range(channel.size)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_broadcast_from_each_root(channel: Channel, dtype: str) -> None:
    for root in range(channel.size):
        array = values(channel.rank, (33,), dtype, seed=root)
        channel.broadcast(array, root).wait()
        np.testing.assert_array_equal(array, values(root, (33,), dtype, seed=root))


def inner(channel: Channel, a: Array, b: Array) -> float:
    """The inner product of two vectors of which every rank holds a piece."""
    total = np.array([np.vdot(a, b)])
    channel.all_sum(total).wait()
    return float(total[0])


def test_adjoint_of_broadcast_is_sum_to_the_root(channel: Channel) -> None:
    # F: a vector on rank 0 -> a copy on every rank; F*: copies on all ranks -> their sum on rank 0.
    for root in range(channel.size):
        x = values(channel.rank, (50,), "float64") * (channel.rank == root)
        y = values(channel.rank, (50,), "float64", seed=1)
        forward = x.copy()
        channel.broadcast(forward, root).wait()
        backward = y.copy()
        channel.all_sum(backward).wait()
        backward *= channel.rank == root
        assert inner(channel, forward, y) == pytest.approx(inner(channel, x, backward), rel=1e-13)


def test_sum_is_its_own_adjoint(channel: Channel) -> None:
    x, y = (values(channel.rank, (50,), "float64", seed) for seed in (2, 3))
    fx, fy = x.copy(), y.copy()
    channel.all_sum(fx).wait()
    channel.all_sum(fy).wait()
    assert inner(channel, fx, y) == pytest.approx(inner(channel, x, fy), rel=1e-13)


def test_adjoint_of_gather_sums_and_takes_the_own_row(channel: Channel) -> None:
    x = values(channel.rank, (20,), "float64", 4)
    y = values(channel.rank, (channel.size, 20), "float64", 5)
    fx = np.empty_like(y)
    channel.all_gather(x, fx).wait()
    fy = y.copy()
    channel.all_sum(fy).wait()
    assert inner(channel, fx, y) == pytest.approx(inner(channel, x, fy[channel.rank]), rel=1e-13)


def test_adjoint_of_a_shift_is_the_shift_back(channel: Channel) -> None:
    x, y = (values(channel.rank, (20,), "float64", seed) for seed in (6, 7))
    left, right = neighbours(channel)
    fx, fy = x.copy(), y.copy()
    if channel.size > 1:
        for source, to, vector, into in ((left, right, x, fx), (right, left, y, fy)):
            arriving = channel.receive(into, source)
            channel.send(vector, to).wait()
            arriving.wait()
    assert inner(channel, fx, y) == pytest.approx(inner(channel, x, fy), rel=1e-13)


@pytest.mark.parametrize("transport", [Direct, Staged])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ordered_sum_is_that_of_a_loop(world: World, transport: type[Transport], dtype: str) -> None:
    channel = world.channel("ordered", transports=same(transport()), ordered=True)
    array = values(world.rank, (1001,), dtype)
    channel.all_sum(array).wait()
    expected = values(0, (1001,), dtype)
    for rank in range(1, world.size):
        expected += values(rank, (1001,), dtype)
    assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize("transport", [Direct, partial(Staged, piece=64)])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 50])
def test_ordered_sums_end_in_any_order(world: World, transport: Callable[[], Transport], size: int) -> None:
    """Whoever comes first to the second half of which sum; each rank in an order of its own."""
    channel = world.channel("ordered", transports=same(transport()), ordered=True)
    arrays = [values(world.rank, (size,), "float64", seed) for seed in range(7)]
    sums = [channel.all_sum(array) for array in arrays]
    open_ = [*np.random.default_rng(world.rank).permutation(7)]
    while open_:
        open_ = [number for number in open_ if not sums[number].test()]
    for seed, (pending, array) in enumerate(zip(sums, arrays, strict=True)):
        pending.wait()
        expected = values(0, (size,), "float64", seed)
        for rank in range(1, world.size):
            expected += values(rank, (size,), "float64", seed)
        assert array.tobytes() == expected.tobytes()


def test_an_ordered_sum_takes_no_message_of_others(world: World) -> None:
    """Nor do its own meet a receiver that has waited for longer with the same tag."""
    channel = world.channel("ordered", ordered=True)
    if world.size == 1:
        return
    into, array = np.zeros(1), np.full(world.size, 1.0)
    coming = channel.receive(into, (world.rank - 1) % world.size, 2)
    channel.all_sum(array).wait()
    channel.send(np.array([7.0]), (world.rank + 1) % world.size, 2).wait()
    coming.wait()
    assert (into == 7).all()
    assert (array == world.size).all()


def test_an_ordered_sum_takes_room_for_one_array_more(world: World) -> None:
    channel = world.channel("ordered", ordered=True)
    array = values(world.rank, (400_000,), "float64")
    channel.all_sum(array).wait()
    tracemalloc.start()
    try:
        channel.all_sum(array).wait()
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 1.1 * array.nbytes


def test_many_messages_in_flight_keep_their_order_and_tags(channel: Channel) -> None:
    if channel.size == 1:
        channel.barrier()
        return
    left, right = neighbours(channel)
    into = [np.empty(64) for _ in range(20)]
    arriving = [channel.receive(array, left, tag=i % 2) for i, array in enumerate(into)]
    leaving = [channel.send(np.full(64, 100.0 * channel.rank + i), right, tag=i % 2) for i in reversed(range(20))]
    for pending in [*reversed(arriving), *leaving]:
        pending.wait()
    # Of each tag the first receive matches the first send, and sends went out from the last to the first.
    sent = {tag: [i for i in reversed(range(20)) if i % 2 == tag] for tag in (0, 1)}
    expected = [100 * left + sent[i % 2][i // 2] for i in range(20)]
    assert [array[0] for array in into] == expected


def test_forgotten_messages_keep_their_memory(channel: Channel) -> None:
    array = values(channel.rank, (200_000,), "float64")
    pending = channel.all_sum(array)
    expected = np.sum([values(r, (200_000,), "float64") for r in range(channel.size)], axis=0)
    if channel.size > 1:
        left, right = neighbours(channel)
        into = np.empty(200_000)
        channel.send(np.full(200_000, float(channel.rank)), right)  # neither the array nor the Pending is kept
        arriving = channel.receive(into, left)
        gc.collect()
        garbage = [np.full(200_000, np.nan) for _ in range(5)]
        arriving.wait()
        assert (into == left).all()
        assert len(garbage) == 5
    pending.wait()
    np.testing.assert_allclose(array, expected, rtol=1e-13, atol=1e-13)
    channel.barrier()
    while isinstance(channel, MpiChannel) and channel.under_way:
        for forgotten in list(channel.under_way):
            forgotten.test()


def test_test_completes_without_waiting(channel: Channel) -> None:
    array = values(channel.rank, (10,), "float64")
    pending = channel.all_sum(array)
    while not pending.test():
        pass
    assert pending.test()
    pending.wait()
    np.testing.assert_allclose(array, np.sum([values(r, (10,), "float64") for r in range(channel.size)], axis=0))
    assert channel.meter.drain()[0].sum() == 0


def test_polite_and_busy_waits_agree(world: World) -> None:
    for polite in (False, True):
        channel = world.open_channel(0, world.rank, "waits", same(Direct()), polite, False)
        array = np.array([float(world.rank)])
        channel.all_sum(array).wait()
        assert array[0] == world.size * (world.size - 1) / 2


@pytest.mark.parametrize("transport", [Direct, Staged])
@pytest.mark.parametrize("ordered", [False, True])
def test_messages_longer_than_a_chunk(world: World, transport: type[Transport], ordered: bool) -> None:
    whole = world.channel("whole", transports=same(transport()), ordered=ordered)
    if not isinstance(whole, MpiChannel):
        assert world.size == 1
        return
    channel = whole.with_chunk(1000)  # bytes: 125 of 1003 elements at once
    left, right = neighbours(channel)
    array, into = values(world.rank, (17, 59), "float64"), np.empty((17, 59))
    arriving = channel.receive(into, left)
    channel.send(array, right).wait()
    arriving.wait()
    np.testing.assert_array_equal(into, values(left, (17, 59), "float64"))
    gathered = np.empty((world.size, 17, 59))
    channel.all_gather(array, gathered).wait()
    np.testing.assert_array_equal(gathered, [values(r, (17, 59), "float64") for r in range(world.size)])
    copied = array.copy()
    channel.broadcast(copied, 1).wait()
    np.testing.assert_array_equal(copied, values(1, (17, 59), "float64"))
    summed = array.copy()
    channel.all_sum(summed).wait()
    np.testing.assert_allclose(summed, gathered.sum(axis=0), rtol=1e-13, atol=1e-13)
    assert channel.meter.counts["send"] == (1, array.nbytes)


def test_meter_counts_exactly(channel: Channel) -> None:
    array, gathered = np.zeros(10, np.float32), np.zeros((channel.size, 10), np.float32)
    for _ in range(3):
        channel.all_sum(array).wait()
    channel.all_max(array).wait()
    channel.all_gather(array, gathered).wait()
    channel.broadcast(array, 0).wait()
    channel.barrier()
    expected = {"all_sum": (3, 120), "all_max": (1, 40), "all_gather": (1, 40), "broadcast": (1, 40), "barrier": (1, 0)}
    if channel.size > 1:
        left, right = neighbours(channel)
        arriving = channel.receive(array, left)
        channel.send(np.ones(10, np.float32), right).wait()
        arriving.wait()
        expected |= {"send": (1, 40), "receive": (1, 40)}
    assert channel.meter.counts == (expected if channel.size > 1 else {})
    collectives, messages = channel.meter.drain()
    assert collectives.size == (7 if channel.size > 1 else 0)
    assert messages.size == (2 if channel.size > 1 else 0)
    assert channel.meter.drain()[0].size == 0


def test_other_channels_are_not_counted(world: World, channel: Channel) -> None:
    world.control.barrier()
    world.channel("another").all_sum(np.zeros(1)).wait()
    assert channel.meter.counts == {}


def test_waiting_is_told_from_communicating(world: World) -> None:
    channel = world.channel("late")
    if world.size == 1:
        return
    if world.rank == 0:
        time.sleep(0.2)
    channel.all_sum(np.zeros(1)).wait()
    own, _ = channel.meter.drain()
    everywhere = np.empty((world.size, 1))
    world.control.all_gather(own, everywhere).wait()
    communicating, waiting = split_time(own, everywhere)
    assert communicating + waiting == pytest.approx(float(own.sum()))
    assert (waiting > 0.1) == (world.rank != 0)


def test_split(world: World) -> None:
    channel = world.channel("whole").split(world.rank % 2, -world.rank, "parity")
    members = [r for r in reversed(range(world.size)) if r % 2 == world.rank % 2]
    assert (channel.size, members[channel.rank], channel.name) == (len(members), world.rank, "parity")
    array = np.array([10.0**world.rank])
    channel.all_sum(array).wait()
    assert array[0] == sum(10.0**r for r in members)


def test_grid_channels_run_along_their_axis(world: World) -> None:
    stages = 2 if world.size % 2 == 0 else world.size
    grid = Grid(world, stages=stages)
    assert (grid.replica, grid.stage, grid.shard) == (world.rank // stages, world.rank % stages, 0)
    assert (grid.replicas.rank, grid.stages.rank, grid.shards.rank) == (grid.replica, grid.stage, grid.shard)
    ranks = np.full(grid.stages.size, -1)
    grid.stages.all_gather(np.array(world.rank), ranks).wait()
    assert ranks.tolist() == [grid.replica * stages + k for k in range(stages)]
    grid.control.barrier()
    with pytest.raises(InputError, match=r"ranks, not"):
        Grid(world, replicas=world.size + 1)


REFUSED: dict[str, Callable[[Channel], object]] = {
    "strided": lambda channel: channel.all_sum(np.zeros((4, 4))[:, ::2]),
    "objects": lambda channel: channel.broadcast(np.array([None]), 0),
    "rank": lambda channel: channel.broadcast(np.zeros(1), channel.size),
    "gather": lambda channel: channel.all_gather(np.zeros(3), np.zeros((channel.size, 4))),
    "dtype": lambda channel: channel.all_max(np.zeros(3, np.float16)),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_arrays_that_do_not_fit_are_refused(channel: Channel, wrong: str) -> None:
    with pytest.raises(MessageError, match="tested: "):
        REFUSED[wrong](channel)


@pytest.mark.parametrize("length", [9, 11])
def test_a_message_of_another_length_is_an_error(world: World, length: int) -> None:
    channel = world.channel("lengths")
    if channel.size == 1:
        return
    if channel.rank == 0:
        channel.send(np.zeros(length), 1).wait()
    if channel.rank == 1:
        with pytest.raises(MessageError, match=r"receive from rank 0: (72 bytes came.* 80|more bytes)"):
            channel.receive(np.zeros(10), 0).wait()


def test_verdict_of_rank_0_is_everywhere(world: World) -> None:
    assert world.verdict(lambda: b"answer") == b"answer"
    assert world.verdict(bytes) == b""

    def refuse() -> bytes:
        assert world.rank == 0
        raise InputError("data.path", "is not: a file")

    with pytest.raises(InputError, match=r"^data\.path: is not: a file$") as caught:
        world.verdict(refuse)
    assert caught.value.path == "data.path"
    with pytest.raises(InputError, match=r"^/no/such/file: No such file") as caught:
        world.verdict(Path("/no/such/file").read_bytes)
    assert caught.value.path == "/no/such/file"


def test_texts_of_all_ranks(world: World) -> None:
    assert world.gather_text("é" * world.rank) == ["é" * r for r in range(world.size)]
