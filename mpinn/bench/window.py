"""Bandwidth from rank 0 to rank 1 as osu_bw measures it, of a channel and of MPI alone, in turns."""

from dataclasses import dataclass

import numpy as np

from mpinn.array.device import Device
from mpinn.array.typing import Array
from mpinn.bench.messages import measure
from mpinn.bench.timing import Operation, Spread, ratio_text, seconds_text
from mpinn.comm.channel import Channel
from mpinn.comm.findings import findings
from mpinn.comm.grid import World
from mpinn.comm.transport import Direct, same
from mpinn.comm.window import WINDOW, window_of_mpi

SIZES = {"4 KB": 2**12, "64 KB": 2**16, "1 MB": 2**20, "4 MB": 2**22}
SECONDS = 1.5
"""About how long a row may take."""


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of a window of messages of ``size`` bytes; ``ratio``: those of MPI alone over ours, pair by pair."""

    name: str
    size: int
    ours: Spread
    alone: Spread
    ratio: Spread


def run(world: World, device: Device) -> list[Row]:
    """Measure arrays of the host, and of GPUs where a probe has shown that MPI reads them; called by all ranks."""
    if world.size == 1:
        return []
    host = world.channel("window")
    rows = [_row(name, host, np.zeros(size, np.uint8)) for name, size in SIZES.items()]
    found = findings(world, device.name)
    if found is not None and found.messages:
        direct = world.channel("window, direct", transports=same(Direct(device.memory)))
        for name, size in SIZES.items():
            rows.append(_row(f"{name}, GPU, direct", direct, device.kernels.on_device(np.zeros(size, np.uint8))))
    return rows


def print_rows(rows: list[Row]) -> None:
    """Print a table; called on rank 0 only."""
    if not rows:
        return
    print(f"\n{WINDOW} messages on their way at once, as osu_bw has them; the bandwidth is that of the medians")
    print(f"{'median (25-75 %)':20}  {'ours':>24} {'GB/s':>6}  {'MPI alone':>24} {'GB/s':>6}  {'MPI / ours':>18}")
    for row in rows:
        ours, alone = (WINDOW * row.size / spread.median / 1e9 for spread in (row.ours, row.alone))
        print(
            f"{row.name:20}  {seconds_text(row.ours):>24} {ours:6.3g}  {seconds_text(row.alone):>24} {alone:6.3g}  "
            f"{ratio_text(row.ratio):>18}"
        )


def _row(name: str, channel: Channel, array: Array) -> Row:
    samples = measure(channel, [window(channel, array), window_of_mpi(channel, array)], SECONDS)
    ours, alone = (Spread.of(column) for column in samples.T)
    return Row(name, array.nbytes, ours, alone, Spread.of(samples[:, 1] / samples[:, 0]))


def window(channel: Channel, array: Array) -> Operation:
    """`WINDOW` times ``array`` from rank 0 to rank 1, which then answers with four bytes; others do nothing."""
    answer = np.zeros(4, np.uint8)

    def run() -> None:
        if channel.rank == 0:
            leaving = [channel.send(array, 1) for _ in range(WINDOW)]
            for pending in leaving:
                pending.wait()
            channel.receive(answer, 1).wait()
        elif channel.rank == 1:
            arriving = [channel.receive(array, 0) for _ in range(WINDOW)]
            for pending in arriving:
                pending.wait()
            channel.send(answer, 0).wait()

    return run
