"""Optimizer steps on flat vectors, block by block: temporaries stay in the cache and nothing large is allocated.

``segments`` covers the vector; ``scale`` turns the summed gradient into a mean.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mpinn.array.moments import bias_corrected
from mpinn.array.pool import Pool
from mpinn.array.typing import Array


class Segments(NamedTuple):
    """Pieces of a vector, from ``starts`` to ``stops``: the weight decay of each, and its factor of the rate."""

    starts: Array
    stops: Array
    decays: Array
    factors: Array

    @classmethod
    def of(cls, pieces: list[tuple[int, int, float, float]]) -> "Segments":
        """From (start, stop, decay, factor) of each piece."""
        columns = list(zip(*pieces, strict=True)) or [()] * 4
        ends = (np.array(column, np.int64) for column in columns[:2])
        return cls(*ends, *(np.array(column, np.float64) for column in columns[2:]))

    def pieces(self) -> Iterator[tuple[int, int, float, float]]:
        """(start, stop, decay, factor) of each."""
        yield from zip(*(column.tolist() for column in self), strict=True)


BLOCK = 1 << 13
"""Elements of a block: four vectors of it and the scratch fit a second-level cache."""


def _blocks(segments: Segments) -> Iterator[tuple[slice, float, float]]:
    for first, last, decay, factor in segments.pieces():
        if factor == 0:
            # it learns no more, whatever its gradient
            continue
        for start in range(first, last, BLOCK):
            yield slice(start, min(start + BLOCK, last)), decay, factor


def _gradient(weights: Array, grads: Array, decay: float, scale: float, out: Array, scratch: Array) -> None:
    np.multiply(grads, scale, out=out)
    if decay:
        np.multiply(weights, decay, out=scratch)
        np.add(out, scratch, out=out)


def sgd(
    weights: Array,
    grads: Array,
    velocity: Array | None,
    segments: Segments,
    scale: float,
    rate: float,
    momentum: float,
    nesterov: bool,
    pool: Pool,
) -> None:
    """v <- momentum v + g; w <- w - rate v, or w - rate (g + momentum v) with Nesterov's look-ahead.

    ``rate`` is multiplied by the factor of each segment.
    """
    step, spare = (pool.empty((BLOCK,), weights.dtype) for _ in range(2))
    for block, decay, factor in _blocks(segments):
        w, size = weights[block], block.stop - block.start
        g, t = step[:size], spare[:size]
        _gradient(w, grads[block], decay, scale, g, t)
        if velocity is not None:
            v = velocity[block]
            np.multiply(v, momentum, out=v)
            np.add(v, g, out=v)
            if nesterov:
                np.multiply(v, momentum, out=t)
                np.add(g, t, out=g)
            else:
                g = v
        np.multiply(g, rate * factor, out=t)
        np.subtract(w, t, out=w)


def adam(
    weights: Array,
    grads: Array,
    first: Array,
    second: Array,
    segments: Segments,
    scale: float,
    rate: float,
    betas: tuple[float, float],
    epsilon: float,
    updates: int,
    decoupled: bool,
    pool: Pool,
) -> None:
    """Adam (Kingma & Ba 2015), and AdamW (Loshchilov & Hutter 2019) when the decay is decoupled.

    m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g^2; w <- w - rate m' / (sqrt(v') + epsilon), with
    m' = m / (1 - b1^t), v' = v / (1 - b2^t) and t = ``updates``, this step included.
    """
    pace, epsilon = bias_corrected(rate, betas, epsilon, updates)
    step, spare = (pool.empty((BLOCK,), weights.dtype) for _ in range(2))
    for block, decay, factor in _blocks(segments):
        w, m, v, size = weights[block], first[block], second[block], block.stop - block.start
        g, t = step[:size], spare[:size]
        _gradient(w, grads[block], 0.0 if decoupled else decay, scale, g, t)
        np.multiply(m, betas[0], out=m)
        np.multiply(g, 1 - betas[0], out=t)
        np.add(m, t, out=m)
        np.multiply(g, g, out=g)
        np.multiply(v, betas[1], out=v)
        np.multiply(g, 1 - betas[1], out=g)
        np.add(v, g, out=v)
        np.sqrt(v, out=t)
        np.add(t, epsilon, out=t)
        np.divide(m, t, out=t)
        np.multiply(t, pace * factor, out=t)
        if decoupled and decay:
            np.multiply(w, 1 - rate * factor * decay, out=w)
        np.subtract(w, t, out=w)
