"""Members of a population all at once, for a device that a panel would leave idle.

A `Fleet` is tables: where each member's weights are in the part's flat vector, and which rows of one buffer are its
hidden units. Panels do not matter here: they are where they are for checkpoints, and for CPUs. What a member computes
does not depend on any other, to the last bit; see `mpinn.array.cuda_packed`.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from mpinn.array.ragged import LOW, NAMES, TALL, Heads, Products
from mpinn.array.typing import Array, Dtype
from mpinn.nn.layer import Pass
from mpinn.nn.layout import Entry, Layout
from mpinn.nn.packed import LAYER, Packed, Panel

MOST = 2 << 30
"""Bytes of the hidden units of a fleet, about."""
WORD = 8
"""Bytes of a number in a table, of a class number, and of a loss."""


@dataclass(frozen=True)
class Fleet:
    """``places``: of its members in the order of the population, (M,); ``units``: hidden units of all their layers."""

    places: Array
    """Where the kernels work."""
    members: int
    units: int
    room: int
    """Rows of the buffer of units, at least as many as there are, and ``seats``: members for whom that of outputs has
    room; so fleets can share them."""
    seats: int
    outputs: int
    layers: tuple[Any, ...]
    """Hidden layers, each of those members that have so many, as the kernels take them."""
    heads: Any

    def forward(self, weights: Array, x: Array, context: Pass) -> tuple[Array, Array]:
        """From the part's vector and x: (B, ...) to y: (B, M, O), with the batch last in memory, and what is kept."""
        ops, pool, x = context.ops, context.pool, x.reshape(len(x), -1)
        units = pool.empty((self.room, len(x)), x.dtype)[: self.units]
        for depth, layer in enumerate(self.layers):
            ops.ragged_hidden(weights, layer, None if depth else x, units, pool)
        y = pool.empty((self.seats, self.outputs, len(x)), x.dtype)[: self.members]
        ops.ragged_output(weights, self.heads, units, y, pool)
        return y.transpose(2, 0, 1), units

    def backward(self, weights: Array, x: Array, units: Array, dy: Array, grads: Array, context: Pass) -> None:
        """Write all gradients to a vector that is laid out as the weights; what was kept is lost. dy: as y."""
        ops, pool, x = context.ops, context.pool, x.reshape(len(x), -1)
        ops.ragged_output_backward(weights, self.heads, units, dy.transpose(1, 2, 0), grads, pool)
        for layer in self.layers[:0:-1]:
            ops.ragged_gradient(layer, None, units, grads, pool)
            ops.ragged_backward(weights, layer, units, pool)
        ops.ragged_gradient(self.layers[0], x, units, grads, pool)


def units_of(samples: int, dtype: Dtype) -> int:
    """As many units as a fleet may have for a batch of so many samples."""
    return MOST // max(1, samples * dtype.itemsize)


def grouped(population: Packed, names: Collection[str], most: int) -> list[list[tuple[int, str, Panel]]]:
    """The panels of each fleet, of those with these names: the place of the first member, the name and the panel.

    A fleet is full when it has ``most`` units.
    """
    found: list[list[tuple[int, str, Panel]]] = []
    units, place = most, 0
    for name, panel in population.panels:
        if name in names:
            if units >= most:
                found.append([])
                units = 0
            found[-1].append((place, name, panel))
            units += panel.units
        place += len(panel.members)
    return found


def fleets(population: Packed, layout: Layout, ops: Any, names: Collection[str], most: int) -> list[Fleet]:
    """Those with the members of the panels with these names, each of about ``most`` units, in the layout of a part."""
    entries = {entry.path[1:]: entry for entry in layout if entry.path[0] == LAYER}
    groups = grouped(population, names, most)
    found = []
    for group in groups:
        draft = _Draft()
        for place, name, panel in group:
            draft.add(name, panel, place, entries)
        found.append(draft.built(population.outputs, *_largest(groups), ops))
    return found


def _largest(groups: Iterable[Sequence[tuple[int, str, Panel]]]) -> tuple[int, int]:
    """The most units, and the most members, that one of some fleets has."""
    sizes = [(sum(panel.units for *_, panel in each), sum(len(panel.members) for *_, panel in each)) for each in groups]
    units, members = zip(*sizes, strict=True)
    return max(units), max(members)


@dataclass(frozen=True)
class Space:
    """What the fleets of a step take on a device: how many they are, and the bytes of all that is theirs.

    These are the hidden units and the outputs of the largest one, whose buffers all share, with a loss of each member;
    the tables of all; and the batch, as a recorded step has it, with class numbers.
    """

    fleets: int
    bytes: int


def space(population: Packed, samples: int, features: int, dtype: Dtype) -> Space:
    """For a batch of so many samples with so many features."""
    groups = grouped(population, {name for name, _ in population.panels}, units_of(samples, dtype))
    if not groups:
        return Space(0, 0)
    room, seats = _largest(groups)
    numbers = (room + seats * population.outputs + features) * samples
    tables = sum(_table_bytes(panel) for _, panel in population.panels)
    return Space(len(groups), numbers * dtype.itemsize + WORD * (seats + samples) + tables)


def _table_bytes(panel: Panel) -> int:
    """Of the places of its members, and of its part of all tables; see `mpinn.array.cuda_packed`."""
    widths = np.array([member.widths for member in panel.members])
    tiles = sum(-(-(stop - start) // TALL) for _, start, stop in panel.runs[0])
    tiles += int((-(-widths[:, 1:] // LOW) - (-widths[:, :-1] // LOW)).sum())
    return WORD * (len(Products._fields) * tiles + (len(Heads._fields) + 1) * len(panel.members))


@dataclass
class _Draft:
    """A fleet to which panels are added."""

    places: list[int] = field(default_factory=list)
    units: int = 0
    layers: list[list[Array]] = field(default_factory=list)
    """For each hidden layer the columns of its tables, panel by panel."""
    heads: list[Array] = field(default_factory=list)

    def add(self, name: str, panel: Panel, place: int, entries: dict[tuple[str, ...], Entry]) -> None:
        """Take up a panel, whose first member has this place, and whose arrays are there by their names."""
        counts = [int(rows[-1]) for rows in panel.starts]
        bases = [*accumulate(counts, initial=self.units)]
        for depth in range(panel.depth):
            weight, bias = (entries[name, f"hidden{depth + 1}", leaf] for leaf in ("weight", "bias"))
            if depth == len(self.layers):
                self.layers.append([])
            self.layers[depth].append(
                _later(panel, depth, bases, weight.start, bias.start)
                if depth
                else _first(panel, bases[0], weight.start, bias.start, weight.shape[1])
            )
        weight, bias = (entries[name, "output", leaf] for leaf in ("weight", "bias"))
        self.heads.append(_last(panel, bases[panel.depth - 1], weight.start, bias.start))
        self.places += range(place, place + len(panel.members))
        self.units = bases[-1]

    def built(self, outputs: int, room: int, seats: int, ops: Any) -> Fleet:
        layers = tuple(
            ops.ragged_products(Products(*np.concatenate(columns, axis=1)), first=not depth)
            for depth, columns in enumerate(self.layers)
        )
        heads = ops.ragged_heads(Heads(*np.concatenate(self.heads, axis=1)))
        places = ops.on_device(np.array(self.places, np.int64))
        return Fleet(places, len(self.places), self.units, room, seats, outputs, layers, heads)


def _first(panel: Panel, base: int, weight: int, bias: int, inputs: int) -> Array:
    """Columns of `Products`: neighbours with one activation are one product."""
    columns = [
        (base + start, stop - start, weight + start * inputs, bias + start, 0, inputs, NAMES.index(name))
        for name, start, stop in panel.runs[0]
    ]
    return np.array(columns, np.int64).T


def _later(panel: Panel, depth: int, bases: list[int], weight: int, bias: int) -> Array:
    after, before = panel.starts[depth], panel.starts[depth - 1]
    matrices = panel.bounds(f"hidden{depth + 1}", "weight", ())
    return np.stack(
        [
            bases[depth] + after[:-1], np.diff(after), weight + matrices[:-1], bias + after[:-1],
            bases[depth - 1] + before[:-1], np.diff(before), _activations(panel),
        ]
    )  # fmt: skip


def _last(panel: Panel, base: int, weight: int, bias: int) -> Array:
    rows, places = panel.starts[-1], np.arange(len(panel.members))
    return np.stack(
        [
            base + rows[:-1], np.diff(rows), weight + rows[:-1] * panel.outputs, bias + places * panel.outputs,
            _activations(panel),
        ]
    )  # fmt: skip


def _activations(panel: Panel) -> Array:
    return np.array([NAMES.index(member.activation) for member in panel.members], np.int64)
