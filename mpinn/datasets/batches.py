"""Batches by step: any batch of a run can be had at any time, so a resumed run sees exactly what it would have seen."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpinn.array.typing import Array
from mpinn.config import Deal, InputError
from mpinn.datasets.deal import Order, share
from mpinn.datasets.samples import Normalised, Source


@dataclass(frozen=True, slots=True)
class Batch:
    """One replica's share of a global batch.

    ``index`` is the global step and ``epoch`` the epoch that it falls in. ``x`` (count, ...) is normalised; ``target``
    (count,) int64 or (count, O). ``count`` may be 0; ``total`` is the samples of all replicas together. ``rows`` is
    (start, stride): local row i is row start + i * stride of the global batch. ``samples`` (count,) indexes the split.
    """

    index: int
    epoch: int
    x: Array
    target: Array
    count: int
    total: int
    rows: tuple[int, int]
    samples: Array


class Batches:
    """The batches of one replica; see `mpinn.datasets.deal` for what each ``deal`` means.

    ``batch`` is the global batch. Arrays are used again: a `Batch` is valid until the second next is asked for.
    """

    def __init__(
        self,
        source: Source,
        seed: int,
        batch: int,
        replicas: int,
        replica: int,
        deal: Deal,
        dtype: str | np.dtype[Any],
    ):
        if deal == "same" and batch % replicas:
            raise InputError("data.batch", f"{batch} cannot be divided by {replicas} replicas, as deal = 'same' needs")
        self._source, self._dtype, self._deal = source, np.dtype(dtype), deal
        self._replicas, self._replica = replicas, replica
        train = source.splits["train"]
        self._n = train.size
        self._size = batch // replicas if deal == "same" else batch
        self._order = Order(train, seed, deal, replicas, replica)
        self._ring = _Ring(source, "train", -(-batch // replicas), self._dtype)
        self._evaluation: dict[tuple[str, int], _Ring] = {}
        self.steps_per_epoch = -(-self._n // self._size)

    def batch(self, step: int) -> Batch:
        """The share of this replica in global batch ``step``, counted from 0 over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._deal == "same":
            first, last = within * self._size, min((within + 1) * self._size, self._n)
            total, start = (last - first) * self._replicas, self._replica
        else:
            first, last, start = share(within, self._size, self._n, self._replicas, self._replica)
            total = min(self._size, self._n - within * self._size)
        samples = self._order.epoch(epoch)[first:last]
        return self._ring.fill(step, epoch, samples, total, (start, self._replicas))

    def evaluation(self, split: str, batch: int, replica: int = 0, replicas: int = 1) -> Iterator[Batch]:
        """All of ``split`` in its own order in batches of ``batch``, or the share of one of ``replicas``, interleaved.

        Every replica gets equally many batches. They have arrays of their own: the batches of training stay valid.
        """
        n = self._source.splits[split].size
        key = (split, -(-min(batch, n) // replicas))
        if key not in self._evaluation:
            self._evaluation[key] = _Ring(self._source, *key, self._dtype)
        for index in range(-(-n // batch)):
            low, high = index * batch, min((index + 1) * batch, n)
            samples = np.arange(low + replica, high, replicas)
            yield self._evaluation[key].fill(index, 0, samples, high - low, (replica, replicas))


class _Ring:
    """Two sets of arrays for the batches of one split, used in turn."""

    def __init__(self, source: Source, split: str, size: int, dtype: np.dtype[Any]):
        chosen = source.splits[split]
        self._x = Normalised(source, split, dtype)
        self._target = chosen.target if chosen.target.ndim == 1 else chosen.target.astype(dtype, copy=False)
        shape = (size, *source.sample_shape)
        self._slots = [
            (
                np.empty(shape, dtype),
                np.empty((size, *chosen.target.shape[1:]), self._target.dtype),
                np.empty(size, np.int64),
            )
            for _ in range(2)
        ]
        self._raw = None if chosen.x.dtype == dtype else np.empty(shape, chosen.x.dtype)
        self._turn = 0

    def fill(self, index: int, epoch: int, samples: Array, total: int, rows: tuple[int, int]) -> Batch:
        """The next set of arrays, filled."""
        count = len(samples)
        x, target, chosen = (array[:count] for array in self._slots[self._turn])
        self._turn = 1 - self._turn
        np.copyto(chosen, samples)
        self._x.gather(chosen, x if self._raw is None else self._raw[:count], x)
        np.take(self._target, chosen, axis=0, out=target, mode="clip")
        return Batch(index, epoch, x, target, count, total, rows, chosen)
