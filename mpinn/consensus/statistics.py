"""Merging running statistics: a mean of means, and a variance that includes how far the means are apart."""

from collections.abc import Iterator, Mapping

import numpy as np

from mpinn.array.typing import Array
from mpinn.nn.layout import Layout


def _pairs(layout: Layout, state: Array) -> Iterator[tuple[Array, Array]]:
    entries = {entry.path: entry for entry in layout}
    for path, entry in entries.items():
        if path[-1] == "variance":
            yield state[entries[(*path[:-1], "mean")].slice], state[entry.slice]


def to_moments(layout: Layout, state: Array) -> None:
    """In place: every variance becomes the second moment, variance + mean^2, of which a weighted mean makes sense."""
    for mean, variance in _pairs(layout, state):
        variance += mean * mean


def from_moments(layout: Layout, state: Array) -> None:
    """In place, the inverse of `to_moments`; what rounding made negative becomes zero."""
    for mean, variance in _pairs(layout, state):
        variance -= mean * mean
        np.maximum(variance, 0, out=variance)


def merge_layer(values: Mapping[str, Array], weights: Array) -> Mapping[str, Array]:
    """One layer's statistics, name -> (R, *shape), merged with the weights (R,): name -> shape, in float64."""
    shares = {name: np.tensordot(weights, stack.astype(np.float64), axes=1) for name, stack in values.items()}
    if "variance" in values:
        apart = np.square(values["mean"].astype(np.float64) - shares["mean"])
        shares["variance"] = shares["variance"] + np.tensordot(weights, apart, axes=1)
    return shares
