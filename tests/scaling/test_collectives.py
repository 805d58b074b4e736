"""What collectives take: by hand, in the limits, and on two levels."""

from itertools import product

import pytest
from planned import FREE

from mpinn.partition.costs import Link
from mpinn.scaling.collectives import Group, all_gather, all_reduce, broadcast, reduce_scatter

LINK = Link(1e9, 1e-6)
FAST = float("inf")


@pytest.mark.parametrize(
    ("ranks", "size", "reduction", "seconds"),
    [
        (1, 10**6, 1e9, 0.0),
        # recursive doubling: lg 8 = 3 turns of a microsecond and 8 ns
        (8, 8, FAST, 3 * (1e-6 + 8e-9)),
        # Rabenseifner: 2 lg 8 turns, 2 * 7/8 of a millisecond to send, 7/8 of half a millisecond to add
        (8, 10**6, 2e9, 6e-6 + 1.75e-3 + 0.4375e-3),
        # a rank more than a power of two takes a turn more
        (9, 8, FAST, 4 * (1e-6 + 8e-9)),
        # two ranks: doubling sends all and turns once, halving sends half and turns twice
        (2, 10**6, 1e9, 2e-6 + 1e-3 + 0.5e-3),
        (2, 100, FAST, 1e-6 + 1e-7),
    ],
)
def test_a_sum_by_hand(ranks, size, reduction, seconds):
    assert all_reduce(LINK, ranks, size, reduction) == pytest.approx(seconds, rel=1e-12)


def test_others_by_hand():
    assert reduce_scatter(LINK, 4, 10**6, 1e9) == pytest.approx(2e-6 + 0.75e-3 + 0.75e-3)
    assert all_gather(LINK, 4, 10**6) == pytest.approx(2e-6 + 0.75e-3)
    assert broadcast(LINK, 4, 100) == pytest.approx(2 * (1e-6 + 1e-7))
    # scatter and all-gather: 2 + 3 turns, three quarters sent twice
    assert broadcast(LINK, 4, 10**7) == pytest.approx(5e-6 + 15e-3)
    assert broadcast(LINK, 1, 10**7) == 0


def test_a_sum_of_many_bytes_costs_twice_their_way_however_many_ranks():
    """The lower bound of bandwidth, 2 (p - 1)/p n b."""
    for ranks in (2, 16, 1024, 2**20):
        bound = 2 * (ranks - 1) / ranks * 1e9 / 1e9
        assert bound <= all_reduce(LINK, ranks, 10**9, FAST) <= bound + 2e-6 * 20


def test_nothing_is_lost_on_a_free_link():
    group = Group(FREE, FREE, 4, 250, FAST)
    assert (group.all_reduce(1e9), group.all_gather(8), group.broadcast(1e9)) == (0, 0, 0)


def test_sums_on_two_levels():
    slow = Link(1e8, 1e-5)
    group = Group(LINK, slow, 8, 4, FAST)
    size = 8e6
    # 7/8 of 8 ms there and back in the node, and sums of 1 MB between: 2 * 3/4 of 10 ms
    by_hand = (3e-6 + 7e-3) + (4e-5 + 15e-3) + (3e-6 + 7e-3)
    assert group.all_reduce(size) == pytest.approx(by_hand)
    assert group.all_reduce(size) < all_reduce(slow, 32, size, FAST)
    assert Group(LINK, slow, 8, 1, FAST).all_reduce(size) == all_reduce(LINK, 8, size, FAST)
    assert Group(LINK, slow, 1, 4, FAST).all_reduce(size) == all_reduce(slow, 4, size, FAST)
    assert group.all_gather(8) == pytest.approx((2e-5 + 0.75 * 256 / 1e8) + (3e-6 + 7 / 8 * 256 / 1e9))
    assert group.broadcast(100) == pytest.approx(2 * (1e-5 + 1e-6) + 3 * (1e-6 + 1e-7))
    assert (group.neighbour, Group(LINK, slow, 8, 1, FAST).neighbour) == (slow, LINK)


def test_more_bytes_more_latency_and_less_bandwidth_never_take_less():

    def summed(link, ranks, size):
        return all_reduce(link, ranks, size, 1e9)

    def on_two_levels(link, ranks, size):
        return Group(link, Link(link.bandwidth / 4, link.latency * 4), 4, ranks, 1e9).all_reduce(size)

    operations = (summed, on_two_levels, all_gather, broadcast)
    for operation, ranks, size in product(operations, (2, 3, 8, 1000), (8, 10**4, 10**8)):
        known = operation(LINK, ranks, size)
        assert operation(LINK, ranks, 2 * size) >= known
        assert operation(Link(1e9, 2e-6), ranks, size) > known
        assert operation(Link(5e8, 1e-6), ranks, size) > known
