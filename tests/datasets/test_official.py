"""The official formats of MNIST and CIFAR: what sound files give, and what is said of each that is not."""

import gzip
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpinn.config import Data, InputError
from mpinn.datasets import official
from mpinn.datasets.cifar import CIFAR10, CIFAR100, Cifar
from mpinn.datasets.originals import divide
from mpinn.datasets.samples import Split
from mpinn.datasets.source import check_source, open_source

IMAGES = 40
"""Images in a file of the small CIFAR."""


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, compressed: bool = False, dot: str = "-", n: int = 120) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    arrays = {}
    for name, size in (("train", n), ("t10k", 30)):
        arrays[f"{name}-images{dot}idx3-ubyte"] = rng.integers(0, 256, (size, 6, 5)).astype(np.uint8)
        arrays[f"{name}-labels{dot}idx1-ubyte"] = (np.arange(size) % 10).astype(np.uint8)
    for name, array in arrays.items():
        content = idx(array)
        (folder / (name + ".gz" * compressed)).write_bytes(gzip.compress(content) if compressed else content)
    return arrays


def small(cifar: Cifar) -> Cifar:
    """The same format with fewer images in each file."""
    binary, python = (
        replace(version, images=dict.fromkeys(version.files, IMAGES)) for version in (cifar.binary, cifar.python)
    )
    return replace(cifar, binary=binary, python=python)


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    known = dict(official.OFFICIAL)
    known["cifar10"] = replace(known["cifar10"], read=small(CIFAR10).read)
    known["cifar100"] = replace(known["cifar100"], read=small(CIFAR100).read)
    monkeypatch.setattr(official, "OFFICIAL", known)
    monkeypatch.setenv("MPINN_DATA", str(tmp_path / "converted"))


def images(cifar: Cifar, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What a file holds: x (IMAGES, 32, 32, 3) and labels."""
    rng = np.random.default_rng(sum(name.removesuffix(".bin").encode()))
    return rng.integers(0, 256, (IMAGES, 32, 32, 3)).astype(np.uint8), np.arange(IMAGES) % (10 * cifar.label_bytes**3)


def binary(cifar: Cifar, name: str) -> bytes:
    x, target = images(cifar, name)
    coarse = [np.full((IMAGES, 1), 255)] * (cifar.label_bytes - 1)
    planes = x.transpose(0, 3, 1, 2).reshape(IMAGES, 3072)
    return np.hstack([*coarse, target[:, None], planes]).astype(np.uint8).tobytes()


def python(cifar: Cifar, name: str, **changes: object) -> bytes:
    x, target = images(cifar, name)
    content = {
        "batch_label": name,
        "data": x.transpose(0, 3, 1, 2).reshape(IMAGES, 3072),
        cifar.label_key: target.tolist(),
        "filenames": ["a.png"] * IMAGES,
    }
    return pickle.dumps(content | changes, 2)


def write_cifar(folder: Path, cifar: Cifar, form: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    version, one = (cifar.binary, binary) if form == "binary" else (cifar.python, python)
    for name in version.files:
        (folder / name).write_bytes(one(cifar, name))
    names = [f"class{i}" for i in range(10)]
    content = "\n".join([*names, ""]).encode() if form == "binary" else pickle.dumps({cifar.names_key: names}, 2)
    (folder / version.names).write_bytes(content)
    return [folder / name for name in (*version.files, version.names)]


def refusal(data: Data) -> str:
    with pytest.raises(InputError) as caught:
        check_source(data)
    return str(caught.value)


def everything(data: Data, train: tuple[str, ...] = ("train", "validation")) -> tuple[np.ndarray, np.ndarray]:
    """All samples of some splits, in the order of their values."""
    splits = [open_source(data).splits[name] for name in train]
    x, target = np.concatenate([s.x[:] for s in splits]), np.concatenate([s.target for s in splits])
    order = np.lexsort(x.reshape(len(x), -1)[:, :8].T)
    return x[order], target[order]


@pytest.mark.parametrize(("compressed", "dot"), [(False, "-"), (True, "-"), (False, ".")])
def test_mnist(compressed: bool, dot: str, tmp_path):
    arrays = write_mnist(tmp_path / "m", compressed, dot)
    data = Data(name="mnist", path=str(tmp_path / "m"), batch=8)
    summary = check_source(data)
    assert summary["sizes"] == {"train": 110, "validation": 10, "test": 30}
    assert (summary["sample_shape"], summary["classes"]) == ([6, 5, 1], 10)
    source = open_source(data)
    np.testing.assert_array_equal(source.splits["test"].x[..., 0], arrays[f"t10k-images{dot}idx3-ubyte"])
    np.testing.assert_array_equal(source.splits["test"].target, arrays[f"t10k-labels{dot}idx1-ubyte"])
    x, target = everything(data)
    order = np.lexsort(arrays[f"train-images{dot}idx3-ubyte"].reshape(120, -1)[:, :8].T)
    np.testing.assert_array_equal(x[..., 0], arrays[f"train-images{dot}idx3-ubyte"][order])
    np.testing.assert_array_equal(target, arrays[f"train-labels{dot}idx1-ubyte"][order])
    np.testing.assert_allclose(source.mean, source.splits["train"].x.mean())
    np.testing.assert_allclose(source.std, source.splits["train"].x.std())
    assert np.bincount(source.splits["validation"].target).tolist() == [1] * 10


IMAGES_FILE, LABELS_FILE = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
BAD_IDX: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "not idx": (IMAGES_FILE, lambda _: b"<html>", "is not an IDX file: it begins with 3c 68 74 6d"),
    "empty": (IMAGES_FILE, lambda _: b"", "is not an IDX file: it begins with nothing"),
    "labels as images": (
        IMAGES_FILE,
        lambda c: idx(np.zeros(9)),
        "expected bytes with 3 axes (magic 00 00 08 03), got 00 00 08 01",
    ),
    "floats": (
        IMAGES_FILE,
        lambda c: c[:2] + b"\x0d" + c[3:],
        "expected bytes with 3 axes (magic 00 00 08 03), got 00 00 0d 03",
    ),
    "short header": (LABELS_FILE, lambda c: c[:6], "ends within its header, after 6 bytes"),
    "cut": (IMAGES_FILE, lambda c: c[:-7], "its header announces 120 x 6 x 5 bytes, but 3593 follow"),
    "longer": (IMAGES_FILE, lambda c: c + b"a", "its header announces 120 x 6 x 5 bytes, but 3601 follow"),
    "huge": (
        IMAGES_FILE,
        lambda c: c[:4] + b"\xff" * 12,
        "its header announces 4294967295 x 4294967295 x 4294967295 bytes, but 0 follow",
    ),
    "fewer labels": (LABELS_FILE, lambda c: idx(np.zeros(29)), "29 labels for the 30 images of t10k-images-idx3-ubyte"),
    "cut gzip": (IMAGES_FILE, lambda c: gzip.compress(c)[:-9], "cannot be read: "),
    "damaged gzip": (IMAGES_FILE, lambda c: gzip.compress(c)[:40] + b"abc" + gzip.compress(c)[43:], "cannot be read: "),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_what_is_wrong_with_an_idx_file_is_said(case: str, tmp_path):
    write_mnist(tmp_path)
    name, change, message = BAD_IDX[case]
    path = tmp_path / name
    path.write_bytes(change(path.read_bytes()))
    said = refusal(Data(name="mnist", path=str(tmp_path), batch=8))
    assert said.startswith(f"{path}: {message}")


def test_files_without_images(tmp_path):
    write_mnist(tmp_path, n=0)
    said = refusal(Data(name="mnist", path=str(tmp_path), batch=8))
    assert said == f"{tmp_path / IMAGES_FILE}: there are no values in it: its shape is (0, 6, 5)"


def test_what_is_wrong_with_a_folder_of_mnist_is_said(tmp_path):
    data = Data(name="mnist", path=str(tmp_path / "m"), batch=8)
    assert refusal(data) == f"{tmp_path}/m: there is no such folder"
    write_mnist(tmp_path / "m")
    (tmp_path / "m" / LABELS_FILE).write_bytes(idx(np.full(30, 10)))
    assert refusal(data) == f"{tmp_path}/m: there is the label 10, but MNIST has 0 to 9"
    (tmp_path / "m" / LABELS_FILE).unlink()
    assert refusal(data) == f"{tmp_path}/m: there is neither {LABELS_FILE} nor {LABELS_FILE}.gz in it"


@pytest.mark.parametrize("form", ["binary", "python"])
@pytest.mark.parametrize(("name", "whole"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
@pytest.mark.parametrize("place", ["folder", "inside", "archive", "folder of archive"])
def test_cifar(form: str, name: str, whole: Cifar, place: str, tmp_path):
    version = getattr(whole, form)
    files = write_cifar(tmp_path / version.folder, whole, form)
    path = tmp_path / version.folder
    if place == "inside":
        path = tmp_path
    elif "archive" in place:
        path = tmp_path / "archives" / version.archive
        path.parent.mkdir()
        with tarfile.open(path, "w:gz") as archive:
            for file in files:
                archive.add(file, f"{version.folder}/{file.name}")
        path = path.parent if "folder" in place else path
    data = Data(name=name, path=str(path), batch=8)
    summary = check_source(data)
    assert (summary["sample_shape"], summary["classes"]) == ([32, 32, 3], 10 if name == "cifar10" else 100)
    for found, expected in ((everything(data), version.train), (everything(data, ("test",)), version.test)):
        parts = [images(whole, part) for part in expected]
        x, target = np.concatenate([x for x, _ in parts]), np.concatenate([target for _, target in parts])
        order = np.lexsort(x.reshape(len(x), -1)[:, :8].T)
        np.testing.assert_array_equal(found[0], x[order])
        np.testing.assert_array_equal(found[1], target[order])
    assert official.OFFICIAL[name].source(path)[1] == tuple(f"class{i}" for i in range(10))


def test_what_is_wrong_with_binary_cifar_is_said(tmp_path):
    write_cifar(tmp_path, CIFAR10, "binary")
    data = Data(name="cifar10", path=str(tmp_path), batch=8)
    good = (tmp_path / "data_batch_3.bin").read_bytes()
    (tmp_path / "data_batch_3.bin").write_bytes(good[:-3073])
    assert refusal(data) == (f"{tmp_path}/data_batch_3.bin: expected 40 records of 3073 bytes, 122920, got 119847")
    (tmp_path / "data_batch_3.bin").write_bytes(b"\x0a" + good[1:])
    assert refusal(data) == f"{tmp_path}: there is the label 10, but CIFAR-10 has 0 to 9"
    (tmp_path / "data_batch_3.bin").unlink()
    assert refusal(data) == f"{tmp_path}: data_batch_3.bin missing in it"
    (tmp_path / "data_batch_1.bin").unlink()
    assert refusal(data) == (
        f"{tmp_path}: there is none of data_batch_1.bin or cifar-10-binary.tar.gz, "
        "data_batch_1 or cifar-10-python.tar.gz in it"
    )
    assert refusal(replace(data, path=str(tmp_path / "no"))) == f"{tmp_path}/no: there is no such folder or archive"
    (tmp_path / "a.tar.gz").write_bytes(b"no archive")
    assert refusal(replace(data, path=str(tmp_path / "a.tar.gz"))) == (
        f"{tmp_path}/a.tar.gz: cannot be read as an archive: file could not be opened successfully"
    )


REFUSED, DATA = "is not a file of CIFAR's Python version: it ", "expected data to be uint8 (40, 3072), got "
LABELS = "expected labels to be a list of 40 whole numbers from 0"
BAD_PYTHON: dict[str, tuple[bytes, str]] = {
    "malicious": (b"cos\nsystem\n(S'x'\ntR.", f"{REFUSED}names 'os.system', which is not plain data"),
    "no pickle": (b"<html>", REFUSED),
    "a list": (pickle.dumps([1]), "expected a dict, got list"),
    "no data": (pickle.dumps({"labels": [1]}), f"{DATA}NoneType"),
    "floats": (python(CIFAR10, "a", data=np.zeros((40, 3072))), f"{DATA}float64 (40, 3072)"),
    "fewer": (python(CIFAR10, "a", data=np.zeros((39, 3072), np.uint8)), f"{DATA}uint8 (39, 3072)"),
    "fewer labels": (python(CIFAR10, "a", labels=[1] * 39), LABELS),
    "negative": (python(CIFAR10, "a", labels=[-1] * 40), LABELS),
    "text": (python(CIFAR10, "a", labels=["1"] * 40), LABELS),
}


@pytest.mark.parametrize("case", BAD_PYTHON)
def test_what_is_wrong_with_cifars_python_version_is_said(case: str, tmp_path):
    write_cifar(tmp_path, CIFAR10, "python")
    content, message = BAD_PYTHON[case]
    (tmp_path / "test_batch").write_bytes(content)
    said = refusal(Data(name="cifar10", path=str(tmp_path), batch=8))
    assert said.startswith(f"{tmp_path}/test_batch: {message}")


@pytest.mark.parametrize("size", [1, 7, 100, 250])
def test_what_is_taken_has_every_label_in_proportion(size: int):
    target = np.repeat(np.arange(4), (300, 100, 400, 200))
    split = Split(np.arange(1000)[:, None], target)
    kept, taken = divide(split, size)
    assert taken.size == size
    np.testing.assert_array_equal(np.sort(np.concatenate([kept.x[:, 0], taken.x[:, 0]])), np.arange(1000))
    np.testing.assert_array_equal(taken.target, target[taken.x[:, 0]])
    expected = np.bincount(target) * size / 1000
    assert np.abs(np.bincount(taken.target, minlength=4) - expected).max() < 1
    np.testing.assert_array_equal(divide(split, size)[1].x, taken.x)


def test_where_nothing_is_converted_yet_the_command_is_said(tmp_path):
    assert refusal(Data(name="cifar100")) == (
        f"data.name: cifar100 is not on this machine yet ({tmp_path}/converted/cifar100.h5): type "
        "`python -m mpinn data cifar100` to download it, or `python -m mpinn data cifar100 --from FOLDER` "
        "if you have its files"
    )
