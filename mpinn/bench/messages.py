"""Time of the messages between ranks, beside PyTorch's gloo on the same ranks where PyTorch is installed."""

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from mpinn.array.typing import Array
from mpinn.bench.peer import connect_gloo
from mpinn.bench.timing import Operation, Spread, ratio_text, seconds_text
from mpinn.comm.channel import Channel
from mpinn.comm.grid import World

SIZES = {"4 KB": 2**12, "1 MB": 2**20, "10 MB": 10 * 2**20}
ROUNDS = 30
SECONDS = 3.0
"""Least number of measurements of each kind, and about how long they may take."""


@dataclass(frozen=True, slots=True)
class Row:
    """One operation: our seconds, and where PyTorch was there its seconds and theirs over ours, pair by pair."""

    name: str
    ours: Spread
    gloo: Spread | None
    ratio: Spread | None


def run(world: World) -> list[Row]:
    """Measure on all ranks; called by all, and the same rows come back on all. One rank has no rows."""
    if world.size == 1:
        return []
    channel = world.channel("bench")
    with connect_gloo(world) as gloo:
        rows = [
            _compare(
                f"all_sum {name}",
                channel,
                summing(channel, np.zeros(size // 4, np.float32)),
                gloo and _gloo_sum(gloo, size),
            )
            for name, size in SIZES.items()
        ]
        rows.append(_compare("8 bytes there and back", channel, _our_ping(channel), gloo and _gloo_ping(gloo, channel)))
    return rows


def print_rows(rows: list[Row]) -> None:
    """Print a table; called on rank 0 only."""
    if not rows:
        print("one rank: there are no messages to measure (start with mpirun -n 2 or more)")
        return
    print(f"{'median (25-75 %)':24}  {'ours':>28}  {'PyTorch gloo':>28}  {'gloo / ours':>18}")
    for row in rows:
        peer = seconds_text(row.gloo) if row.gloo else "not installed"
        ratio = ratio_text(row.ratio) if row.ratio else ""
        print(f"{row.name:24}  {seconds_text(row.ours):>28}  {peer:>28}  {ratio:>18}")


def _compare(name: str, channel: Channel, ours: Operation, gloo: Operation | None) -> Row:
    """Measure both in turns, so that what else the machine does meets both alike."""
    operations = [ours] if gloo is None else [ours, gloo]
    samples = measure(channel, operations)
    spreads = [Spread.of(column) for column in samples.T]
    if gloo is None:
        return Row(name, spreads[0], None, None)
    return Row(name, spreads[0], spreads[1], Spread.of(samples[:, 1] / samples[:, 0]))


def measure(channel: Channel, operations: list[Operation], seconds: float = SECONDS) -> Array:
    """Seconds of one call, (rounds, len(operations)): those of the slowest rank, the operations taking turns.

    A sample is the mean over enough calls to last about 2 ms, so that the clock and the barrier do not count. All of
    it takes about ``seconds``, or as long as five rounds.
    """
    calls = [_calls_per_sample(channel, operation) for operation in operations]
    samples, start, enough = [], perf_counter(), np.zeros(1)
    while not enough[0]:
        row = np.array([_sample(channel, operation, n) for operation, n in zip(operations, calls, strict=True)])
        channel.all_max(row).wait()
        samples.append(row)
        enough[0] = len(samples) >= ROUNDS or (len(samples) >= 5 and perf_counter() - start > seconds)
        channel.all_max(enough).wait()  # ranks that disagree about the time would part ways
    return np.array(samples)


def _calls_per_sample(channel: Channel, operation: Operation) -> int:
    _sample(channel, operation, 2)  # first calls set up connections and buffers
    seconds = np.array([_sample(channel, operation, 3)])
    channel.all_max(seconds).wait()
    return int(np.clip(2e-3 / seconds[0], 1, 1000))


def _sample(channel: Channel, operation: Operation, calls: int) -> float:
    channel.barrier()
    start = perf_counter()
    for _ in range(calls):
        operation()
    return (perf_counter() - start) / calls


def summing(channel: Channel, array: Array) -> Operation:
    """``array`` becomes its sum over all ranks."""
    return lambda: channel.all_sum(array).wait()


def _our_ping(channel: Channel) -> Operation:
    return ping_pong(channel, np.zeros(8, np.uint8))


def ping_pong(channel: Channel, array: Array) -> Operation:
    """``array`` from rank 0 to rank 1 and back; the other ranks do nothing."""

    def there_and_back() -> None:
        for sender in (0, 1):
            if channel.rank == sender:
                channel.send(array, 1 - sender).wait()
            elif channel.rank == 1 - sender:
                channel.receive(array, sender).wait()

    return there_and_back


def _gloo_sum(gloo: Any, size: int) -> Operation:
    import torch

    tensor = torch.zeros(size // 4)
    return lambda: gloo.all_reduce(tensor)


def _gloo_ping(gloo: Any, channel: Channel) -> Operation:
    import torch

    tensor = torch.zeros(8, dtype=torch.uint8)

    def there_and_back() -> None:
        for sender in (0, 1):
            if channel.rank == sender:
                gloo.send(tensor, 1 - sender)
            elif channel.rank == 1 - sender:
                gloo.recv(tensor, sender)

    return there_and_back
