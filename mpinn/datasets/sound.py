"""What makes a data set sound: from arrays by their names to a `Source`, or an error that says what is wrong."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpinn.array.typing import Array
from mpinn.config import InputError
from mpinn.datasets.samples import Samples, Source, Split
from mpinn.datasets.stored import Stored

CARVE = int.from_bytes(b"carv")
"""Seed of the permutation whose last tenth is the validation split of a data set without one; the same in every run."""
CHUNK = 2**20
"""Values, about, that are in float64 at a time while statistics are computed."""

MOST_CLASSES = 100_000
"""From so many on there are as many samples as classes, or the labels are not what they are taken for."""
SHOWN = 5
"""Labels that are named."""
NOT_FINITE = "there are values that are not finite (NaN or infinity)"
COUNT = "labels count classes from 0, and are no identifiers"
LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class Contents:
    """What a file gives: ``arrays`` such as train/x and train/target, and attributes mean, std, classes.

    ``title`` is the file as a user knows it and ``place`` what stands before the name of an array in a message.
    Samples up to ``read`` bytes are read to see that they can be and are finite; the others are taken on trust.
    ``names`` are those that arrays have in the file, where they are others.
    """

    title: str
    place: str
    arrays: Mapping[str, Samples]
    attributes: Mapping[str, Any]
    read: int
    names: Mapping[str, str] = field(default_factory=dict)

    def source(self) -> Source:
        """The data set, with a tenth of train as validation if there is none; raises InputError."""
        splits = {name: self._split(name) for name in ("train", "validation", "test") if self._present(name)}
        classes = self._classes(splits["train"].target)
        notes = [self._unused(splits["train"].target, classes)]
        if "validation" not in splits:
            splits["train"], splits["validation"] = self._carve(splits["train"])
            taken = f"{splits['validation'].size} samples of train are taken"
            notes.insert(0, f"{self.title} has no validation split: {taken}")
        for name, split in splits.items():
            self._check(name, split, splits["train"], classes)
        mean, std = self._statistics(splits["train"].x)
        return Source(splits, mean, std, classes, "; ".join(filter(None, notes)))

    def _wrong(self, name: str, message: str) -> InputError:
        return InputError(f"{self.place}{self.names.get(name, name)}", message)

    def _present(self, name: str) -> bool:
        return name != "validation" or any(array.startswith("validation") for array in self.arrays)

    def _array(self, name: str) -> Samples:
        if name not in self.arrays:
            raise self._wrong(name, "this data set is missing")
        values = self.arrays[name]
        if values.dtype.kind not in "uif":
            raise self._wrong(name, f"expected integers or floats, got the type {values.dtype}")
        return values

    def _split(self, name: str) -> Split:
        x, stored = _images(self._array(f"{name}/x")), self._array(f"{name}/target")
        if x.ndim not in (2, 4):
            raise self._wrong(
                f"{name}/x",
                f"expected the shape (n, features), (n, height, width) or (n, height, width, channels), got {x.shape}",
            )
        if stored.ndim not in (1, 2):
            raise self._wrong(f"{name}/target", f"expected the shape (n,) or (n, outputs), got {stored.shape}")
        target = _column(stored[:])
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
        if (largest := int(target.max())) >= 2**63:
            raise self._wrong(f"{name}/target", f"the largest label is {largest:,}: {COUNT}")
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
        if "classes" not in self.attributes:
            return self._counted(int(target.max()), len(target))
        classes = self.attributes["classes"]
        if np.ndim(classes) or np.asarray(classes).dtype.kind not in "ui" or classes < 1:
            raise self._wrong("", f"the attribute classes must be a positive integer, got {classes}")
        return int(classes)

    def _counted(self, largest: int, samples: int) -> int:
        """The classes of labels, which count from 0."""
        if largest >= max(MOST_CLASSES, samples):
            made = f"the largest label is {largest:,}, which makes {largest + 1:,} classes for {samples:,} samples"
            raise self._wrong("train/target", f"{made}: {COUNT}")
        if largest < 0:
            raise self._wrong("train/target", f"the largest label is {largest}: {COUNT}")
        return largest + 1

    def _unused(self, target: Array, classes: int) -> str:
        """A sentence about labels that were counted among the classes and are not there, as where they begin with 1."""
        if "classes" in self.attributes or target.ndim == 2 or target.min() < 0:
            return ""
        unused = np.flatnonzero(np.bincount(target, minlength=classes) == 0).tolist()
        first = ", ".join(map(str, unused[:SHOWN])) + ", ..." * (len(unused) > SHOWN)
        found = f"of {classes} classes, which labels count from 0, {len(unused)} have no sample in train: {first}"
        return found if unused else ""

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
        if split.x.nbytes <= self.read:
            self._finite(f"{name}/x", split.x)

    def _finite(self, name: str, values: Samples) -> None:
        if not finite(values):
            raise self._wrong(name, NOT_FINITE)
        if values.dtype.itemsize > LARGEST.itemsize and any(np.abs(part).max() > LARGEST for part in chunks(values)):
            raise self._wrong(name, f"there are values beyond {LARGEST:.2g}, the largest of float32: scale them")

    def _carve(self, train: Split) -> tuple[Split, Split]:
        size = max(1, train.size // 10)
        if train.size == 1:
            raise self._wrong("train/x", "one sample cannot be divided into training and validation")
        order = np.random.default_rng(CARVE).permutation(train.size)
        kept, taken = np.sort(order[:-size]), np.sort(order[-size:])
        return train.only(kept), train.only(taken)

    def _statistics(self, x: Samples) -> tuple[Array, Array]:
        if not ("mean" in self.attributes and "std" in self.attributes):
            with np.errstate(over="ignore", invalid="ignore"):
                mean, std = statistics(x)
            if not np.isfinite([*mean, *std]).all():
                large = "the values are too large for their mean and deviation: scale them"
                raise self._wrong("train/x", large if finite(x) else NOT_FINITE)
            return mean, std
        mean, std = self._attribute("mean", x.shape[-1]), self._attribute("std", x.shape[-1])
        if std.min() <= 0:
            raise self._wrong("", f"the attribute std must be above zero, got {std}")
        return mean, std

    def _attribute(self, name: str, channels: int) -> Array:
        values = np.asarray(self.attributes[name])
        if values.shape != (channels,) or values.dtype.kind not in "uif" or not np.isfinite(values).all():
            raise self._wrong("", f"the attribute {name} must be {channels} finite numbers, one for each channel")
        return values.astype(np.float64)


def _images(x: Samples) -> Samples:
    """Images without an axis of channels get one; what is in memory is contiguous."""
    if isinstance(x, Stored):
        return x.with_channel() if x.ndim == 3 else x
    return np.ascontiguousarray(x[..., None] if x.ndim == 3 else x)


def _column(target: Array) -> Array:
    """Labels in a column become a row."""
    return target[:, 0] if target.ndim == 2 and target.shape[1] == 1 and target.dtype.kind in "ui" else target


def statistics(x: Samples) -> tuple[Array, Array]:
    """Mean and standard deviation, (C,) float64, over all axes but the last; a constant channel deviates by 1."""
    axes, count, first = tuple(range(x.ndim - 1)), x.size // x.shape[-1], x[:1].reshape(-1, x.shape[-1])[0]
    mean: Any = sum(part.sum(axis=axes, dtype=np.float64) for part in chunks(x)) / count
    square, constant = np.zeros_like(mean), np.ones(len(mean), bool)
    for part in chunks(x):
        square += np.square(part - mean).sum(axis=axes)
        # The rounded mean of equal values is not always their value.
        constant &= (part == first).all(axis=axes)
    return mean, np.where(constant | (square == 0), 1.0, np.sqrt(square / count))


def finite(x: Samples) -> bool:
    """Whether no value is NaN or infinity."""
    return all(np.isfinite(part).all() for part in chunks(x))


def chunks(x: Samples) -> Iterator[Array]:
    """All samples in order, a moderate number at a time."""
    rows = max(1, CHUNK * len(x) // x.size)
    for first in range(0, len(x), rows):
        yield x[first : first + rows]
