"""Batches: who sees which sample when, on any number of replicas, and at what cost."""

import time
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpinn.analysis.normalisation import Normalisation
from mpinn.config import Data, InputError
from mpinn.datasets.ahead import Ahead
from mpinn.datasets.batches import Batch, Batches
from mpinn.datasets.sound import statistics
from mpinn.datasets.source import Source, Split, open_source


def numbered(n: int = 100, classes: int = 5) -> Source:
    """A source whose sample i is the number i, so that a batch shows which samples are in it."""
    x = np.arange(n, dtype=np.int32)[:, None]
    target = np.random.default_rng(n).integers(0, classes, n)
    splits = {"train": Split(x, target), "validation": Split(x[: n // 2], target[: n // 2]), "test": Split(x, target)}
    return Source(splits, np.zeros(1), np.ones(1), classes)


def all_replicas(source: Source, batch: int, replicas: int, deal: str, seed: int = 0) -> list[Batches]:
    return [Batches(source, seed, batch, replicas, replica, deal, "float64") for replica in range(replicas)]


def assemble(shares: list[Batch]) -> np.ndarray:
    """The global batch, each local row put where ``rows`` says: (total,) sample numbers, every row exactly once."""
    total = shares[0].total
    rows = np.full(total, -1)
    for share in shares:
        start, stride = share.rows
        places = start + stride * np.arange(share.count)
        assert (rows[places] == -1).all()
        np.testing.assert_array_equal(share.x[:, 0], share.samples)
        rows[places] = share.samples
        assert share.total == total
        assert len(share.x) == len(share.target) == len(share.samples) == share.count
    assert (rows >= 0).all()
    return rows


def epoch_of(batches: Batches, epoch: int) -> np.ndarray:
    steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
    return np.concatenate([batches.batch(step).samples.copy() for step in steps])


@pytest.mark.parametrize("replicas", range(1, 9))
def test_redealt_makes_the_serial_batches_on_any_number_of_replicas(replicas: int):
    source = numbered(100)
    serial = Batches(source, 3, 32, 1, 0, "redealt", "float64")
    parallel = all_replicas(source, 32, replicas, "redealt", seed=3)
    for step in range(9):
        expected = serial.batch(step)
        shares = [batches.batch(step) for batches in parallel]
        np.testing.assert_array_equal(assemble(shares), expected.samples)
        assert {(share.index, share.epoch) for share in shares} == {(step, step // 4)}
        assert expected.total == (4 if step % 4 == 3 else 32)


@settings(deadline=None)
@given(
    n=st.integers(1, 70),
    batch=st.integers(1, 70),
    replicas=st.integers(1, 12),
    deal=st.sampled_from(["redealt", "fixed", "skewed"]),
)
def test_every_sample_once_an_epoch(n: int, batch: int, replicas: int, deal: str):
    parallel = all_replicas(numbered(n), batch, replicas, deal)
    for epoch in (0, 1):
        seen = []
        for step in range(epoch * parallel[0].steps_per_epoch, (epoch + 1) * parallel[0].steps_per_epoch):
            shares = [batches.batch(step) for batches in parallel]
            counts = [share.count for share in shares]
            assert max(counts) - min(counts) <= 1
            seen.append(assemble(shares))
        assert [len(rows) for rows in seen[:-1]] == [batch] * (len(seen) - 1)
        np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(n))


def test_128_over_3_and_a_ragged_last_batch():
    parallel = all_replicas(numbered(300), 128, 3, "redealt")
    counts = [[batches.batch(step).count for batches in parallel] for step in range(3)]
    assert counts == [[43, 43, 42], [43, 42, 43], [14, 15, 15]]
    assert [parallel[0].batch(step).total for step in range(3)] == [128, 128, 44]


def test_a_replica_without_samples_takes_part():
    parallel = all_replicas(numbered(10), 3, 5, "redealt")
    shares = [batches.batch(0) for batches in parallel]
    assert [share.count for share in shares] == [1, 1, 1, 0, 0]
    assert [share.x.shape for share in shares] == [(1, 1)] * 3 + [(0, 1)] * 2
    assert {share.total for share in shares} == {3}
    np.testing.assert_array_equal(
        np.sort(assemble(shares)), np.sort(numbered(10).splits["train"].x[assemble(shares), 0])
    )


@pytest.mark.parametrize("deal", ["fixed", "skewed"])
def test_a_replica_keeps_its_shard_in_a_new_order_each_epoch(deal: str):
    parallel = all_replicas(numbered(101), 20, 4, deal)
    shards = [np.sort(epoch_of(batches, 0)) for batches in parallel]
    assert [len(shard) for shard in shards] == [26, 25, 25, 25]
    np.testing.assert_array_equal(np.sort(np.concatenate(shards)), np.arange(101))
    for batches, shard in zip(parallel, shards, strict=True):
        orders = [epoch_of(batches, epoch) for epoch in range(4)]
        assert len({tuple(order) for order in orders}) == 4
        for order in orders:
            np.testing.assert_array_equal(np.sort(order), shard)


def test_fixed_shards_are_drawn_by_the_seed():
    first, second = (np.sort(epoch_of(all_replicas(numbered(), 20, 2, "fixed", seed)[0], 0)) for seed in (0, 1))
    assert set(first) != set(second)
    assert set(first) != set(range(0, 100, 2))


def test_skewed_gives_each_replica_few_labels():
    source = numbered(1000, classes=10)
    target = source.splits["train"].target
    for deal, fewest, most in (("skewed", 1, 4), ("fixed", 10, 10)):
        labels = [np.unique(target[epoch_of(batches, 0)]) for batches in all_replicas(source, 50, 5, deal)]
        assert all(fewest <= len(of_one) <= most for of_one in labels)
    skewed = [np.unique(target[epoch_of(batches, 0)]) for batches in all_replicas(source, 50, 5, "skewed")]
    assert all(left[-1] <= right[0] for left, right in pairwise(skewed))


def test_same_shows_every_replica_the_same():
    parallel = all_replicas(numbered(50), 32, 4, "same")
    assert parallel[0].steps_per_epoch == 7
    for step in range(14):
        shares = [batches.batch(step) for batches in parallel]
        for share in shares:
            np.testing.assert_array_equal(share.samples, shares[0].samples)
            assert share.total == 4 * share.count
        assert shares[0].count == (2 if step % 7 == 6 else 8)
        starts = {(share.rows[0], share.rows[1]) for share in shares}
        assert starts == {(0, 4), (1, 4), (2, 4), (3, 4)}
    np.testing.assert_array_equal(np.sort(epoch_of(parallel[0], 1)), np.arange(50))


def test_same_must_divide_the_batch():
    with pytest.raises(InputError, match=r"data\.batch: 32 cannot be divided by 3 replicas"):
        Batches(numbered(), 0, 32, 3, 0, "same", "float32")


@pytest.mark.parametrize("deal", ["redealt", "fixed", "same", "skewed"])
def test_one_replica_sees_everything_whatever_the_deal(deal: str):
    batches = Batches(numbered(), 0, 32, 1, 0, deal, "float32")
    assert batches.steps_per_epoch == 4
    np.testing.assert_array_equal(np.sort(epoch_of(batches, 2)), np.arange(100))


@pytest.mark.parametrize("deal", ["redealt", "fixed", "same", "skewed"])
def test_a_resumed_run_sees_what_it_would_have_seen(deal: str):
    running = Batches(numbered(), 5, 30, 3, 1, deal, "float32")
    sequence = [(batch.x.copy(), batch.target.copy(), batch.rows) for batch in map(running.batch, range(30))]
    for step in (29, 7, 13, 0, 12, 28):
        batch = Batches(numbered(), 5, 30, 3, 1, deal, "float32").batch(step)
        again = running.batch(step)
        for found in (batch, again):
            np.testing.assert_array_equal(found.x, sequence[step][0])
            np.testing.assert_array_equal(found.target, sequence[step][1])
            assert found.rows == sequence[step][2]


@pytest.mark.parametrize("deal", ["redealt", "fixed", "same", "skewed"])
def test_seeds_epochs_and_replicas_have_orders_of_their_own(deal: str):
    orders = [
        tuple(epoch_of(Batches(numbered(), seed, 20, 2, 0, deal, "float32"), epoch))
        for seed in (0, 1, 2**40)
        for epoch in (0, 1)
    ]
    assert len(set(orders)) == len(orders)


def test_an_unknown_deal_is_a_bug():
    with pytest.raises(ValueError, match="unknown deal 'auto'"):
        Batches(numbered(), 0, 20, 2, 0, "auto", "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_samples_are_normalised_in_the_dtype_of_the_run(dtype: str):
    source = open_source(Data())
    batch = Batches(source, 0, 100, 1, 0, "redealt", dtype).batch(3)
    train = source.splits["train"]
    expected = (train.x[batch.samples].astype(np.float64) - source.mean) / source.std
    assert batch.x.dtype == dtype
    np.testing.assert_allclose(batch.x, expected, rtol=0, atol=8 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(batch.target, train.target[batch.samples])


@pytest.mark.parametrize(("stored", "dtype"), [("uint8", "float32"), ("float32", "float32"), ("float64", "float32")])
def test_each_channel_is_normalised_by_its_own_statistics(stored: str, dtype: str):
    x = np.random.default_rng(0).integers(0, 255, (20, 4, 5, 3)).astype(stored)
    split = Split(x, np.zeros(20, np.int64))
    source = Source({"train": split}, np.array([1.0, 50.0, 100.0]), np.array([0.5, 30.0, 7.0]), 1)
    batch = Batches(source, 0, 20, 1, 0, "redealt", dtype).batch(0)
    expected = (x[batch.samples].astype(np.float64) - source.mean) / source.std
    np.testing.assert_allclose(batch.x, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(split.x, x)


@pytest.mark.parametrize("stored", ["float64", ">f8", "int64", "uint32", "longdouble"])
def test_samples_that_the_dtype_of_the_run_does_not_hold_are_told_apart(stored: str):
    x = (1_700_000_000 + np.random.default_rng(0).integers(0, 100, (20, 4, 5, 3))).astype(stored)
    mean, std = statistics(x)
    source = Source({"train": Split(x, np.zeros(20, np.int64))}, mean, std, 1)
    shares = Batches(source, 0, 8, 1, 0, "redealt", "float32").evaluation("train", 7)
    found = np.concatenate([batch.x.copy() for batch in shares])
    expected = (x.astype(np.float64) - mean) / std
    assert np.abs(expected).max() < 2
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found, Normalisation(mean, std).apply(x, np.dtype("float32")))


def test_samples_beyond_the_range_of_the_dtype_of_the_run_are_finite_when_normalised():
    x = np.random.default_rng(0).normal(size=(20, 2)) * [1e100, 1e-100]
    mean, std = statistics(x)
    batch = Batches(
        Source({"train": Split(x, np.zeros(20, np.int64))}, mean, std, 1), 0, 20, 1, 0, "redealt", "float32"
    ).batch(0)
    np.testing.assert_allclose(batch.x, ((x - mean) / std)[batch.samples], rtol=1e-6, atol=1e-7)


def test_the_targets_of_a_regression_are_in_the_dtype_of_the_run():
    target = np.random.default_rng(0).normal(size=(20, 2))
    source = Source({"train": Split(np.ones((20, 3), np.float32), target)}, np.zeros(3), np.ones(3), 0)
    batch = Batches(source, 0, 8, 1, 0, "redealt", "float32").batch(0)
    assert (batch.target.shape, batch.target.dtype) == ((8, 2), np.float32)
    np.testing.assert_array_equal(batch.target, target[batch.samples].astype(np.float32))
    with pytest.raises(InputError, match=r"data\.deal: 'skewed' sorts by label"):
        Batches(source, 0, 8, 2, 0, "skewed", "float32")


@pytest.mark.parametrize("ahead", [False, True])
def test_a_batch_is_valid_until_the_second_next(ahead: bool, monkeypatch):
    monkeypatch.setattr("mpinn.datasets.batches.COSTLY", 0)
    batches = Batches(numbered(), 0, 10, 1, 0, "redealt", "float64", ahead)
    assert isinstance(batches._prepared, Ahead) == ahead
    for before, after in ((0, 1), (1, 5), (5, 7), (9, 10), (3, 25), (26, 27)):
        first = batches.batch(before)
        kept = [array.copy() for array in (first.x, first.target, first.samples)]
        batches.batch(after)
        time.sleep(0.02)  # for what is prepared ahead to be there
        list(batches.evaluation("test", 10))
        for array, copy in zip((first.x, first.target, first.samples), kept, strict=True):
            np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("replicas", [1, 3, 7])
def test_evaluation_covers_the_split_in_its_order(replicas: int):
    source = numbered(101)
    batches = Batches(source, 0, 10, replicas, 0, "redealt", "float64")
    shares = [list(map(copied, batches.evaluation("validation", 16, r, replicas))) for r in range(replicas)]
    assert {len(of_one) for of_one in shares} == {4}
    found = np.concatenate([assemble(list(parts)) for parts in zip(*shares, strict=True)])
    np.testing.assert_array_equal(found, np.arange(50))
    whole = np.concatenate([batch.samples.copy() for batch in batches.evaluation("validation", 16)])
    np.testing.assert_array_equal(whole, np.arange(50))


def copied(batch: Batch) -> Batch:
    x, target, samples = batch.x.copy(), batch.target.copy(), batch.samples.copy()
    return Batch(batch.index, batch.epoch, x, target, batch.count, batch.total, batch.rows, samples)


def largest_allocation(action: Callable[[], object]) -> int:
    """The most memory, in bytes, that ``action`` holds at any time beyond what was there before."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("deal", ["redealt", "fixed", "same", "skewed"])
def test_a_steady_step_allocates_nothing_large(deal: str):
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 255, (20_000, 8, 8, 3)).astype(np.uint8), rng.integers(0, 9, 20_000))
    source = Source({"train": split}, np.ones(3), np.ones(3), 9)
    batches = Batches(source, 0, 2000, 2, 1, deal, "float32")
    batches.batch(0)
    assert split.x[:1000].nbytes > 128 * 1024
    assert largest_allocation(lambda: [batches.batch(step) for step in range(25)]) < 64 * 1024
