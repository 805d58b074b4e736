"""What collectives take, by the formulas of Thakur, Rabenseifner & Gropp 2005 (doi 10.1177/1094342005051521).

p ranks, n bytes, latency a, seconds b for a byte to be sent, and c for one to be added:

    recursive doubling      lg p (a + n b + n c)
    Rabenseifner            2 lg p a + 2 (p - 1)/p n b + (p - 1)/p n c        reduce-scatter, then all-gather
    ring                    2 (p - 1) a + 2 (p - 1)/p n b + (p - 1)/p n c
    broadcast               lg p (a + n b), or (lg p + p - 1) a + 2 (p - 1)/p n b     binomial; scatter and all-gather
    all-gather              lg p a + (p - 1)/p n b                             of n bytes altogether

The fastest counts, as a library chooses by size. lg p is rounded up, which leaves out what a number of ranks that is no
power of two costs besides. On two levels, with q ranks on each of N nodes, a sum is a reduce-scatter in the nodes, sums
of n / q bytes between them, all at once, and an all-gather in the nodes; or flat, at what the links between nodes take.
"""

from dataclasses import dataclass
from math import ceil, log2

from mpinn.partition.costs import Link


def all_reduce(link: Link, ranks: int, size: float, reduction: float) -> float:
    """Seconds of a sum of ``size`` bytes; ``reduction``: bytes a second that are added up."""
    if ranks == 1:
        return 0.0
    sent, added, turns = size / link.bandwidth, size / reduction, ceil(log2(ranks))
    share = (ranks - 1) / ranks
    doubling = turns * (link.latency + sent + added)
    pieces = 2 * share * sent + share * added
    return min(doubling, 2 * turns * link.latency + pieces, 2 * (ranks - 1) * link.latency + pieces)


def reduce_scatter(link: Link, ranks: int, size: float, reduction: float) -> float:
    """Seconds until each rank has its piece of the sum."""
    share = (ranks - 1) / ranks
    return ceil(log2(ranks)) * link.latency + share * size / link.bandwidth + share * size / reduction


def all_gather(link: Link, ranks: int, size: float) -> float:
    """Seconds until all have ``size`` bytes, of which each had a piece."""
    return ceil(log2(ranks)) * link.latency + (ranks - 1) / ranks * size / link.bandwidth


def broadcast(link: Link, ranks: int, size: float) -> float:
    """Seconds until all have the ``size`` bytes of one."""
    if ranks == 1:
        return 0.0
    turns, sent = ceil(log2(ranks)), size / link.bandwidth
    return min(turns * (link.latency + sent), (turns + ranks - 1) * link.latency + 2 * (ranks - 1) / ranks * sent)


@dataclass(frozen=True)
class Group:
    """The ranks of a collective: ``together`` on each of ``nodes``."""

    inside: Link
    between: Link
    together: int
    nodes: int
    reduction: float

    def all_reduce(self, size: float) -> float:
        """Seconds of a sum of ``size`` bytes."""
        if self.nodes == 1:
            return all_reduce(self.inside, self.together, size, self.reduction)
        flat = all_reduce(self.between, self.together * self.nodes, size, self.reduction)
        if self.together == 1:
            return flat
        scattered = reduce_scatter(self.inside, self.together, size, self.reduction)
        summed = all_reduce(self.between, self.nodes, size / self.together, self.reduction)
        return min(flat, scattered + summed + all_gather(self.inside, self.together, size))

    def all_gather(self, size: float) -> float:
        """Seconds until all have ``size`` bytes of each."""
        whole = size * self.together * self.nodes
        if self.nodes == 1:
            return all_gather(self.inside, self.together, whole)
        across = all_gather(self.between, self.nodes, whole)
        return across + (all_gather(self.inside, self.together, whole) if self.together > 1 else 0.0)

    def broadcast(self, size: float) -> float:
        """Seconds until all have the ``size`` bytes of one: between nodes first."""
        return broadcast(self.between, self.nodes, size) + broadcast(self.inside, self.together, size)

    @property
    def neighbour(self) -> Link:
        """To the replica before or after; where there are several nodes, some neighbours are on two of them."""
        return self.inside if self.nodes == 1 else self.between
