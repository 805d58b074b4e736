"""Samples in a file: any of them in any order, and only as many in memory as were asked for."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpinn.config import Data
from mpinn.datasets.batches import Batches
from mpinn.datasets.hdf5 import write_hdf5
from mpinn.datasets.samples import Source, Split
from mpinn.datasets.source import check_source, open_source
from mpinn.datasets.stored import Stored

X = np.random.default_rng(0).integers(0, 1000, (60, 3, 2)).astype(">i4")


@pytest.fixture(scope="module", params=[None, (7, 3, 2)])
def file(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "a.h5"
    with h5py.File(path, "w") as made:
        made.create_dataset("x", data=X, chunks=request.param)
    return path


@settings(deadline=None)
@given(samples=st.lists(st.integers(0, 59), max_size=40), chosen=st.lists(st.integers(0, 59), min_size=60))
def test_any_samples_in_any_order(file, samples: list[int], chosen: list[int]):
    stored, wanted = Stored(file, "x", X.shape, X.dtype), np.array(samples, np.int64)
    assert (stored.shape, stored.ndim, stored.size, stored.nbytes) == (X.shape, 3, 360, 1440)
    out = np.full((len(wanted), 3, 2), -1, np.int32)
    stored.take(wanted, out)
    np.testing.assert_array_equal(out, X[wanted])
    some = stored.only(np.array(chosen))
    assert len(some) == len(chosen)
    some.take(wanted, out)
    np.testing.assert_array_equal(out, X[np.array(chosen)[wanted]])
    np.testing.assert_array_equal(some.only(wanted)[:], X[np.array(chosen)[wanted]])


@settings(deadline=None)
@given(samples=st.lists(st.integers(0, 59), max_size=40), chosen=st.lists(st.integers(0, 59), min_size=60))
def test_images_with_an_axis_of_channels_that_the_file_has_not(file, samples: list[int], chosen: list[int]):
    images, wanted = Stored(file, "x", X.shape, X.dtype).with_channel(), np.array(samples, np.int64)
    assert (images.shape, images.ndim, images.size) == ((60, 3, 2, 1), 4, 360)
    np.testing.assert_array_equal(images[wanted], X[wanted, ..., None])
    some = images.only(np.array(chosen))
    np.testing.assert_array_equal(some[wanted], X[np.array(chosen)[wanted], ..., None])
    np.testing.assert_array_equal(some.only(wanted)[:], X[np.array(chosen)[wanted], ..., None])


def test_slices_are_in_memory_and_in_the_machines_own_order(file):
    stored = Stored(file, "x", X.shape, X.dtype)
    for part in (slice(None), slice(3, 9), slice(50, 99), slice(None, None, -7)):
        np.testing.assert_array_equal(stored[part], X[part])
    assert stored[:].dtype == np.dtype(np.int32)


def large(tmp_path: Path, samples: int = 512) -> Data:
    """A file with 2 MiB for training."""
    rng = np.random.default_rng(0)
    parts = (("train", samples), ("validation", 8), ("test", 8))
    splits = {name: Split(rng.integers(0, 256, (n, 4096)).astype(np.uint8), np.arange(n) % 4) for name, n in parts}
    write_hdf5(tmp_path / "large.h5", Source(splits, np.ones(4096), np.ones(4096), 4), {})
    return Data(name="hdf5", path=str(tmp_path / "large.h5"), batch=8, memory=1 / 1024)


def test_what_is_larger_than_memory_stays_in_the_file(tmp_path):
    data = large(tmp_path)
    source = open_source(data)
    assert isinstance(source.held("train"), Stored)
    assert isinstance(source.held("test"), np.ndarray)
    assert isinstance(source.held("train", np.arange(0, 512, 2)), np.ndarray)
    assert check_source(data)["sizes"]["train"] == 512


@pytest.mark.parametrize("deal", ["fixed", "skewed"])
def test_a_rank_holds_its_shard_alone(deal: str, tmp_path):
    from test_batches import largest_allocation

    data = large(tmp_path, 4096)
    source = open_source(Data(name="hdf5", path=data.path))
    Batches(open_source(data), 0, 8, 8, 3, deal, "float32").batch(0)
    held: list[Batches] = []
    assert largest_allocation(lambda: held.append(Batches(source, 0, 8, 8, 3, deal, "float32"))) < 4096 * 4096 // 6


def test_damage_is_told_with_the_place(tmp_path):
    data = large(tmp_path)
    with h5py.File(data.path, locking=False) as made:
        place = made["train/x"].id.get_chunk_info(5).byte_offset
    content = bytearray(Path(data.path).read_bytes())
    content[place + 100] ^= 1
    Path(data.path).write_bytes(content)
    batches = Batches(open_source(data), 0, 512, 1, 0, "redealt", "float32")
    with pytest.raises(OSError, match=r"large\.h5:/train/x: sample \d+, or one soon after it, cannot be read: "):
        batches.batch(0)
