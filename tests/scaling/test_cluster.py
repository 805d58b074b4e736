"""Clusters: where ranks and messages are, and files that describe them."""

from itertools import pairwise

import pytest
from planned import cluster

from mpinn.errors import InputError
from mpinn.partition.costs import Link
from mpinn.scaling.cluster import examples, read_cluster

NEAR, FAR = Link(1e9, 1e-6), Link(1e8, 1e-5)


def nodes(ranks):
    return cluster(NEAR, FAR, ranks=ranks)


def crossings(ranks, stages, replicas):
    """Of the cuts of each replica, which are between nodes: rank by rank."""
    for replica in range(replicas):
        places = [(replica * stages + stage) // ranks for stage in range(stages)]
        yield [one != other for one, other in pairwise(places)]


@pytest.mark.parametrize(
    ("ranks", "stages", "replicas"),
    [
        (8, 4, 6),
        (8, 3, 9),
        (4, 6, 5),
        (8, 8, 2),
        (8, 16, 3),
        (2, 5, 7),
        (64, 3, 1),
        (64, 9, 7),
        (64, 9, 8),
        (6, 4, 2),
        (6, 4, 9),
    ],
)
def test_links_cross_nodes_where_ranks_do(ranks, stages, replicas):
    links = nodes(ranks).links(stages, replicas)
    known = list(crossings(ranks, stages, replicas))
    found = [link is FAR for link in links]
    assert found in known
    assert sum(found) == max(map(sum, known))


def test_replicas_of_a_stage_share_nodes():
    assert nodes(8).local(1, 64) == (8, 8)
    assert nodes(8).local(4, 64) == (2, 32)
    assert nodes(8).local(8, 64) == (1, 64)
    assert nodes(8).local(16, 64) == (1, 64)
    assert nodes(8).local(1, 5) == (5, 1)
    assert nodes(8).local(1, 12) == (8, 2)


def test_the_examples_are_sound_and_say_that_they_are_nominal():
    assert set(examples()) == {"h100-ndr", "a100-hdr", "pcie-100gbe", "cpu-hdr"}
    for name in examples():
        found = read_cluster(name)
        assert found.name == name
        assert found.source.startswith("nominal: ")
        assert "assumed" in found.source
        assert found.inside.bandwidth > found.between.bandwidth
        assert found.inside.latency <= found.between.latency
    dgx = read_cluster("h100-ndr")
    # 900 GB/s both ways, and 400 Gb/s
    assert (dgx.inside.bandwidth, dgx.between.bandwidth) == (450e9, 400e9 / 8)
    assert (dgx.ranks, dgx.cores, dgx.overlap) == (8, 8, True)


GOOD = """
source = "ours"
ranks = 4
cores = 2
[inside]
bandwidth = 2
latency = 20
[between]
bandwidth = 0.5
latency = 30.0
"""


def test_a_file_of_ones_own(tmp_path):
    (tmp_path / "ours.toml").write_text(GOOD)
    found = read_cluster(str(tmp_path / "ours.toml"))
    assert (found.name, found.ranks, found.cores, found.overlap) == ("ours", 4, 2, False)
    assert (found.inside.bandwidth, found.between.bandwidth) == (2e9, 0.5e9)
    assert (found.inside.latency, found.between.latency) == pytest.approx((20e-6, 30e-6))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("ranks = 4", "rank = 4"), r"rank: unknown key \(did you mean ranks\?\)"),
        (("ranks = 4", "ranks = 0"), "ranks: expected an integer of at least 1, got 0"),
        (('source = "ours"', ""), "source: is missing"),
        (("bandwidth = 2", "bandwidth = 0"), r"inside\.bandwidth: expected a number above 0, got 0"),
        (("latency = 30.0", "latency = -1"), r"between\.latency: expected a number of at least 0, got -1"),
        (("[between]", "[beyond]"), r"beyond: unknown key"),
        (("ranks = 4", "ranks ="), "is not TOML"),
    ],
)
def test_a_file_that_is_wrong(tmp_path, change, said):
    (tmp_path / "ours.toml").write_text(GOOD.replace(*change))
    with pytest.raises(InputError, match=said):
        read_cluster(str(tmp_path / "ours.toml"))


def test_a_name_that_is_unknown():
    with pytest.raises(InputError, match=r"^--network: 'h100' is not one of a100-hdr, .*\(did you mean h100-ndr\?\)"):
        read_cluster("h100")
    with pytest.raises(InputError, match="there is no such file"):
        read_cluster("nothing.toml")
