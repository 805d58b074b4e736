"""Merging running statistics: a mean of means, and a variance that includes how far the means are apart.

With weights w_p that add up to 1, mean = sum w_p m_p and variance = sum w_p v_p + (sum w_p m_p^2 - mean^2). The
bracket is a small difference of large numbers where means are large, so the sums in it travel in more precision than
that of a vector: each number as a head, which is a multiple of a step that replicas with similar means agree about, so
that heads add up without rounding whatever their weights, and a tail.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from mpinn.array.typing import Array
from mpinn.nn.layout import Layout

SPARE = 8
"""Bits that heads leave free, so that they still add up where the means of replicas differ by a small factor."""
EXTRA = 3
"""Vectors that travel besides a mean and its variance: the tail of the mean, head and tail of its square."""


def _pairs(layout: Layout, state: Array, extra: Array) -> Iterator[tuple[Array, Array, Array]]:
    entries = {entry.path: entry for entry in layout}
    start = 0
    for path, entry in entries.items():
        if path[-1] == "variance":
            mean = state[entries[(*path[:-1], "mean")].slice]
            yield mean, state[entry.slice], extra[start : start + EXTRA * entry.size].reshape(EXTRA, entry.size)
            start += EXTRA * entry.size


def extra_size(layout: Layout) -> int:
    """Elements that the statistics of ``layout`` need besides themselves while they are summed."""
    return EXTRA * sum(entry.size for entry in layout if entry.path[-1] == "variance")


def to_terms(layout: Layout, state: Array, extra: Array, weight: float) -> None:
    """In place: turn one replica's statistics into its term of the weighted sums, ``extra`` included."""
    means = [(mean, mean.astype(np.float64), tails) for mean, _, tails in _pairs(layout, state, extra)]
    np.multiply(state, weight, out=state)
    for mean, wide, (tail, square_head, square_tail) in means:
        _split(wide, weight, mean, tail)
        _split(wide * wide, weight, square_head, square_tail)


def from_terms(layout: Layout, state: Array, extra: Array) -> None:
    """In place: turn the sums of all replicas' terms into the merged statistics."""
    for mean, variance, (tail, square_head, square_tail) in _pairs(layout, state, extra):
        middle = mean.astype(np.float64) + tail
        variance += np.maximum(square_head.astype(np.float64) + square_tail - middle * middle, 0)
        mean[...] = middle


def _split(values: Array, weight: float, head: Array, tail: Array) -> None:
    """weight * values = head + tail, where the step of a head depends on the size of the value, not on the weight."""
    step = np.frexp(values)[1] + (SPARE - np.finfo(head.dtype).nmant - 1)
    weighted = weight * values
    rounded = np.ldexp(np.rint(np.ldexp(weighted, -step)), step)
    head[...] = rounded
    tail[...] = weighted - rounded


def merge_layer(values: Mapping[str, Array], weights: Array) -> Mapping[str, Array]:
    """One layer's statistics, name -> (R, *shape), merged with the weights (R,): name -> shape, in float64."""
    shares = {name: np.tensordot(weights, stack.astype(np.float64), axes=1) for name, stack in values.items()}
    if "variance" in values:
        apart = np.square(values["mean"].astype(np.float64) - shares["mean"])
        shares["variance"] = shares["variance"] + np.tensordot(weights, apart, axes=1)
    return shares
