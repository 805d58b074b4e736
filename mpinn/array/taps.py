"""Which pixel meets which place of a kernel, listed once for each shape: what `cpu_direct` walks along."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mpinn.array.im2col import Pair, extent
from mpinn.array.typing import Array, Shape

TERMS = 48
"""About so many terms of a sum are added up one after another; fewer in a row lose fewer digits."""


class Taps(NamedTuple):
    """Where the sums of one sample are read and written, as places in flat vectors.

    Pixels of the output fall into groups that see the same places of the kernel: one group, or one for each phase of
    the stride in the gradient by the input. Group g has pixels ``pixels[g]`` to ``pixels[g + 1]``; its part of the
    weight, one row for each term of a sum, meets runs ``runs[g]`` to ``runs[g + 1]`` of numbers that lie side by side.
    """

    frame: tuple[int, int, int, int]
    """Rows and columns of the padded sample, and those above and left of the image."""
    bases: Array
    """Of each pixel of the output: its first pixel of the padded sample."""
    places: Array
    """And where it is written."""
    pixels: Array
    reads: Array
    """Of each run: how far from its base a pixel reads."""
    lengths: Array
    last: Array
    """And whether what was added up so far joins the total after it."""
    runs: Array
    order: Array
    """The places of the kernel in the order of the weight's rows."""


@lru_cache(maxsize=256)
def forward_taps(shape: Shape, weight: Shape, stride: Pair, padding: Pair) -> Taps:
    """The taps of a convolution of samples of ``shape`` (H, W, C)."""
    size = output_size(shape, weight, stride, padding)
    rows, columns = (
        max(shape[axis] + padding[axis], (size[axis] - 1) * stride[axis] + weight[axis]) for axis in (0, 1)
    )
    down, across = (np.arange(size[axis]) * stride[axis] for axis in (0, 1))
    group = _Group(
        _grid(down, across, columns) * shape[2],
        np.arange(size[0] * size[1]) * weight[3],
        np.arange(weight[0]) * columns * shape[2],
        weight[1] * shape[2],
        np.arange(weight[0] * weight[1]),
    )
    return _taps((rows, columns, *padding), [group])


@lru_cache(maxsize=256)
def backward_taps(dz: Shape, shape: Shape, weight: Shape, stride: Pair, padding: Pair) -> Taps:
    """Those of its gradient by the input, from samples dz of shape (OH, OW, O)."""
    down, across = (_phases(shape[axis], weight[axis], stride[axis], padding[axis]) for axis in (0, 1))
    above, rows = _extent(dz[0], down)
    left, columns = _extent(dz[1], across)
    groups = [
        _Group(
            _grid(above + i.first + np.arange(len(i.pixels)), left + j.first + np.arange(len(j.pixels)), columns)
            * dz[2],
            _grid(i.pixels, j.pixels, shape[1]) * shape[2],
            np.arange(len(i.places)) * columns * dz[2],
            len(j.places) * dz[2],
            _grid(i.places, j.places, weight[1]),
        )
        for i in down
        for j in across
    ]
    return _taps((rows, columns, above, left), groups)


class _Phase(NamedTuple):
    """Along an axis: pixels of x, places of the kernel that they see, and the pixel of dz where both lists begin."""

    pixels: Array
    places: Array
    first: int


def _phases(size: int, kernel: int, stride: int, padding: int) -> list[_Phase]:
    """Those that see any place. The further a place lies in the kernel, the nearer is the pixel of dz that it meets."""
    found = []
    for phase in range(min(stride, size)):
        places = np.arange((phase + padding) % stride, kernel, stride)[::-1]
        if len(places):
            found.append(_Phase(np.arange(phase, size, stride), places, int(phase + padding - places[0]) // stride))
    return found


def _extent(size: int, phases: list[_Phase]) -> Pair:
    """Along an axis: how many zeros stand before dz, and how long it is with those on both sides."""
    before = max([0, *(-phase.first for phase in phases)])
    stop = max([size, *(phase.first + len(phase.pixels) + len(phase.places) - 1 for phase in phases)])
    return before, before + stop


class _Group(NamedTuple):
    """See `Taps`; runs, all of one length, are not yet cut."""

    bases: Array
    places: Array
    reads: Array
    length: int
    order: Array


def _taps(frame: tuple[int, int, int, int], groups: list[_Group]) -> Taps:
    bases, places, order = (np.concatenate([group[k] for group in groups]) for k in (0, 1, 4))
    runs = [_cut(group.reads, group.length) for group in groups]
    reads, lengths, last = (np.concatenate([run[k] for run in runs]) for k in range(3))
    pixels = np.cumsum([0, *(len(group.bases) for group in groups)])
    counts = np.cumsum([0, *(len(run[0]) for run in runs)])
    return Taps(frame, bases, places, pixels, reads, lengths, last, counts, order)


def _cut(reads: Array, length: int) -> tuple[Array, Array, Array]:
    """Runs of at most `TERMS`, and where sums of about so many end."""
    starts = np.arange(0, length, TERMS)
    lengths = np.tile(np.minimum(TERMS, length - starts), len(reads))
    terms = np.cumsum(lengths)
    last = np.append(terms[:-1] // TERMS < terms[1:] // TERMS, True)
    return _grid(reads, starts, 1), lengths, last


def _grid(down: Array, across: Array, columns: int) -> Array:
    return (down[:, None] * columns + across).reshape(-1)


def output_size(shape: Shape, weight: Shape, stride: Pair, padding: Pair) -> Pair:
    """Height and width of the output."""
    high, wide = (extent(shape[axis], weight[axis], stride[axis], padding[axis]) for axis in (0, 1))
    return high, wide


def reads_of_rows(taps: Taps, block: int) -> Array:
    """How far from its base a pixel reads for each row of the weight; the last is repeated until it fills a block."""
    reads = np.concatenate([start + np.arange(count) for start, count in zip(taps.reads, taps.lengths, strict=True)])
    return np.concatenate([reads, np.repeat(reads[-1:], -len(reads) % block)])
