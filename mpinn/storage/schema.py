"""The checkpoint's schema: names, paths, and what one save consists of."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

from mpinn.array.typing import Array, Shape
from mpinn.nn.layout import Layout

FORMAT = "mpinn-checkpoint"
VERSION = 1
BLOCK = 4 << 20
"""Bytes of one block, which is one message, one write and one HDF5 chunk. The writer's thread keeps Python's lock while
it writes a block, so this also bounds for how long a training step can be held up."""

ATTRIBUTES = ("format", "version", "step", "epoch", "seed", "grid", "dtype", "program")
"""Of the file."""
CONFIGURATION = "configuration"
NETWORK = "model/network"
"""The kind of the model's weights."""
ORIGIN = "mpinn"
"""The entry of an exported file that says what its model is, as JSON."""
NORMALISATION = ("normalisation.mean", "normalisation.std")
"""Arrays of an exported file; not the names of any layer, which have no dots."""
REPLICA = "replica"
KIND = "kind"
"""Attribute of the group at which a vector starts; its value is the group's path, below /replica/<r> without that."""
MERGED = "merged"
"""Attribute of a data set that is the mean of replicas that differ."""

Scalar = int | float | str


@dataclass(frozen=True, slots=True, eq=False)
class VectorSpec:
    """One flat vector of this rank and its kind: ``model/<part>``, ``state/<part>``, ``optimizer/<slot>/<part>``..."""

    kind: str
    layout: Layout
    vector: Array


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Everything that is saved at one moment, as one rank sees it.

    ``vectors`` are the rank's own, of a part that other replicas have too; ``alone`` are what no other rank has, under
    kinds that no other rank uses. Of all else, rank 0's is stored. ``grid`` is (replicas, stages, shards), ``history``
    maps a column to a 1-d array, ``scalars`` are results, such as the score of the best checkpoint, or small arrays.
    """

    step: int
    epoch: int
    seed: int
    grid: tuple[int, int, int]
    dtype: str
    configuration: Mapping[str, Any]
    vectors: Sequence[VectorSpec]
    data: Mapping[str, Scalar | Sequence[float]] = field(default_factory=dict)
    random: Mapping[str, Scalar] = field(default_factory=dict)
    scalars: Mapping[str, float | Array] = field(default_factory=dict)
    history: Mapping[str, Array] = field(default_factory=dict)
    alone: Sequence[VectorSpec] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A contiguous run of a C-ordered array: elements ``start`` to ``stop``, which are ``selection`` of its axes."""

    start: int
    stop: int
    selection: tuple[slice, ...]


def block_shape(shape: Shape, itemsize: int) -> Shape:
    """The largest contiguous block of at most BLOCK bytes: ones, then a part of one axis, then whole axes."""
    limit, inner = max(1, BLOCK // itemsize), 1
    lengths = [1] * len(shape)
    for axis in reversed(range(len(shape))):
        lengths[axis] = max(1, min(shape[axis], limit // inner))
        if lengths[axis] < shape[axis]:
            break
        inner *= lengths[axis]
    return tuple(lengths)


def blocks(shape: Shape, itemsize: int) -> Iterator[Block]:
    """The blocks of an array in C order; an array without elements has one empty block."""
    if prod(shape) == 0:
        yield Block(0, 0, tuple(slice(0, length) for length in shape))
        return
    lengths, start = block_shape(shape, itemsize), 0
    for corner in product(*(range(0, n, b) for n, b in zip(shape, lengths, strict=True))):
        selection = tuple(slice(c, min(c + b, n)) for c, b, n in zip(corner, lengths, shape, strict=True))
        stop = start + prod(s.stop - s.start for s in selection)
        yield Block(start, stop, selection)
        start = stop


def replica_path(replica: int, kind: str) -> str:
    """Where the values of one replica stand if the replicas differ."""
    return f"{REPLICA}/{replica}/{kind}"


def check_names(path: tuple[str, ...]) -> None:
    """Raise ValueError if HDF5 would read a name of the path as something else than one name."""
    for name in path:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"{name!r} in {path} cannot be a name in an HDF5 file")
