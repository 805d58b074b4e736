"""Augmentation: what is drawn, that it does what it says, and that no grid changes it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mpinn.config import Data, InputError
from mpinn.datasets.augment import Augmentation
from mpinn.datasets.batches import Batch, Batches
from mpinn.datasets.hdf5 import write_hdf5
from mpinn.datasets.samples import Source, Split
from mpinn.datasets.source import check_source, open_source

DEALS = ["redealt", "fixed", "same", "skewed"]


def images(n: int = 90, channels: int = 3, dtype: str = "uint8") -> Source:
    rng = np.random.default_rng(0)
    splits = {
        name: Split(rng.integers(1, 256, (size, 9, 8, channels)).astype(dtype), np.arange(size) % 4)
        for name, size in (("train", n), ("validation", 20), ("test", 20))
    }
    return Source(splits, np.linspace(50, 60, channels), np.linspace(9, 13, channels), 4)


def stored(tmp_path: Path, source: Source, **options: object) -> Source:
    write_hdf5(tmp_path / "images.h5", source, {})
    return open_source(Data(name="hdf5", path=str(tmp_path / "images.h5"), **options))


def reference(x: np.ndarray, crop: int, down: int, right: int, flip: bool) -> np.ndarray:
    """A window of the padded image, moved by -down and -right, mirrored."""
    padded = np.pad(x, ((crop, crop), (crop, crop), (0, 0)))
    window = padded[crop - down : crop - down + x.shape[0], crop - right : crop - right + x.shape[1]]
    return np.flip(window, axis=1) if flip else window


@pytest.mark.parametrize(("crop", "flip"), [(4, True), (4, False), (0, True), (7, True), (1, False)])
@pytest.mark.parametrize(("channels", "stored_as"), [(3, "uint8"), (1, "uint8"), (2, "float32"), (3, "float64")])
def test_a_training_batch_is_the_plain_one_with_each_image_moved_and_flipped(crop, flip, channels, stored_as):
    source = images(channels=channels, dtype=stored_as)
    augmentation = Augmentation(crop, flip)
    changed = Source(source.splits, source.mean, source.std, 4, augmentation=augmentation)
    batches = Batches(changed, 3, 40, 1, 0, "redealt", "float32")
    for step in (0, 2, 4):
        batch = batches.batch(step)
        drawn = augmentation.draw((3, batch.epoch), batch.samples)
        chosen = source.splits["train"].x[batch.samples]
        expected = np.stack([reference(x, crop, *each) for x, *each in zip(chosen, *drawn, strict=True)])
        expected = expected.astype(np.float32) - source.mean.astype(np.float32)
        np.testing.assert_array_equal(batch.x, expected / source.std.astype(np.float32))
        np.testing.assert_array_equal(batch.target, source.splits["train"].target[batch.samples])


def test_what_is_drawn_is_uniform_and_independent():
    down, right, flip = Augmentation(2, True).draw((7, 1), np.arange(50_000))
    counts = np.zeros((5, 5, 2))
    np.add.at(counts, (down + 2, right + 2, flip.astype(int)), 1)
    expected = 50_000 / 50
    assert (
        (counts - expected) ** 2 / expected
    ).sum() < 90  # chi-squared, 49 degrees of freedom: exceeded once in 3,000


def test_seeds_epochs_and_samples_are_drawn_apart():
    samples, augmentation = np.arange(1000), Augmentation(4, True)
    draws = {key: np.stack(augmentation.draw(key, samples)) for key in ((0, 0), (0, 1), (1, 0), (2**63 - 1, 0))}
    for one in draws:
        for other in draws:
            assert (one == other) or (draws[one] != draws[other]).any(axis=0).mean() > 0.95
    some = samples[::-7]
    np.testing.assert_array_equal(np.stack(augmentation.draw((0, 1), some)), draws[0, 1][:, some])
    assert not np.stack(Augmentation().draw((0, 0), samples)).any()


def union(shares: list[Batch]) -> np.ndarray:
    """The global batch that the replicas see together."""
    out = np.full((shares[0].total, *shares[0].x.shape[1:]), np.nan)
    for share in shares:
        start, stride = share.rows
        out[start + stride * np.arange(share.count)] = share.x
    assert not np.isnan(out).any()
    return out


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
@pytest.mark.parametrize("memory", [2.0, 0.0])
@pytest.mark.parametrize("ahead", [False, True])
def test_the_replicas_together_see_the_serial_batches(replicas: int, memory: float, ahead: bool, tmp_path):
    source = images()
    changed = Source(source.splits, source.mean, source.std, 4, augmentation=Augmentation(3, True))
    serial = Batches(changed, 5, 32, 1, 0, "redealt", "float32")
    files = [stored(tmp_path, source, crop=3, flip=True, memory=memory) for _ in range(replicas)]
    parallel = [Batches(file, 5, 32, replicas, r, "redealt", "float32", ahead) for r, file in enumerate(files)]
    for step in range(7):
        shares = [batches.batch(step) for batches in parallel]
        np.testing.assert_array_equal(union(shares), serial.batch(step).x)


@pytest.mark.parametrize("deal", DEALS)
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_streamed_and_prepared_ahead_are_the_batches_of_memory_bit_for_bit(deal: str, replicas: int, tmp_path):
    source = images()
    changed = Source(source.splits, source.mean, source.std, 4, augmentation=Augmentation(2, True))
    for replica in range(replicas):
        memory = Batches(changed, 1, 32, replicas, replica, deal, "float32")
        others = [
            Batches(stored(tmp_path, source, crop=2, flip=True, memory=m), 1, 32, replicas, replica, deal, "float32", a)
            for m in (2.0, 0.0)
            for a in (False, True)
        ]
        for step in (0, 1, 2, 3, 9, 2, 4, 5, 5):
            expected = memory.batch(step)
            for batch in (batches.batch(step) for batches in others):
                np.testing.assert_array_equal(batch.x, expected.x)
                np.testing.assert_array_equal(batch.target, expected.target)
                np.testing.assert_array_equal(batch.samples, expected.samples)
                assert (batch.index, batch.epoch, batch.total, batch.rows) == (
                    step, expected.epoch, expected.total, expected.rows
                )  # fmt: skip


def test_evaluation_is_not_augmented():
    source = images()
    changed = Source(source.splits, source.mean, source.std, 4, augmentation=Augmentation(4, True))
    for split in ("validation", "train"):
        plain, other = (Batches(s, 0, 32, 1, 0, "redealt", "float64").evaluation(split, 7) for s in (source, changed))
        for one, two in zip(plain, other, strict=True):
            np.testing.assert_array_equal(one.x, two.x)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"crop": 4}, (6,), r"data\.crop: needs images \(height, width, channels\), but a sample is \(6,\)"),
        ({"flip": True}, (6,), r"data\.flip: needs images"),
        ({"crop": 5}, (9, 5, 1), r"data\.crop: 5 pixels of padding leave nothing of images of \(9, 5\)"),
    ],
)
def test_what_cannot_be_augmented_is_said(options, shape, message, tmp_path):
    split = Split(np.ones((20, *shape), np.uint8), np.zeros(20, np.int64))
    write_hdf5(
        tmp_path / "a.h5",
        Source(dict.fromkeys(("train", "validation", "test"), split), np.ones(shape[-1]), np.ones(shape[-1]), 1),
        {},
    )
    with pytest.raises(InputError, match=message):
        check_source(Data(name="hdf5", path=str(tmp_path / "a.h5"), batch=8, **options))


@pytest.mark.parametrize("memory", [2.0, 0.0])
def test_a_steady_step_allocates_nothing_large(memory: float, tmp_path):
    from test_batches import largest_allocation

    source = images(n=4000)
    batches = Batches(stored(tmp_path, source, crop=2, flip=True, memory=memory), 0, 256, 2, 1, "fixed", "float32")
    assert batches.batch(0).x.nbytes > 100_000
    run: Callable[[], object] = lambda: [batches.batch(step) for step in range(12)]  # noqa: E731
    assert largest_allocation(run) < 64 * 1024
