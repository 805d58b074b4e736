"""Time of messages between arrays of GPUs, as they are, through host buffers, or by NCCL, and between hosts'."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from mpinn.array.device import Device
from mpinn.array.typing import Array
from mpinn.bench.messages import measure, ping_pong, summing
from mpinn.bench.timing import Operation, Spread, seconds_text
from mpinn.comm.channel import Channel
from mpinn.comm.findings import findings
from mpinn.comm.grid import World
from mpinn.comm.transport import Direct, Staged, same
from mpinn.errors import InputError
from mpinn.run.binding import choose_nccl

SIZES = {"8 B": 8, "4 KB": 2**12, "1 MB": 2**20, "16 MB": 2**24, "64 MB": 2**26}
SECONDS = 1.0
"""About how long a row may take."""
ROUTES = {"host": "host", "direct": "GPU, direct", "staged": "GPU, staged", "nccl": "GPU, NCCL"}

Make: TypeAlias = Callable[[Channel, Array], Operation]


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of an operation by route; None where the library can't, or where no probe has tried. ``size``: bytes."""

    name: str
    size: int
    seconds: Mapping[str, Spread | None]


def run(world: World, device: Device) -> list[Row]:
    """Measure; called by all ranks, and the same rows come back on all. Without a GPU on each, or alone: no rows."""
    gpus = world.gather_text(device.name)
    found = findings(world, device.name)
    if world.size == 1 or found is None or not all(gpus):
        return []
    channels = {
        "host": world.channel("host"),
        "direct": world.channel("direct", transports=same(Direct(device.memory))),
        "staged": world.channel("staged", transports=same(Staged(device.memory))),
    }
    # sums alone are NCCL's
    summed = {**channels, **_by_nccl(world, device)}
    rows = [
        _row(f"{name} there and back", 2 * size, size, channels, device, bool(found.messages), ping_pong)
        for name, size in SIZES.items()
    ]
    rows += [
        _row(f"all_sum {name}", size, size, summed, device, bool(found.sums), summing) for name, size in SIZES.items()
    ]
    return rows


def _by_nccl(world: World, device: Device) -> dict[str, Channel]:
    """The channel whose sums NCCL carries, where it can and two ranks share a machine."""
    try:
        groups, _ = choose_nccl(world, device)
    except InputError:
        return {}
    if not groups.made:
        return {}
    return {"nccl": world.channel("nccl", transports=replace(same(Staged(device.memory)), nccl=groups))}


def print_rows(rows: list[Row]) -> None:
    """Print a table; called on rank 0 only."""
    routes = [route for route in ROUTES if route != "nccl" or any(row.seconds[route] for row in rows)]
    print(f"\n{'median (25-75 %)':20}" + "".join(f"  {ROUTES[route]:>33}" for route in routes))
    for row in rows:
        print(f"{row.name:20}" + "".join(f"  {_text(row, row.seconds[route]):>33}" for route in routes))
    if any(row.seconds["direct"] is None for row in rows):
        print("direct where a probe has shown that it can be: mpirun -n 2 python -m mpinn doctor --probe")


def _text(row: Row, seconds: Spread | None) -> str:
    if seconds is None:
        return "-"
    speed = f", {row.size / seconds.median / 1e9:.3g} GB/s" if row.size >= 2**20 else ""
    return seconds_text(seconds) + speed


def _row(
    name: str, moved: int, size: int, channels: Mapping[str, Channel], device: Device, direct: bool, make: Make
) -> Row:
    """All routes in turns."""
    operations: dict[str, Operation] = {}
    for route in ROUTES:
        if route not in channels or (route == "direct" and not direct):
            continue
        array: Array = np.zeros(size // 4, np.float32)
        operations[route] = make(channels[route], array if route == "host" else device.kernels.on_device(array))
        if route != "host":
            operations[route] = _whole(operations[route], device)
    samples = measure(channels["host"], list(operations.values()), SECONDS)
    spreads = dict(zip(operations, map(Spread.of, samples.T), strict=True))
    return Row(name, moved, {route: spreads.get(route) for route in ROUTES})


def _whole(operation: Operation, device: Device) -> Operation:
    """An operation ends when the device has what came."""

    def whole() -> None:
        operation()
        device.kernels.synchronize()

    return whole
