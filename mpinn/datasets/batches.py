"""Batches by step: any batch of a run can be had at any time, so a resumed run sees exactly what it would have seen."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpinn.array import ops as plain
from mpinn.array.typing import Array, Dtype
from mpinn.config import Deal, InputError
from mpinn.datasets.ahead import Ahead
from mpinn.datasets.deal import Order, epoch_steps, share
from mpinn.datasets.samples import Gather, Samples, Source, Split
from mpinn.datasets.stored import Stored

SLOTS = 4
"""Sets of arrays for training: two batches that are in use, one being prepared, one prepared but not asked for."""

COSTLY = 2**20
"""Bytes of a batch in memory from which on it takes longer to prepare than to hand over from a thread."""


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

    ``batch`` is the global batch. Arrays are used again: a `Batch` is valid until the second next is asked for, and for
    ``held`` more. With ``ahead`` a batch that is costly to prepare is prepared in a thread while another is in use.
    Without ``samples`` every x is (count, 0): a stage of the depth that no sample enters reads none. ``x`` and
    ``target`` are where the kernels ``ops`` work, and there x is turned into the type ``compute``, if one is given.
    """

    def __init__(
        self,
        source: Source,
        seed: int,
        batch: int,
        replicas: int,
        replica: int,
        deal: Deal,
        dtype: str | Dtype,
        ahead: bool = False,
        held: int = 0,
        samples: bool = True,
        ops: Any = plain,
        compute: Dtype | None = None,
    ):
        if deal == "same" and batch % replicas:
            raise InputError("data.batch", f"{batch} cannot be divided by {replicas} replicas, as deal = 'same' needs")
        self._source, self._dtype, self._deal, self._ops = source, np.dtype(dtype), deal, ops
        self._compute = compute or self._dtype
        self._replicas, self._replica = replicas, replica
        self._seed = seed
        train = source.splits["train"]
        self._n = train.size
        self._size = batch // replicas if deal == "same" else batch
        self._order = Order(train, seed, deal, replicas, replica)
        self._whole: dict[str, Samples] = {}
        # numbers of the samples in the shard, rising, or None where this replica sees all
        self._shard = np.sort(self._order.shard) if len(self._order.shard) < train.size else None
        self._wanted = samples
        x = self._all("train") if self._shard is None or not samples else source.held("train", self._shard)
        self._ring = _Ring(source, train, x, -(-batch // replicas), self._dtype, SLOTS + held, ops, self._compute)
        self._evaluation: dict[tuple[str, int], _Ring] = {}
        self.steps_per_epoch = epoch_steps(self._n, batch, deal, replicas)
        costly = samples and (self._ring.bytes >= COSTLY or bool(source.augmentation) or isinstance(x, Stored))
        self._prepared: Callable[[int], Filled] = Ahead(self._make) if ahead and costly else self._make

    def batch(self, step: int) -> Batch:
        """The share of this replica in a global batch, by its step, which counts from 0 over all epochs."""
        return self._ring.hand_over(self._prepared(step))

    def total(self, step: int) -> int:
        """The samples of the global batch of ``step``."""
        within = step % self.steps_per_epoch
        size = min(self._size, self._n - within * self._size)
        return size * self._replicas if self._deal == "same" else size

    def _make(self, step: int) -> "Filled":
        epoch, within = divmod(step, self.steps_per_epoch)
        total = self.total(step)
        if self._deal == "same":
            first, last, start = within * self._size, min((within + 1) * self._size, self._n), self._replica
        else:
            first, last, start = share(within, self._size, self._n, self._replicas, self._replica)
        samples = self._order.epoch(epoch)[first:last]
        rows = samples if self._shard is None else np.searchsorted(self._shard, samples)
        key = self._seed, epoch
        return self._ring.fill(step, epoch, samples, rows, key, total, (start, self._replicas))

    def evaluation(self, split: str, batch: int, replica: int = 0, replicas: int = 1) -> Iterator[Batch]:
        """All of ``split`` in its own order in batches of ``batch``, or the share of one of ``replicas``, interleaved.

        Every replica gets equally many batches. They have arrays of their own: the batches of training stay valid.
        """
        chosen = self._source.splits[split]
        n = chosen.size
        key = (split, -(-min(batch, n) // replicas))
        if key not in self._evaluation:
            self._evaluation[key] = _Ring(
                self._source, chosen, self._all(split), key[1], self._dtype, 2, self._ops, self._compute
            )
        for index in range(-(-n // batch)):
            low, high = index * batch, min((index + 1) * batch, n)
            samples = np.arange(low + replica, high, replicas)
            ring = self._evaluation[key]
            yield ring.hand_over(ring.fill(index, 0, samples, samples, None, high - low, (replica, replicas)))

    def _all(self, split: str) -> Samples | None:
        if not self._wanted:
            return None
        if split not in self._whole:
            self._whole[split] = self._source.held(split)
        return self._whole[split]


@dataclass(frozen=True, slots=True)
class Filled:
    """A batch in host memory, and the set of arrays in which it is."""

    batch: Batch
    slot: int


class _Ring:
    """Sets of arrays for the batches of one split, used in turn."""

    def __init__(
        self,
        source: Source,
        split: Split,
        x: Samples | None,
        size: int,
        dtype: Dtype,
        slots: int,
        ops: Any,
        compute: Dtype,
    ):
        self._gather = None if x is None else Gather(source, x, size, dtype)
        shape = (0,) if x is None else source.sample_shape
        self._target = split.target if split.target.ndim == 1 else split.target.astype(dtype, copy=False)
        self._slots = [
            (
                ops.empty_pinned((size, *shape), dtype),
                ops.empty_pinned((size, *split.target.shape[1:]), self._target.dtype),
                np.empty(size, np.int64),
            )
            for _ in range(slots)
        ]
        self.bytes = self._slots[0][0].nbytes
        self._turn = 0
        self._uploads = ops.uploads()
        self._compute = compute
        self._turned: dict[int, Array] = {}

    def fill(
        self,
        index: int,
        epoch: int,
        samples: Array,
        rows: Array,
        key: tuple[int, int] | None,
        total: int,
        where: tuple[int, int],
    ) -> Filled:
        """The next set of arrays, filled with the ``samples``, which stand at ``rows`` of x; augmented by ``key``."""
        count, slot = len(samples), self._turn
        if self._uploads:
            self._uploads.release(slot)
        x, target, chosen = (array[:count] for array in self._slots[slot])
        self._turn = (self._turn + 1) % len(self._slots)
        np.copyto(chosen, samples)
        if self._gather and key is None:
            self._gather.plain(rows, x)
        elif self._gather and key is not None:
            self._gather.augmented(rows, key, samples, x)
        np.take(self._target, chosen, axis=0, out=target, mode="clip")
        return Filled(Batch(index, epoch, x, target, count, total, where, chosen), slot)

    def hand_over(self, filled: Filled) -> Batch:
        """The batch where the kernels work; in the thread that calls them."""
        batch = filled.batch
        if not self._uploads:
            return batch
        x, target = self._uploads.send(filled.slot, (batch.x, batch.target))
        return replace(batch, x=x if x.dtype == self._compute else self._as_computed(filled.slot, x), target=target)

    def _as_computed(self, slot: int, x: Array) -> Array:
        if slot not in self._turned:
            shape = self._slots[slot][0].shape
            self._turned[slot] = np.empty_like(x, self._compute, shape=shape)
        turned = self._turned[slot][: len(x)]
        turned[...] = x
        return turned
