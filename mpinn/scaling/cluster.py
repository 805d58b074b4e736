"""A cluster as messages see it: nodes of some ranks, a latency and a bandwidth inside a node and between nodes.

Hockney's model on two levels: a message of n bytes takes ``latency + n / bandwidth``. A bandwidth is what one rank
sends while all others of its node send too, so that nothing else has to be known of shared network cards.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd, inf
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from mpinn.config import Positive, not_one_of, read_options, read_toml
from mpinn.errors import InputError
from mpinn.partition.costs import Link

EXAMPLES = Path(__file__).with_name("clusters")


@dataclass(frozen=True)
class Cluster:
    """``ranks`` of a node, of which ``cores`` compute at once; links in a node and between nodes.

    ``reduction``: bytes that a rank adds up in a second. With ``overlap`` a gradient is summed while the backward pass
    still computes, as cards that move messages by themselves let it. ``source``: where the numbers are from.
    """

    name: str
    source: str
    ranks: int
    cores: int
    inside: Link
    between: Link
    reduction: float = inf
    overlap: bool = False

    def local(self, stages: int, replicas: int) -> tuple[int, int]:
        """Of the replicas of a stage, how many share a node, and on how many nodes they are.

        Ranks are dealt to nodes in order, the stages of a replica one after the other.
        """
        together = min(replicas, max(1, self.ranks // stages))
        return together, -(-replicas // together)

    def links(self, stages: int, replicas: int) -> list[Link]:
        """Those across the cuts after stages 1 to K - 1, of the replica whose cuts are most often between nodes."""
        if stages * replicas <= self.ranks:
            return [self.inside] * (stages - 1)
        # the later in its node a replica begins, the more of its cuts are between nodes
        different = self.ranks // gcd(stages, self.ranks)
        first = max(replica * stages % self.ranks for replica in range(min(replicas, different)))
        return [self.inside if (first + cut) % self.ranks else self.between for cut in range(1, stages)]


@dataclass(frozen=True, kw_only=True)
class _Node:
    """The keys of a file that stand before its tables: see `Cluster`."""

    source: str
    ranks: Positive
    cores: Positive | None = None
    reduction: Annotated[float, Meta(gt=0)] = inf
    overlap: bool = False


@dataclass(frozen=True, kw_only=True)
class _Level:
    """``bandwidth`` in GB/s, ``latency`` in microseconds."""

    bandwidth: Annotated[float, Meta(gt=0)]
    latency: Annotated[float, Meta(ge=0)]

    @property
    def link(self) -> Link:
        """In bytes and seconds."""
        return Link(self.bandwidth * 1e9, self.latency * 1e-6)


LEVELS = ("inside", "between")


def examples() -> dict[str, Path]:
    """The clusters that come with the program, by name."""
    return {path.stem: path for path in sorted(EXAMPLES.glob("*.toml"))}


def read_cluster(name: str) -> Cluster:
    """One of the examples, or that of a TOML file; InputError says what is wrong with it."""
    known = examples()
    if name not in known and not name.endswith(".toml"):
        raise not_one_of("--network", name, (*known, "local", "FILE.toml"))
    path = known.get(name, Path(name))
    return _cluster(path.stem, str(path), read_toml(path))


def _cluster(name: str, path: str, tables: Mapping[str, Any]) -> Cluster:
    problems: list[InputError] = []
    rest = {key: value for key, value in tables.items() if key not in LEVELS}
    node = read_options(path, "a network", rest, _Node, problems)
    links = []
    for level in LEVELS:
        table = tables.get(level)
        if not isinstance(table, Mapping):
            problems.append(InputError(f"{path}.{level}", "expected a table with bandwidth and latency"))
            continue
        links.append(read_options(f"{path}.{level}", f"[{level}]", table, _Level, problems))
    if problems:
        raise problems[0] if len(problems) == 1 else InputError("", "\n".join(map(str, problems)))
    inside, between = (level.link for level in links)
    cores = min(node.cores or node.ranks, node.ranks)
    return Cluster(name, node.source, node.ranks, cores, inside, between, node.reduction * 1e9, node.overlap)
