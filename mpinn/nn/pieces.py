"""Which pieces of a population's flat vector belong to which member."""

import numpy as np

from mpinn.array.typing import Array
from mpinn.nn.layout import Entry, Layout
from mpinn.nn.packed import Packed


def pieces(population: Packed, layout: Layout) -> Array:
    """(3, N): start, stop, and the place of the member, for each array of each member, in the order of the vector."""
    by_panel: dict[str, list[Entry]] = {}
    for entry in layout:
        by_panel.setdefault(entry.path[1], []).append(entry)
    found, place = [np.empty((3, 0), np.int64)], 0
    for name, panel in population.panels:
        places = np.arange(place, place + len(panel.members))
        for entry in by_panel[name]:
            bounds = entry.start + panel.bounds(entry.path[2], entry.path[3], entry.shape)
            found.append(np.stack([bounds[:-1], bounds[1:], places]))
        place += len(panel.members)
    return np.concatenate(found, axis=1)


def inside(pieces: Array, chosen: Array, size: int) -> Array:
    """Which elements of a vector of this ``size`` belong to members that are ``chosen``, (M,) by place."""
    starts, stops, owners = pieces
    # +1 where a piece of such a member begins, -1 where it ends: their sum is 1 inside
    edges = np.zeros(size + 1, np.int8)
    edges[starts[chosen[owners]]] += 1
    edges[stops[chosen[owners]]] -= 1
    return np.cumsum(edges[:-1], dtype=np.int8).astype(bool)
