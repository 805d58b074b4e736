"""What this machine and this MPI offer: who runs where, with which libraries, and how fast messages are."""

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from mpinn import __version__
from mpinn.array.blas import asked_of_blas, blas_of_numpy
from mpinn.array.device import Device
from mpinn.bench.messages import measure, ping_pong
from mpinn.bench.timing import Spread
from mpinn.comm.choice import choose_transports
from mpinn.comm.findings import findings, probe_file
from mpinn.comm.grid import World
from mpinn.comm.probe import probe
from mpinn.errors import InputError
from mpinn.run.binding import binding, choose_nccl

LIBRARIES = ("numpy", "numba", "mpi4py", "cupy")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
WARNING = "warning: "
SIZES = {"1 MB": 2**20, "16 MB": 2**24}


def doctor(
    world: World,
    device: Device,
    *,
    describe_devices: Callable[[], Sequence[str]] = list,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Print on rank 0 a table of the ranks, their machines and libraries, the speed of messages, and warnings.

    device: that of this rank. Called by all ranks.
    """
    own = {
        "host": world.host,
        "local": f"{world.local_rank} of {world.local_size}",
        "cores": world.cores,
        "threads": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        "devices": list(describe_devices()),
        "crowded": world.polite,
        "gpu": device.name,
        "bus": device.bus,
    }
    ranks = [json.loads(text) for text in world.gather_text(json.dumps(own))]
    found = findings(world, device.name)
    _, transport = choose_transports("auto", world.library, found, device.memory, world.size)
    routes = {"transport": transport.removeprefix("messages ")}
    if device.memory is not None:
        routes["computing on"] = device.said
    if found is not None and world.size > 1:
        routes["NCCL"] = _nccl(world, device)
    shared = binding(world, device.bus, device.uuid)
    speed = speeds(world)
    if world.rank == 0:
        _print(world, ranks, speed, {**routes, **(versions or {})}, shared)


def _nccl(world: World, device: Device) -> str:
    """What NCCL can carry, or why nothing; called by all ranks."""
    try:
        _, said = choose_nccl(world, device)
    except InputError as error:
        return str(error).removeprefix("run.collectives: nccl: ").partition("; choose mpi")[0]
    return said


def try_transports(world: World, device: Device) -> None:
    """Try whether MPI reads the memory of the GPUs, and say what follows; called by all ranks. See `probe`."""

    def say(text: str) -> None:
        print(text, end="", flush=True)

    found = probe(world, device, say)
    _, transport = choose_transports("auto", world.library, found, device.memory)
    say(f"{transport}\nsaved in {probe_file()}\n")


def speeds(world: World) -> list[tuple[str, str]]:
    """Latency between ranks 0 and 1, and bandwidth between them and of sums over all; called by all ranks."""
    if world.size == 1:
        return [("messages", "one rank: there is nothing to measure")]
    channel = world.channel("doctor")
    there_and_back = measure(channel, [ping_pong(channel, np.zeros(8, np.uint8))])[:, 0]
    rows = [("latency, 8 bytes there and back", _format(Spread.of(there_and_back * 1e6), "us"))]
    for name, size in SIZES.items():
        array = np.zeros(size // 4, np.float32)
        seconds = measure(channel, [ping_pong(channel, array), lambda array=array: channel.all_sum(array).wait()])  # type: ignore[misc]
        rows.append((f"bandwidth, rank 0 to 1, {name}", _format(Spread.of(2 * size / seconds[:, 0] / 1e9), "GB/s")))
        rows.append(
            (f"bandwidth, sum over {world.size} ranks, {name}", _format(Spread.of(size / seconds[:, 1] / 1e9), "GB/s"))
        )
    return rows


def _format(spread: Spread, unit: str) -> str:
    return f"{spread.median:.3g} {unit} ({spread.low:.3g} to {spread.high:.3g})"


def warnings(ranks: Sequence[Mapping[str, object]]) -> list[str]:
    """What is likely to make a run slow; ranks: what each of them has told of itself."""
    found = []
    for host in sorted({str(rank["host"]) for rank in ranks}):
        here = [rank for rank in ranks if rank["host"] == host]
        if here[0]["crowded"]:
            found.append(
                f"{host}: {len(here)} ranks on {here[0]['cores']} cores: ranks wait politely, but share the cores"
            )
        threads = here[0]["threads"]
        if len(here) > 1 and isinstance(threads, Mapping) and set(threads.values()) != {"1"}:
            found.append(f"{host}: {len(here)} ranks, but BLAS is not limited to one thread (OMP_NUM_THREADS=1)")
    return found


def _print(
    world: World,
    ranks: Sequence[Mapping[str, object]],
    speed: Sequence[tuple[str, str]],
    versions: Mapping[str, str],
    shared: Sequence[str],
) -> None:
    from mpinn.comm.launch import on_terminal, terminal_width
    from mpinn.screen import Screen, facts, table

    seen = on_terminal()
    screen = Screen(seen, terminal_width() if seen else None)
    screen.print(f"{world.size} rank{'s' if world.size > 1 else ''}")
    people = table("rank", "host", "local rank", "cores", folded=True)
    for name in ("threads", "devices"):
        people.add_column(name, overflow="fold")
    for number, rank in enumerate(ranks):
        people.add_row(str(number), *(_cell(rank[key]) for key in ("host", "local", "cores", "threads", "devices")))
    screen.print(people)
    if any(rank["gpu"] for rank in ranks):
        screen.print("GPUs")
        names, keys = ("rank", "host", "GPU", "bus"), ("host", "gpu", "bus")
        screen.rows(names, [[str(n), *(_cell(rank[key] or "none") for key in keys)] for n, rank in enumerate(ranks)])
    told = {
        "mpinn": __version__,
        "Python": platform.python_version(),
        **dict(_installed()),
        "BLAS": "; ".join(filter(None, (blas_of_numpy(), asked_of_blas()))),
        "MPI": world.library,
        "launcher": world.launcher or "none",
        **versions,
        **dict(speed),
    }
    screen.print(facts({name: value for name, value in told.items() if value}))
    crowded = [line.removeprefix(WARNING) for line in shared if line.startswith(WARNING)]
    for line in [world.note, *warnings(ranks), *crowded]:
        if line:
            print(f"{WARNING}{line}")


def _installed() -> Iterator[tuple[str, str]]:
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            yield name, version(name)


def _cell(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name.removesuffix('_NUM_THREADS')}={count}" for name, count in value.items()) or "not set"
    if isinstance(value, list):
        return "\n".join(map(str, value)) or "none"
    return str(value)
