"""Which units of a network are dead: their output is the same number for every sample."""

from typing import Any

import numpy as np

from mpinn.analysis.network import places
from mpinn.analysis.normalisation import source_of
from mpinn.analysis.saved import BATCH, SavedModel
from mpinn.array import ops
from mpinn.array.pool import Pool
from mpinn.array.typing import Array
from mpinn.nn.layer import Pass

SAMPLES = 1000
"""The first samples of the validation split that are looked at."""


class Watched:
    """The plain kernels, which also note the lowest and highest output of each unit behind an activation.

    A unit is a feature, or a channel with all its pixels.
    """

    def __init__(self, path: list[int]):
        self.ranges: dict[tuple[int, ...], tuple[Array, Array]] = {}
        self._path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(ops, name)

    def bias_activation(self, z: Array, bias: Array | None, name: str, pool: Pool) -> tuple[Array, Array]:
        """As `ops.bias_activation`."""
        y, kept = ops.bias_activation(z, bias, name, pool)
        self._note(name, y)
        return y, kept

    def affine(self, x: Array, weight: Array, bias: Array | None, name: str, pool: Pool) -> tuple[Array, Array]:
        """As `ops.affine`."""
        y, kept = ops.affine(x, weight, bias, name, pool)
        self._note(name, y)
        return y, kept

    def activate(self, name: str, x: Array, pool: Pool) -> Array:
        """As `ops.activate`."""
        y = ops.activate(name, x, pool)
        self._note(name, y)
        return y

    def batch_norm(
        self, x: Array, mean: Array, inverse: Array, scale: Array, shift: Array, activation: str, pool: Pool
    ) -> tuple[Array, Array]:
        """As `ops.batch_norm`."""
        y, kept = ops.batch_norm(x, mean, inverse, scale, shift, activation, pool)
        self._note(activation, y)
        return y, kept

    def _note(self, activation: str, y: Array) -> None:
        if activation == "identity" or not len(y):
            return
        rows, place = y.reshape(-1, y.shape[-1]), tuple(self._path)
        low, high = rows.min(axis=0), rows.max(axis=0)
        if place in self.ranges:
            before = self.ranges[place]
            low, high = np.minimum(low, before[0]), np.maximum(high, before[1])
        self.ranges[place] = low, high


def dead_units(model: SavedModel, path: str = "") -> dict[str, Any]:
    """Units and dead units of every layer with an activation, on the first samples of the validation split.

    A dead unit says nothing about a sample: with relu it is one that is never active. ``path``: where the data set is.
    """
    split = source_of(model.checkpoint, path).splits["validation"]
    x = split.x[: min(SAMPLES, split.size)]
    context = Pass(Pool(), training=False)
    context.ops = watched = Watched(context.path)
    for start in range(0, len(x), BATCH):
        model.forward(model.normalisation.apply(x[start : start + BATCH], model.dtype), context)
    names = {place: name for place, name, _ in places(model.trained.network)}
    rows = [
        {"name": names[place], "units": len(low), "dead": int(np.count_nonzero(low == high))}
        for place, (low, high) in watched.ranges.items()
    ]
    return {"samples": len(x), "split": "validation", "layers": rows}
