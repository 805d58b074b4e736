"""Data files that were damaged at random, or claim what they have not: sound data or a clean error."""

import io
import random
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from fuzz import damage, in_child
from numpy.lib.format import write_array_header_1_0

from mpinn.config import Data
from mpinn.datasets.source import check_source, open_source
from mpinn.errors import InputError

TIMES = 300
X, LABELS = np.random.default_rng(0).random((20, 3), np.float32), np.arange(20) % 3


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w", libver="v110") as file:
        for split in ("train", "test"):
            file.create_dataset(f"{split}/x", data=X, chunks=(5, 3), fletcher32=True)
            file.create_dataset(f"{split}/target", data=LABELS, chunks=(20,), fletcher32=True)
        texts = {"title": "three columns", "class_names": ["none", "one", "two"], "origin": "drawn " * 20}
        file.attrs.update({"mean": X.mean(0), "std": X.std(0), "classes": 3, **texts})


def write_old_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for split in ("train", "test"):
            file[f"{split}/x"], file[f"{split}/target"] = X, LABELS


def write_npz(path: Path) -> None:
    np.savez(path, x_train=X, y_train=LABELS, x_test=X, y_test=LABELS)


def write_compressed(path: Path) -> None:
    np.savez_compressed(path, x_train=X, y_train=LABELS, x_test=X, y_test=LABELS)


@pytest.mark.parametrize(
    ("name", "write"),
    [("hdf5", write_hdf5), ("hdf5", write_old_hdf5), ("npz", write_npz), ("npz", write_compressed)],
    ids=["hdf5", "old hdf5", "npz", "compressed npz"],
)
def test_damaged_data_are_sound_or_a_clean_error(name: str, write: object, tmp_path: Path) -> None:
    path = tmp_path / f"data.{name}"
    write(path)
    good, data = path.read_bytes(), Data(name=name, path=str(path), batch=5)
    assert check_source(data)["sizes"]["train"] == 18

    def program() -> None:
        chance, refused = random.Random(0), 0
        for _ in range(TIMES):
            path.write_bytes(damage(good, chance))
            try:
                check_source(data)
                x = open_source(data).splits["train"].x[:]
            except InputError:
                refused += 1
            else:
                assert x.shape[1:] == (3,)
                # what has a checksum is never another number
                assert write in (write_old_hdf5, write_npz) or all((row == X).all(axis=1).any() for row in x)
        assert TIMES / 10 < refused < TIMES

    in_child(program)


def enormous_hdf5(path: Path) -> None:
    write_hdf5(path)
    with h5py.File(path, "r+") as file:
        del file["train/target"]
        file.create_dataset("train/target", (1 << 44,), "i8", chunks=(1 << 20,))


def enormous_npz(path: Path) -> None:
    write_npz(path)
    header = io.BytesIO()
    write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 44, 3)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_validation.npy", header.getvalue() + X.tobytes())


@pytest.mark.parametrize(("name", "write"), [("hdf5", enormous_hdf5), ("npz", enormous_npz)])
def test_sizes_are_checked_before_memory_is_taken(name: str, write: object, tmp_path: Path) -> None:
    path = tmp_path / f"data.{name}"
    write(path)

    def program() -> None:
        with pytest.raises(InputError, match=r"claims .* too few"):
            check_source(Data(name=name, path=str(path), batch=5))

    in_child(program)


def test_compressed_zeros_are_no_claim(tmp_path: Path) -> None:
    path, x = tmp_path / "data.npz", np.zeros((5000, 100), np.float32)
    x[0] = 1
    labels = np.arange(5000) % 2
    np.savez_compressed(path, x_train=x, y_train=labels, x_test=x, y_test=labels)
    assert check_source(Data(name="npz", path=str(path), batch=5))["sizes"]["test"] == 5000
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        for split in ("train", "test"):
            file.create_dataset(f"{split}/x", data=x, compression="gzip", compression_opts=9, chunks=x.shape)
            file.create_dataset(f"{split}/target", data=labels, compression="gzip")
    assert check_source(Data(name="hdf5", path=str(path), batch=5))["sizes"]["test"] == 5000


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x_train=np.array([print], object), y_train=LABELS, x_test=X, y_test=LABELS)
    with pytest.raises(InputError):
        check_source(Data(name="npz", path=str(path), batch=5))
