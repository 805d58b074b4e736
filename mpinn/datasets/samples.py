"""The splits of a data set, and how a batch of samples is gathered, augmented and normalised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from mpinn.array.typing import Array, Dtype, Shape
from mpinn.datasets.augment import Augmentation
from mpinn.datasets.stored import Stored

Samples: TypeAlias = Array | Stored
GIB = 2**30
MOST = 1100
"""Bytes that a byte in a file can become: no more than deflate's 1032, and what stands around it."""
PLAIN = Augmentation()


@dataclass(frozen=True, slots=True)
class Split:
    """One split: ``x`` (n, ...) in the file's own dtype; ``target`` (n,) int64 labels or (n, O) floats."""

    x: Samples
    target: Array

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.x)

    def only(self, samples: Array) -> "Split":
        """The split that these samples make."""
        x = self.x.only(samples) if isinstance(self.x, Stored) else self.x[samples]
        return Split(x, self.target[samples])


@dataclass(frozen=True, slots=True)
class Source:
    """A data set: its splits train, validation and test, and the statistics of a channel over the training split.

    ``mean`` and ``std`` are (C,) float64, C the last axis of a sample; ``classes`` is 0 for a regression; ``note`` says
    what the user should know about how the splits came to be, if anything. ``augmentation`` is for training batches.
    More than ``memory`` bytes of a split aren't held in memory, but read from the file batch by batch.
    """

    splits: Mapping[str, Split]
    mean: Array
    std: Array
    classes: int
    note: str = ""
    augmentation: Augmentation = PLAIN
    memory: int = 2 * GIB

    @property
    def sample_shape(self) -> Shape:
        """The shape of one ``x``: (features,) or (H, W, C)."""
        return self.splits["train"].x.shape[1:]

    def held(self, split: str, samples: Array | None = None) -> Samples:
        """The ``x`` of a split, or of some of its samples: in memory, unless that is more than the limit."""
        x = self.splits[split].x
        if not isinstance(x, Stored):
            return x if samples is None else x[samples]
        wanted = x if samples is None else x.only(samples)
        return wanted[:] if wanted.nbytes <= self.memory else wanted

    def summary(self) -> dict[str, Any]:
        """What the other ranks and the log need to know, as JSON can hold it."""
        return {
            "sizes": {name: split.size for name, split in self.splits.items()},
            "sample_shape": list(self.sample_shape),
            "target_shape": list(self.splits["train"].target.shape[1:]),
            "classes": self.classes,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "note": self.note,
        }


def normalised_in(stored: Dtype, dtype: Dtype) -> np.dtype[Any]:
    """The type in which samples of the type ``stored`` are normalised for a run in ``dtype``.

    It is float64 where ``dtype`` does not hold all their values: what tells them apart may be small beside their mean.
    """
    return np.dtype(dtype) if np.can_cast(stored, dtype) else np.dtype(np.float64)


class Gather:
    """Takes samples out of ``x``, augments them if asked to, and normalises: (x - mean) / std of each channel.

    At most ``size`` samples at once. Where ``x`` is stored, only the samples that are asked for are read.
    """

    def __init__(self, source: Source, x: Samples, size: int, dtype: Dtype):
        self._x, self._dtype, self._augmentation = x, dtype, source.augmentation
        shape = (size, *x.shape[1:])
        self._read = np.empty(shape, x.dtype) if isinstance(x, Stored) and source.augmentation else None
        self._raw = None if x.dtype == dtype else np.empty(shape, x.dtype)
        within = normalised_in(x.dtype, dtype)
        self._wide = None if within in (dtype, x.dtype) else np.empty(shape, within)
        # Spread over a row of pixels, since NumPy's inner loop is slow if it ends after the few channels of one pixel.
        row = source.sample_shape[-2:] if len(source.mean) > 1 else (1,)
        # In C order, which astype would not choose for what has been broadcast.
        self._mean = np.broadcast_to(source.mean, row).astype(within, order="C")
        self._std = np.broadcast_to(source.std, row).astype(within, order="C")

    def plain(self, rows: Array, out: Array) -> None:
        """Write the samples at ``rows`` (count,) of x into ``out`` (count, ...)."""
        raw = out if self._raw is None else self._raw[: len(rows)]
        self._take(rows, raw)
        self._normalise(raw, out)

    def augmented(self, rows: Array, key: tuple[int, int], samples: Array, out: Array) -> None:
        """As `plain`, but augmented as (seed, epoch) = ``key`` and the numbers ``samples`` (count,) draw it."""
        if not self._augmentation:
            self.plain(rows, out)
            return
        raw, x = out if self._raw is None else self._raw[: len(rows)], self._x
        if isinstance(x, Stored):
            assert self._read is not None
            x, rows = self._pulled(x, rows, self._read[: len(rows)])
        self._augmentation.gather(x, rows, self._augmentation.draw(key, samples), raw)
        self._normalise(raw, out)

    @staticmethod
    def _pulled(x: Stored, rows: Array, into: Array) -> tuple[Array, Array]:
        x.take(rows, into)
        return into, np.arange(len(rows))

    def _take(self, rows: Array, out: Array) -> None:
        if isinstance(self._x, Stored):
            self._x.take(rows, out)
        else:
            # mode="raise" would buffer the whole result; the indices are our own.
            np.take(self._x, rows, axis=0, out=out, mode="clip")

    def _normalise(self, raw: Array, out: Array) -> None:
        wide = raw
        if raw.dtype != self._mean.dtype:
            wide = out if self._wide is None else self._wide[: len(raw)]
            np.copyto(wide, raw, casting="same_kind")
        np.subtract(wide, self._mean, out=wide)
        np.divide(wide, self._std, out=out, casting="same_kind")
