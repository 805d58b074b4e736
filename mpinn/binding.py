"""Which rank has which GPU."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mpinn.array.device import Device, open_nccl
from mpinn.comm.grid import World
from mpinn.comm.group import Nccl
from mpinn.comm.transport import Staged, same
from mpinn.errors import InputError


def binding(world: World, bus: str) -> list[str]:
    """Sentences for the log: who has which GPU, and warnings of what is odd about it; called by all ranks.

    bus: the place of this rank's GPU on its machine, empty without one. GPUs are dealt by the local rank that follows
    from who could share memory; what the launcher calls it is a check.
    """
    told = world.told_local_rank
    odd = f"rank {world.rank}: {world.local_rank}, not {told}" if told not in (None, world.local_rank) else ""
    ranks: dict[tuple[str, str], list[int]] = {}
    oddities: list[str] = []
    for rank, line in enumerate(world.gather_text(f"{world.host}\t{bus}\t{odd}")):
        host, place, other = line.split("\t")
        if place:
            ranks.setdefault((host, place), []).append(rank)
            oddities += filter(None, [other])
    if not ranks or world.size == 1:
        return []
    shares = [f"{place} on {host}: rank{'s' * (len(own) > 1)} {numbers(own)}" for (host, place), own in ranks.items()]
    most = max(map(len, ranks.values()))
    said = [f"GPU {'; '.join(shares)}"]
    if most > 1:
        said.append(f"warning: up to {most} ranks share a GPU and take turns on it")
    if oddities:
        said.append(
            f"warning: local ranks are not those of {world.launcher} ({'; '.join(oddities)}); "
            "GPUs are dealt by who could share memory"
        )
    return said


def numbers(ranks: Sequence[int]) -> str:
    """Rising numbers, such as 0-3, or 0, 2."""
    whole = len(ranks) > 1 and ranks[-1] - ranks[0] == len(ranks) - 1
    return f"{ranks[0]}-{ranks[-1]}" if whole else ", ".join(map(str, ranks))


def choose_nccl(world: World, device: Device) -> tuple[Nccl, str]:
    """NCCL on this rank's GPU, and what it carries; called by all ranks, raises InputError on all of them.

    Ranks whose machines have the same name are taken to be on one.
    """
    places = world.gather_text(f"{world.host}\t{device.bus}")
    sharing = [rank for rank, place in enumerate(places) if places.count(place) > 1]
    hosts = [place.partition("\t")[0] for place in places]

    def open_it() -> tuple[Nccl, str]:
        nccl, version = open_nccl(device, hosts.index(world.host))
        if sharing:
            raise InputError("run.collectives", f"nccl: ranks {numbers(sharing)} share GPUs; choose mpi")
        return nccl, version

    nccl, version = world.everywhere(open_it)
    if len({*hosts}) == world.size:
        return nccl, f"NCCL {version} has nothing to do: no two ranks share a machine"
    failure = _failure(world, device, nccl)

    def tell() -> None:
        if failure:
            raise InputError("run.collectives", f"nccl: NCCL {version} does not add up here ({failure}); choose mpi")

    world.everywhere(tell)
    return nccl, f"collectives within a machine by NCCL {version}"


def _failure(world: World, device: Device, nccl: Nccl) -> str:
    """What goes wrong when all ranks add up a number, the first thing that NCCL is asked for."""
    channel = world.channel("nccl", transports=replace(same(Staged(device.memory)), nccl=nccl))
    number = device.kernels.on_device(np.ones(1))
    try:
        channel.all_sum(number).wait()
    except RuntimeError as error:
        return str(error)
    total = float(number[0])
    return "" if total == world.size else f"{world.size} ones are {total:g}"
