"""Which rank has which GPU."""

from collections.abc import Sequence

from mpinn.comm.grid import World


def binding(world: World, bus: str) -> list[str]:
    """Sentences for the log: who has which GPU, and a warning where some share one; called by all ranks.

    bus: the place of this rank's GPU on its machine, empty without one.
    """
    ranks: dict[tuple[str, str], list[int]] = {}
    for rank, told in enumerate(world.gather_text(f"{world.host}\t{bus}")):
        host, _, place = told.partition("\t")
        if place:
            ranks.setdefault((host, place), []).append(rank)
    if not ranks or world.size == 1:
        return []
    shares = [f"{place} on {host}: rank{'s' * (len(own) > 1)} {numbers(own)}" for (host, place), own in ranks.items()]
    most = max(map(len, ranks.values()))
    crowded = [f"warning: up to {most} ranks share a GPU and take turns on it"] if most > 1 else []
    return [f"GPU {'; '.join(shares)}", *crowded]


def numbers(ranks: Sequence[int]) -> str:
    """Rising numbers, such as 0-3, or 0, 2."""
    whole = len(ranks) > 1 and ranks[-1] - ranks[0] == len(ranks) - 1
    return f"{ranks[0]}-{ranks[-1]}" if whole else ", ".join(map(str, ranks))
