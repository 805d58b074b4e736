"""One usable model from replicas that differ."""

from collections.abc import Callable, Mapping

import numpy as np

from mpinn.array.typing import Array, Dtype

MergeLayer = Callable[[Mapping[str, Array], Array], Mapping[str, Array]]
"""(name -> (R, *shape), weights (R,)) -> name -> shape: merges the arrays of one layer that only make sense together,
as the running mean and variance of a batch norm do. Replicas of weight 0 are left out of R."""


Shares = Callable[[str], Array | None]
"""From the name of a parameter to the weights of its elements in C order, (R, size); None for one weight a replica."""


class Mean:
    """The weighted mean of blocks that arrive in rank order: float64 sums, replicas of weight 0 masked, not multiplied.

    ``weights``: (R,), or (R, *block) where elements have weights of their own. Integers have no mean: the first replica
    of the largest weight gives them.
    """

    def __init__(self, weights: Array, dtype: Dtype):
        self._weights = weights
        self._dtype = dtype
        self._chosen = int(np.argmax(weights)) if weights.ndim == 1 else 0
        self._sum: Array | None = None

    def add(self, replica: int, block: Array) -> None:
        """Take the block of the ``replica``-th of the replicas."""
        if not np.issubdtype(self._dtype, np.floating):
            self._sum = block if replica == self._chosen else self._sum
        elif self._weights[replica].any():
            term = self._term(block, self._weights[replica])
            self._sum = term if self._sum is None else np.add(self._sum, term, out=term)

    def _term(self, block: Array, weights: Array) -> Array:
        """The block times its weight, or each element times its own, of which 0 masks."""
        if weights.ndim == 0:
            return np.multiply(block, weights, out=np.empty(block.shape), dtype=np.float64)
        masked: Array = np.multiply(block, weights, out=np.zeros(block.shape), dtype=np.float64, where=weights != 0)
        return masked

    def result(self) -> Array:
        """The mean of the blocks, in the type that they have."""
        if self._sum is None:
            raise ValueError("no replica has a weight")
        return self._sum.astype(self._dtype)


def mean_weights(weights: Array | None, replicas: int) -> Array:
    """The weights (R,) of the mean as float64; uniform if there are none."""
    if weights is None:
        return np.full(replicas, 1 / replicas)
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (replicas,) or not np.isfinite(weights).all() or not weights.any():
        raise ValueError(f"the mean of {replicas} replicas cannot have the weights {weights}")
    return weights
