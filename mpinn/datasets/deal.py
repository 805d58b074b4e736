"""How the samples of an epoch are dealt to the replicas.

An epoch has positions 0 to n - 1. With a global batch of B and R replicas, position p belongs to batch p // B of the
epoch and to replica p mod R; the j-th sample of replica r stands at position r + j R. Deals differ in which sample
stands where:

redealt  sample perm(seed, epoch)[p]: every number of replicas makes the same global batches.
fixed    replica r holds the shard perm(seed)[r::R] for the whole run, in an order that is drawn from (seed, epoch, r).
skewed   as fixed, but the shards are contiguous cuts, of the same sizes, of the samples sorted by label.
same     every replica sees every sample, in the order perm(seed, epoch), in batches of B // R.
"""

import numpy as np

from mpinn.array.typing import Array
from mpinn.config import Deal, InputError
from mpinn.datasets.samples import Split

EPOCH, SHARD, WITHIN = (int.from_bytes(name) for name in (b"epoc", b"shar", b"with"))
"""Second words of the seeds, one for each kind of stream: no two streams of a run start with the same pair of words."""


class Order:
    """The samples of one replica in the order of each epoch; what it returns is valid until two epochs later."""

    def __init__(self, split: Split, seed: int, deal: Deal, replicas: int, replica: int):
        self.shard = _shard(split, seed, deal, replicas, replica)
        """The samples that this replica draws from."""
        self._key = (seed, WITHIN, replica) if deal in ("fixed", "skewed") else (seed, EPOCH)
        self._step = replicas if deal == "redealt" else 1
        self._first = replica if deal == "redealt" else 0
        self._kept = [np.empty_like(self.shard) for _ in range(2)]
        self._epochs = [-1, -1]

    def epoch(self, epoch: int) -> Array:
        """The indices of the training split that this replica sees in ``epoch``, in order."""
        slot = epoch % 2
        kept = self._kept[slot]
        if self._epochs[slot] != epoch:
            np.copyto(kept, self.shard)
            np.random.default_rng([*self._key, epoch]).shuffle(kept)
            self._epochs[slot] = epoch
        return kept[self._first :: self._step]


def epoch_steps(samples: int, batch: int, deal: Deal, replicas: int) -> int:
    """How many steps an epoch of so many samples has with a global ``batch``: more, where all replicas see the same."""
    return -(-samples // max(1, batch // replicas if deal == "same" else batch))


def share(batch: int, size: int, n: int, replicas: int, replica: int) -> tuple[int, int, int]:
    """Which samples of a replica are in a batch of ``size`` positions: (first, last + 1, row of the first in it)."""
    low, high = batch * size, min((batch + 1) * size, n)
    first, last = -((replica - low) // replicas), -((replica - high) // replicas)
    return first, last, replica + first * replicas - low


def _shard(split: Split, seed: int, deal: Deal, replicas: int, replica: int) -> Array:
    """The samples that a replica draws from."""
    samples = np.arange(split.size)
    match deal:
        case "fixed":
            return np.random.default_rng([seed, SHARD]).permutation(split.size)[replica::replicas].copy()
        case "skewed":
            if split.target.ndim != 1:
                raise InputError("data.deal", "'skewed' sorts by label, and a regression has none")
            sizes = [len(samples[r::replicas]) for r in range(replicas)]
            start = sum(sizes[:replica])
            return np.argsort(split.target, kind="stable")[start : start + sizes[replica]].copy()
        case "redealt" | "same":
            return samples
    raise ValueError(f"unknown deal {deal!r}")
