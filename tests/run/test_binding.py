"""What is said of who has which GPU, on machines that are not here."""

from dataclasses import dataclass, field, replace

import pytest

from mpinn.comm import grid
from mpinn.comm.grid import World
from mpinn.run.binding import binding, numbers

LAUNCHER = "Open MPI's mpirun"


@dataclass(frozen=True)
class Cluster(World):
    """A rank of several: it first tells what it says, then hears what all have said."""

    said: list[str] = field(default_factory=list)

    def gather_text(self, text: str) -> list[str]:
        if len(self.said) < self.size:
            self.said.append(text)
        return self.said if len(self.said) == self.size else [text] * self.size


@dataclass(frozen=True)
class Rank:
    host: str
    bus: str
    local: int
    told: int | None = None
    box: str = ""
    """What the machine is, whatever it is called; else as it is called."""

    @property
    def uuid(self) -> str:
        return f"{self.box or self.host} {self.bus}"


def lines(*ranks: Rank) -> list[str]:
    """What every rank of a job says in the end, the same on all."""
    alone, said = grid._alone(""), list[str]()
    worlds = [
        Cluster(
            **{
                **vars(replace(alone, rank=number, size=len(ranks), host=rank.host, launcher=LAUNCHER)),
                "local_rank": rank.local,
                "told_local_rank": rank.told,
            },
            said=said,
        )
        for number, rank in enumerate(ranks)
    ]
    for world, rank in zip(worlds, ranks, strict=True):
        binding(world, rank.bus, rank.uuid)
    found = [binding(world, rank.bus, rank.uuid) for world, rank in zip(worlds, ranks, strict=True)]
    assert all(one == found[0] for one in found)
    return found[0]


def test_several_hosts_with_a_gpu_for_each_rank() -> None:
    ranks = [Rank(host, f"0:{local + 1}:0", local, local) for host in ("a", "b") for local in (0, 1)]
    assert lines(*ranks) == ["GPU 0:1:0 on a: rank 0; 0:2:0 on a: rank 1; 0:1:0 on b: rank 2; 0:2:0 on b: rank 3"]


def test_ranks_that_share_one_are_warned_of() -> None:
    ranks = [Rank("a", "0:1:0", local, local) for local in range(3)] + [Rank("b", "0:1:0", 0, 0)]
    assert lines(*ranks) == [
        "GPU 0:1:0 on a: ranks 0-2; 0:1:0 on b: rank 3",
        "warning: up to 3 ranks share a GPU and take turns on it",
    ]


def test_ranks_that_are_dealt_in_turn_to_hosts() -> None:
    ranks = [Rank(host, "0:1:0", local, local) for local in (0, 1) for host in ("a", "b")]
    assert lines(*ranks)[0] == "GPU 0:1:0 on a: ranks 0, 2; 0:1:0 on b: ranks 1, 3"


def test_a_launcher_that_counts_otherwise_is_told() -> None:
    """As where the ranks of a machine are in containers that share no memory: each takes the first GPU."""
    ranks = [Rank("a", "0:1:0", 0, 0), Rank("a", "0:1:0", 0, 1), Rank("b", "0:1:0", 0, 2)]
    assert lines(*ranks)[2:] == [
        f"warning: local ranks are not those of {LAUNCHER} (rank 1: 0, not 1; rank 2: 0, not 2); "
        "GPUs are dealt by who could share memory"
    ]


def test_two_machines_of_one_name_share_no_gpu() -> None:
    """As where names are cut, or all are called localhost."""
    assert lines(Rank("a", "0:1:0", 0, box="1"), Rank("a", "0:1:0", 0, box="2")) == [
        "GPU 0:1:0 on a: rank 0; 0:1:0 on a: rank 1"
    ]


def test_two_containers_of_one_machine_share_its_gpu() -> None:
    assert lines(Rank("a", "0:1:0", 0, box="1"), Rank("b", "0:1:0", 0, box="1")) == [
        "GPU 0:1:0 on a: ranks 0-1",
        "warning: up to 2 ranks share a GPU and take turns on it",
    ]


def test_a_launcher_that_does_not_say_is_no_contradiction() -> None:
    assert len(lines(Rank("a", "0:1:0", 1), Rank("a", "0:2:0", 0))) == 1


def test_without_gpus_nothing_is_said() -> None:
    assert lines(Rank("a", "", 0, 1), Rank("a", "", 1, 0)) == []
    assert lines(Rank("a", "0:1:0", 0, 0)) == []


def test_ranks_without_one_are_not_listed() -> None:
    assert lines(Rank("a", "", 0, 1), Rank("b", "0:1:0", 0, 0)) == ["GPU 0:1:0 on b: rank 1"]


@pytest.mark.parametrize(
    ("ranks", "text"), [([3], "3"), ([0, 1, 2, 3], "0-3"), ([0, 2], "0, 2"), ([0, 1, 3], "0, 1, 3")]
)
def test_numbers(ranks: list[int], text: str) -> None:
    assert numbers(ranks) == text
