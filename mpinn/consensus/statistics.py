"""Merging running statistics: a mean of means, and a variance that includes how far the means are apart."""

from collections.abc import Iterator

import numpy as np

from mpinn.array.typing import Array
from mpinn.nn.layout import Layout


def _pairs(layout: Layout, state: Array) -> Iterator[tuple[Array, Array]]:
    entries = {entry.path: entry for entry in layout}
    for path, entry in entries.items():
        if path[-1] == "variance":
            yield state[entries[(*path[:-1], "mean")].slice], state[entry.slice]


def to_moments(layout: Layout, state: Array) -> None:
    """In place: every variance becomes the second moment, variance + mean^2, whose weighted mean is the merged one's."""
    for mean, variance in _pairs(layout, state):
        variance += mean * mean


def from_moments(layout: Layout, state: Array) -> None:
    """In place, the inverse of `to_moments`; what rounding made negative becomes zero."""
    for mean, variance in _pairs(layout, state):
        variance -= mean * mean
        np.maximum(variance, 0, out=variance)
