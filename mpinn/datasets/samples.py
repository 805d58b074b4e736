"""Samples in memory: the splits of a data set as arrays, and how a batch of them is gathered and normalised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpinn.array.typing import Array, Shape


@dataclass(frozen=True, slots=True)
class Split:
    """One split: ``x`` (n, ...) in the file's own dtype; ``target`` (n,) int64 labels or (n, O) floats."""

    x: Array
    target: Array

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.x)


@dataclass(frozen=True, slots=True)
class Source:
    """A data set: its splits train, validation and test, and the statistics of a channel over the training split.

    ``mean`` and ``std`` are (C,) float64, C the last axis of a sample; ``classes`` is 0 for a regression; ``note`` says
    what the user should know about how the splits came to be, if anything.
    """

    splits: Mapping[str, Split]
    mean: Array
    std: Array
    classes: int
    note: str = ""

    @property
    def sample_shape(self) -> Shape:
        """The shape of one ``x``: (features,) or (H, W, C)."""
        return self.splits["train"].x.shape[1:]

    def summary(self) -> dict[str, Any]:
        """What the other ranks and the log need to know, as JSON can hold it."""
        return {
            "sizes": {name: split.size for name, split in self.splits.items()},
            "sample_shape": list(self.sample_shape),
            "target_shape": list(self.splits["train"].target.shape[1:]),
            "classes": self.classes,
            "note": self.note,
        }


class Normalised:
    """The ``x`` of one split, normalised as it is gathered: (x - mean) / std of each channel, in ``dtype``."""

    def __init__(self, source: Source, split: str, dtype: str | np.dtype[Any]):
        self._x = source.splits[split].x
        # Spread over a row of pixels, since NumPy's inner loop is slow if it ends after the few channels of one pixel.
        row = source.sample_shape[-2:] if len(source.mean) > 1 else (1,)
        self._mean = np.broadcast_to(source.mean, row).astype(dtype)
        self._std = np.broadcast_to(source.std, row).astype(dtype)

    def gather(self, samples: Array, raw: Array, out: Array) -> None:
        """Write the chosen samples into ``out``; ``raw`` is scratch of the same shape in the dtype of the split.

        ``raw`` may be ``out`` where the two dtypes are the same.
        """
        # mode="raise" would buffer the whole result; the indices are our own.
        np.take(self._x, samples, axis=0, out=raw, mode="clip")
        if raw is not out:
            np.copyto(out, raw, casting="same_kind")
        np.subtract(out, self._mean, out=out)
        np.divide(out, self._std, out=out)
