"""Data sets in HDF5 files: /train/x, /train/target, as much of validation and test; attributes mean, std, classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import mpinn
from mpinn.array.typing import Array
from mpinn.config import Data, InputError
from mpinn.datasets.samples import Source, Split

CARVE = int.from_bytes(b"carv")
"""Seed of the permutation whose last tenth is the validation split of a file without one; the same in every run."""
CHUNK = 1024
"""Samples that are in float64 at a time while statistics are computed."""


def digits(data: Data) -> Source:
    """The handwritten digits that come with the program."""
    if data.path:
        raise InputError("data.path", f'is read with data.name = "hdf5" only, got {data.path!r}')
    package = Path(mpinn.__file__).parent
    places = (package / "data" / "digits.h5", package.parent / "data" / "digits.h5")
    for place in places:
        if place.is_file():
            return read(place)
    raise InputError("data.name", f"digits needs the file {places[0]} or {places[1]}, and there is neither")


def hdf5(data: Data) -> Source:
    """The file ``data.path``; a tenth of its training split becomes validation if it has none."""
    if not data.path:
        raise InputError("data.path", 'data.name = "hdf5" needs the path of a file')
    return read(Path(data.path))


def read(path: Path) -> Source:
    """All of a file; InputError if it is not complete and sound."""
    if not path.is_file():
        raise InputError("data.path", f"there is no file {str(path)!r}")
    try:
        if not h5py.is_hdf5(path):
            raise InputError("data.path", f"{str(path)!r} is not an HDF5 file")
        # The file is only read: a lock gains nothing, and many shared file systems refuse it.
        with h5py.File(path, "r", locking=False) as file:
            return _Reader(path, file).source()
    except OSError as error:
        raise InputError("data.path", f"{str(path)!r} cannot be read: {error}") from error


@dataclass(frozen=True)
class _Reader:
    path: Path
    file: h5py.File

    def source(self) -> Source:
        splits = {name: self._split(name) for name in ("train", "validation", "test") if self._present(name)}
        classes = self._classes(splits["train"].target)
        note = ""
        if "validation" not in splits:
            splits["train"], splits["validation"] = self._carve(splits["train"])
            note = f"{self.path.name} has no validation split: {splits['validation'].size} samples of train are taken"
        for name, split in splits.items():
            self._check(name, split, splits["train"], classes)
        mean, std = self._statistics(splits["train"].x)
        return Source(splits, mean, std, classes, note)

    def _wrong(self, name: str, message: str) -> InputError:
        return InputError(f"{self.path}:/{name}", message)

    def _present(self, name: str) -> bool:
        return name != "validation" or name in self.file

    def _array(self, name: str) -> Array:
        entry = self.file.get(name)
        if not isinstance(entry, h5py.Dataset):
            raise self._wrong(name, "this data set is missing")
        if entry.dtype.kind not in "uif":
            raise self._wrong(name, f"expected integers or floats, got the type {entry.dtype}")
        values: Array = entry[...]
        return values

    def _split(self, name: str) -> Split:
        x, target = self._array(f"{name}/x"), self._array(f"{name}/target")
        if x.ndim not in (2, 4):
            raise self._wrong(
                f"{name}/x", f"expected the shape (n, features) or (n, height, width, channels), got {x.shape}"
            )
        if target.ndim not in (1, 2):
            raise self._wrong(f"{name}/target", f"expected the shape (n,) or (n, outputs), got {target.shape}")
        if len(x) != len(target):
            raise self._wrong(f"{name}/target", f"{len(target)} targets for {len(x)} samples of x")
        if x.size == 0:
            raise self._wrong(f"{name}/x", f"there are no values in it: its shape is {x.shape}")
        return Split(x, self._labels(name, target) if target.ndim == 1 else self._values(name, target))

    def _labels(self, name: str, target: Array) -> Array:
        if target.dtype.kind == "f" and not np.all(np.isfinite(target) & (target == np.floor(target))):
            raise self._wrong(
                f"{name}/target", "labels must be whole numbers; the targets of a regression are (n, outputs)"
            )
        return target.astype(np.int64)

    def _values(self, name: str, target: Array) -> Array:
        if target.dtype.kind != "f":
            raise self._wrong(
                f"{name}/target", f"a target of shape (n, outputs) must be floats, got {target.dtype}; labels are (n,)"
            )
        self._finite(f"{name}/target", target)
        return target

    def _classes(self, target: Array) -> int:
        if target.ndim == 2:
            return 0
        classes = self.file.attrs.get("classes", target.max() + 1)
        if np.ndim(classes) or np.asarray(classes).dtype.kind not in "ui" or classes < 1:
            raise self._wrong("", f"the attribute classes must be a positive integer, got {classes}")
        return int(classes)

    def _check(self, name: str, split: Split, train: Split, classes: int) -> None:
        if split.x.shape[1:] != train.x.shape[1:]:
            raise self._wrong(f"{name}/x", f"a sample has the shape {split.x.shape[1:]}, in train {train.x.shape[1:]}")
        if split.target.shape[1:] != train.target.shape[1:]:
            raise self._wrong(
                f"{name}/target", f"a target has the shape {split.target.shape[1:]}, in train {train.target.shape[1:]}"
            )
        low, high = split.target.min(), split.target.max()
        if classes and not 0 <= low <= high < classes:
            raise self._wrong(f"{name}/target", f"labels must lie in 0 to {classes - 1}, these lie in {low} to {high}")
        self._finite(f"{name}/x", split.x)

    def _finite(self, name: str, values: Array) -> None:
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(values.min()) and np.isfinite(values.max())
        if not finite:
            raise self._wrong(name, "there are values that are not finite (NaN or infinity)")

    def _carve(self, train: Split) -> tuple[Split, Split]:
        size = max(1, train.size // 10)
        if train.size == 1:
            raise self._wrong("train/x", "one sample cannot be divided into training and validation")
        order = np.random.default_rng(CARVE).permutation(train.size)
        kept, taken = np.sort(order[:-size]), np.sort(order[-size:])
        return Split(train.x[kept], train.target[kept]), Split(train.x[taken], train.target[taken])

    def _statistics(self, x: Array) -> tuple[Array, Array]:
        if not ("mean" in self.file.attrs and "std" in self.file.attrs):
            return statistics(x)
        mean, std = self._attribute("mean", x.shape[-1]), self._attribute("std", x.shape[-1])
        if std.min() <= 0:
            raise self._wrong("", f"the attribute std must be above zero, got {std}")
        return mean, std

    def _attribute(self, name: str, channels: int) -> Array:
        values = np.asarray(self.file.attrs[name])
        if values.shape != (channels,) or values.dtype.kind not in "uif" or not np.isfinite(values).all():
            raise self._wrong("", f"the attribute {name} must be {channels} finite numbers, one for each channel")
        return values.astype(np.float64)


def statistics(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation, (C,) float64, over all axes but the last; a constant channel deviates by 1."""
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    mean: Any = sum(part.sum(axis=axes, dtype=np.float64) for part in _chunks(x)) / count
    square: Any = sum(np.square(part - mean).sum(axis=axes) for part in _chunks(x)) / count
    return mean, np.where(square > 0, np.sqrt(square), 1.0)


def _chunks(x: Array) -> list[Array]:
    return [x[first : first + CHUNK] for first in range(0, len(x), CHUNK)]
