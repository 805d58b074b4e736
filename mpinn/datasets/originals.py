"""What the files of an official data set contain, and how it is divided into three splits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpinn.array.typing import Array
from mpinn.config import InputError
from mpinn.datasets.samples import Source, Split
from mpinn.datasets.sound import statistics

DIVIDE = int.from_bytes(b"divi")
"""Seed of the order from which validation is taken; the same in every run."""


@dataclass(frozen=True)
class Originals:
    """The two splits that the authors of a data set made, uint8 images (n, H, W, C), and the names of its classes."""

    train: Split
    test: Split
    names: tuple[str, ...]


@dataclass(frozen=True)
class Official:
    """A data set that the program knows: how its files are read, and where they are from.

    ``downloads`` are (file, SHA-256); each is asked for at the ``places`` in turn.
    """

    title: str
    classes: int
    validation: int
    """One in so many samples of train is taken for validation."""
    read: Callable[[Path], Originals]
    places: tuple[str, ...]
    downloads: tuple[tuple[str, str], ...]

    def source(self, path: Path) -> tuple[Source, tuple[str, ...]]:
        """The data set in the user's folder or archive, divided, and the names of its classes; raises InputError."""
        originals = self.read(path)
        for split in (originals.train, originals.test):
            high = int(split.target.max())
            if high >= self.classes:
                raise InputError(str(path), f"there is the label {high}, but {self.title} has 0 to {self.classes - 1}")
        train, validation = divide(originals.train, max(1, round(originals.train.size / self.validation)))
        splits = {"train": train, "validation": validation, "test": originals.test}
        return Source(splits, *statistics(train.x), self.classes), originals.names


def divide(split: Split, size: int) -> tuple[Split, Split]:
    """The split without, and with nothing but, ``size`` samples that have every label in proportion, within one."""
    if not 0 < size < split.size:
        raise InputError("data.path", f"{split.size} samples cannot be divided into training and validation")
    shuffled = np.random.default_rng(DIVIDE).permutation(split.size)
    ordered = shuffled[np.argsort(split.target[shuffled], kind="stable")]
    taken = np.sort(ordered[(2 * np.arange(size) + 1) * split.size // (2 * size)])
    return split.only(np.setdiff1d(np.arange(split.size), taken)), split.only(taken)


def labels(values: Array) -> Array:
    """Labels as a `Split` has them."""
    return values.astype(np.int64)
