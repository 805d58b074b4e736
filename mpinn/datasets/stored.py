"""Samples that stay in an HDF5 file until they are asked for."""

from pathlib import Path

import h5py
import numpy as np

from mpinn.array.typing import Array, Dtype, Shape
from mpinn.errors import LocalError


class ReadError(LocalError, OSError):
    """A file that was sound when it was opened no longer is, or its disk fails."""


class Stored:
    """One data set of a file, or the samples ``chosen`` of it, read as they are asked for; shaped like an array.

    ``channel``: with an axis of one channel at the end, which the file has not. The file is opened by the first read
    and stays open; it is only read, so it isn't locked, which many shared file systems refuse. Threads may read at the
    same time.
    """

    def __init__(
        self, path: Path, name: str, shape: Shape, dtype: Dtype, chosen: Array | None = None, channel: bool = False
    ):
        self._path, self._name, self._chosen, self._channel = path, name, chosen, channel
        samples = shape[0] if chosen is None else len(chosen)
        self.shape = (samples, *shape[1:], 1) if channel else (samples, *shape[1:])
        self.dtype = dtype.newbyteorder("=")
        self._whole = shape
        self._dataset: h5py.Dataset | None = None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes, that of the samples included."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes that the values take in memory."""
        return self.size * self.dtype.itemsize

    def __getitem__(self, chosen: slice | Array) -> Array:
        """The chosen samples in memory."""
        samples = np.arange(len(self))[chosen]
        out = np.empty((len(samples), *self.shape[1:]), self.dtype)
        self.take(samples, out)
        return out

    def only(self, samples: Array) -> "Stored":
        """The same data set, of which there are only these samples."""
        chosen = samples if self._chosen is None else self._chosen[samples]
        return Stored(self._path, self._name, self._whole, self.dtype, chosen, self._channel)

    def with_channel(self) -> "Stored":
        """The same images, (n, H, W), with an axis of one channel."""
        return Stored(self._path, self._name, self._whole, self.dtype, self._chosen, channel=True)

    def take(self, samples: Array, out: Array) -> None:
        """Write ``samples`` (count,) into ``out`` (count, ...) in their order; the file is read in its own order."""
        wanted = samples if self._chosen is None else self._chosen[samples]
        order = np.argsort(wanted, kind="stable")
        rows = wanted[order]
        breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(order) != 1)) + 1
        starts = [0, *breaks.tolist()] if len(rows) else []
        self._read(rows[starts].tolist(), order[starts].tolist(), np.diff([*starts, len(rows)]).tolist(), out)

    def _read(self, sources: list[int], targets: list[int], lengths: list[int], out: Array) -> None:
        if self._dataset is None:
            self._dataset = self._open()
        # h5py's own indexing by a list takes ten times as long as one selection for each run of samples
        dataset, kind = self._dataset.id, h5py.h5t.py_create(self.dtype)
        rest = self._whole[1:]
        file, memory, zeros = dataset.get_space(), h5py.h5s.create_simple((len(out), *rest)), (0,) * len(rest)
        for source, target, length in zip(sources, targets, lengths, strict=True):
            file.select_hyperslab((source, *zeros), (length, *rest))
            memory.select_hyperslab((target, *zeros), (length, *rest))
            try:
                dataset.read(memory, file, out, kind)
            except OSError as error:
                what = f"sample {source}, or one soon after it,"
                raise ReadError(f"{self._path}:/{self._name}: {what} cannot be read: {error}") from error

    def _open(self) -> h5py.Dataset:
        try:
            return h5py.File(self._path, "r", locking=False)[self._name]
        except (OSError, KeyError) as error:
            raise ReadError(f"{self._path}:/{self._name} cannot be read: {error}") from error
