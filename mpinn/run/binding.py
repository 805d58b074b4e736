"""Which rank has which GPU."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mpinn.array.device import Device, open_nccl
from mpinn.comm.grid import World
from mpinn.comm.group import Nccl
from mpinn.comm.groups import Groups
from mpinn.comm.transport import Staged, same
from mpinn.errors import InputError

PATIENCE = 60.0
"""Seconds for the first sum, before which NCCL connects the GPUs: where the machine hinders that, it may never be."""


def binding(world: World, bus: str, uuid: str) -> list[str]:
    """Sentences for the log: who has which GPU, and warnings of what is odd about it; called by all ranks.

    bus: the place of this rank's GPU on its machine, empty without one; uuid: names the GPU, since containers call
    their one machine by many names, and machines may have the same. GPUs are dealt by the local rank that follows
    from who could share memory; what the launcher calls it is a check.
    """
    told = world.told_local_rank
    odd = f"rank {world.rank}: {world.local_rank}, not {told}" if told not in (None, world.local_rank) else ""
    ranks: dict[tuple[str, str], list[int]] = {}
    hosts, oddities = list[str](), list[str]()
    for rank, line in enumerate(world.gather_text(f"{world.host}\t{bus}\t{uuid}\t{odd}")):
        host, place, name, other = line.split("\t")
        hosts.append(host)
        if place:
            ranks.setdefault((name, place), []).append(rank)
            oddities += filter(None, [other])
    if not ranks or world.size == 1:
        return []
    shares = [
        f"{place} on {hosts[own[0]]}: rank{'s' * (len(own) > 1)} {numbers(own)}" for (_, place), own in ranks.items()
    ]
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


def choose_nccl(world: World, device: Device) -> tuple[Groups, str]:
    """NCCL on this rank's GPU, and what it carries; called by all ranks, raises InputError on all of them.

    NCCL wants a GPU for each rank of a machine, and a machine are those who could share memory.
    """
    places = world.gather_text(f"{world.machine}\t{device.bus}")
    sharing = [rank for rank, place in enumerate(places) if places.count(place) > 1]

    def open_it() -> tuple[Nccl, str]:
        nccl, version = open_nccl(device, world.machine)
        if sharing:
            raise InputError("run.collectives", f"nccl: ranks {numbers(sharing)} share GPUs; choose mpi")
        return nccl, version

    nccl, version = world.everywhere(open_it)
    groups = Groups(nccl)
    if len({place.partition("\t")[0] for place in places}) == world.size:
        return groups, f"NCCL {version} has nothing to do: no two ranks share a machine"
    failure = _failure(world, device, groups)

    def tell() -> None:
        if failure:
            raise InputError("run.collectives", f"nccl: NCCL {version} does not add up here ({failure}); choose mpi")

    world.everywhere(tell)
    return groups, f"collectives within a machine by NCCL {version}"


def _failure(world: World, device: Device, groups: Groups) -> str:
    """What goes wrong when all ranks add up a number, the first thing that NCCL is asked for."""
    channel = world.channel("nccl", transports=replace(same(Staged(device.memory)), nccl=groups))
    number = device.kernels.on_device(np.ones(1))
    try:
        pending = channel.all_sum(number)
        for work in (pending.wait, lambda: None):
            if not groups.quiet(PATIENCE):
                return f"a sum of one number is not done after {PATIENCE:g} s: NCCL_DEBUG=INFO says more"
            work()
    except RuntimeError as error:
        return str(error)
    total = float(number[0])
    return "" if total == world.size else f"{world.size} ones are {total:g}"
