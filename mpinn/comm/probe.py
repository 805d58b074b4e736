"""A trial of whether MPI reads and writes the memory of a device, in a job of its own, since it may crash.

What is known is saved before each step as if the step failed, since nobody comes back from a segmentation fault.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from time import monotonic, perf_counter, sleep
from typing import Any, TypeAlias

import numpy as np

from mpinn.array.device import Device
from mpinn.array.typing import Array
from mpinn.comm.channel import Channel, Pending
from mpinn.comm.findings import Findings, keys, save_findings
from mpinn.comm.grid import World
from mpinn.comm.transport import Direct, same
from mpinn.errors import FatalError, InputError

SIZES = {"8 B": 2, "4 KB": 2**10, "1 MB": 2**18 + 1, "16 MB": 2**22 + 3}
"""Elements of float32: libraries take other ways for longer messages."""
TURNS = 2
SCRATCH = 2**25
"""Elements with which the device is kept busy: each pass over them takes longer than to ask for it."""
BUSY = 2e-3
"""Seconds for which the device is behind when a message is asked for."""
PATIENCE = 60.0
"""Seconds after which an operation does not come to an end any more."""

Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Scene:
    """What an operation is tried with. ``library``: of the arrays; ``busy`` keeps the device behind."""

    channel: Channel
    library: Any
    busy: Callable[[], None]

    def numbers(self, size: int, rank: int, turn: int) -> Array:
        """What ``rank`` sends in a turn: small whole numbers, whose sums are exact."""
        found: Array = (self.library.arange(size, dtype=np.float32) * 7 + (rank * 13 + turn * 29)) % 251
        return found

    def fresh(self, array: Array, values: Array | float) -> Array:
        """Fill an array late: the device has much to do before it comes to it."""
        self.busy()
        array[...] = values
        return array


Operation: TypeAlias = Callable[[Scene, int, int], Array]
"""Does it once with a size in a turn; how many elements are wrong, on the device. Nothing waits for the device."""


def _send(scene: Scene, size: int, turn: int) -> Array:
    channel = scene.channel
    left, right = (channel.rank - 1) % channel.size, (channel.rank + 1) % channel.size
    own, into = scene.library.zeros((2, size), np.float32)
    values, expected = scene.numbers(size, channel.rank, turn), scene.numbers(size, left, turn)
    arriving = channel.receive(scene.fresh(into, -1), left)
    leaving = channel.send(scene.fresh(own, values), right)
    _finish(leaving, "send")
    own.fill(-2)
    _finish(arriving, "receive")
    return _wrong(into, expected)


def _broadcast(scene: Scene, size: int, turn: int) -> Array:
    channel, root = scene.channel, turn % scene.channel.size
    expected = scene.numbers(size, root, turn)
    array = scene.library.zeros(size, np.float32)
    _finish(channel.broadcast(scene.fresh(array, expected if channel.rank == root else -1), root), "broadcast")
    return _wrong(array, expected)


def _gather(scene: Scene, size: int, turn: int) -> Array:
    channel = scene.channel
    values = scene.numbers(size, channel.rank, turn)
    own, into = scene.library.zeros(size, np.float32), scene.library.zeros((channel.size, size), np.float32)
    scene.fresh(into, -1)
    _finish(channel.all_gather(scene.fresh(own, values), into), "all_gather")
    wrong = [_wrong(into[rank], scene.numbers(size, rank, turn)) for rank in range(channel.size)]
    return scene.library.stack(wrong).sum()  # type: ignore[no-any-return]


def _sum(scene: Scene, size: int, turn: int) -> Array:
    channel = scene.channel
    array, values = scene.library.zeros(size, np.float32), scene.numbers(size, channel.rank, turn)
    expected = scene.library.zeros(size, np.float32)
    for rank in range(channel.size):
        expected += scene.numbers(size, rank, turn)
    _finish(channel.all_sum(scene.fresh(array, values)), "all_sum")
    return _wrong(array, expected)


def _max(scene: Scene, size: int, turn: int) -> Array:
    channel = scene.channel
    array, expected = scene.library.zeros(size, np.float32), scene.numbers(size, 0, turn)
    for rank in range(1, channel.size):
        np.maximum(expected, scene.numbers(size, rank, turn), out=expected)
    _finish(channel.all_max(scene.fresh(array, scene.numbers(size, channel.rank, turn))), "all_max")
    return _wrong(array, expected)


KINDS: dict[str, dict[str, Operation]] = {
    "messages": {"send, receive": _send, "broadcast": _broadcast, "all_gather": _gather},
    "sums": {"all_sum": _sum, "all_max": _max},
}
"""From the least to the most dangerous: Open MPI moves messages of a device, and crashes in non-blocking sums."""


def probe(world: World, device: Device, say: Say, scratch: int = SCRATCH) -> Findings:
    """Try all operations on arrays of ``device``, and save what is found; called by all ranks.

    say: takes a piece of the table, on every rank. Raises InputError where a rank has no GPU, or there is one rank
    only, and FatalError where an operation does not come to an end.
    """
    gpus = world.gather_text(device.name)
    if missing := [rank for rank, gpu in enumerate(gpus) if not gpu]:
        why = device.said.partition("; kernels")[0].removeprefix("cpu: ")
        raise InputError("--probe", f"needs a GPU on every rank, and rank {missing[0]} has none: {why}")
    if world.size == 1:
        raise InputError("--probe", "needs two ranks or more: mpirun -n 2 python -m mpinn doctor --probe")
    names = keys(world, sorted(set(gpus)))
    library = device.kernels.LIBRARY
    channel = world.channel("probe", transports=same(Direct(device.memory)))
    scene = Scene(channel, library, _busy(device, scratch))
    say(f"{world.library} is handed arrays of {', '.join(sorted(set(gpus)))} by {world.size} ranks\n")
    say(f"{'':16}{''.join(f'{name:>10}' for name in SIZES)}\n")
    found = Findings()
    for kind, operations in KINDS.items():
        found = _save(world, names, replace(found, **{kind: False}))
        right = [_row(world, scene, name, operation, say) for name, operation in operations.items()]
        found = _save(world, names, replace(found, **{kind: all(right)}))
    return found


def _row(world: World, scene: Scene, name: str, operation: Operation, say: Say) -> bool:
    """Whether all sizes of an operation come out right on all ranks; a line of the table."""
    say(f"{name:16}")
    good = True
    for size in SIZES.values():
        wrong = sum(float(operation(scene, size, turn)) for turn in range(TURNS))
        everywhere = np.array([wrong])
        world.control.all_max(everywhere).wait()
        say(f"{'right' if not everywhere[0] else 'wrong':>10}")
        good = good and not everywhere[0]
    say("\n")
    return good


def _save(world: World, names: list[str], found: Findings) -> Findings:
    def save() -> bytes:
        save_findings(names, found)
        return b""

    world.verdict(save)
    return found


def _busy(device: Device, elements: int) -> Callable[[], None]:
    """Keeps the device busy for a while, and returns at once."""
    scratch = device.kernels.LIBRARY.zeros(elements, np.float32)

    def once() -> None:
        np.add(scratch, 1, out=scratch)

    once()
    device.kernels.synchronize()
    start = perf_counter()
    once()
    device.kernels.synchronize()
    times = ceil(BUSY / (perf_counter() - start))

    def busy() -> None:
        for _ in range(times):
            once()

    return busy


def _wrong(array: Array, expected: Array) -> Array:
    wrong: Array = (array != expected).sum()
    return wrong


def _finish(pending: Pending, name: str) -> None:
    deadline = monotonic() + PATIENCE
    while not pending.test():
        if monotonic() > deadline:
            raise FatalError(f"{name} has not come to an end after {PATIENCE:g} s")
        sleep(1e-6)
