"""How far the replicas of a checkpoint are from their mean and from each other."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpinn.analysis.apart import SLICE
from mpinn.array.typing import Array
from mpinn.storage.reader import Checkpoint

Description = dict[str, Any]


class Spread:
    """Differences of R replicas to a mean x, as the (R, R) matrix of their products; one block of each is in memory.

    Elements that are not finite count as zero differences, and are counted.
    """

    def __init__(self, replicas: int):
        self.products = np.zeros((replicas, replicas))
        self.squares = np.zeros(replicas)
        """Of the mean, over the elements in which a replica is finite, (R,)."""
        self.nonfinite = np.zeros(replicas, np.int64)

    def add(self, mean: Array, replicas: Sequence[Array]) -> None:
        """Take a block of the mean and of each replica, (n,) each."""
        for start in range(0, len(mean), SLICE):
            whole = mean[start : start + SLICE].astype(np.float64)
            values = np.array([replica[start : start + SLICE] for replica in replicas], np.float64)
            finite = np.isfinite(values)
            self.nonfinite += values.shape[1] - finite.sum(axis=1)
            finite &= np.isfinite(whole)
            between = np.zeros_like(values)
            np.subtract(values, whole, out=between, where=finite)
            self.products += between @ between.T
            self.squares += np.square(np.where(finite, whole, 0.0)).sum(axis=1)

    def distances(self) -> Array:
        """From the mean, (R,)."""
        return np.sqrt(np.diagonal(self.products))

    def apart(self) -> Array:
        """From each other, (R, R)."""
        own = np.diagonal(self.products)
        return np.sqrt(np.maximum(own[:, None] + own[None, :] - 2 * self.products, 0.0))


def describe_replicas(file: Checkpoint) -> tuple[list[Description], Array | None]:
    """What is known of each replica that has values of its own, and the distances of their models, (R, R).

    ``distance`` is |x_r - x| with x the mean of the models and x_r the replica's, ``relative`` |x_r - x| / |x|,
    ``optimizer`` the same for all that the optimizer remembers, and ``weight`` what it weighed at the last meeting.
    """
    replicas = file.replicas
    if not replicas:
        return [], None
    kinds = dict.fromkeys(kind for replica in replicas for kind in file.kinds(replica))
    model = _spread(file, [kind for kind in kinds if kind in file.models()])
    slots = _spread(file, [kind for kind in kinds if kind.startswith("optimizer/")])
    weights = _weights(file, len(replicas))
    apart = model.apart()
    rows: list[Description] = []
    for row, replica in enumerate(replicas):
        farthest = int(apart[row].argmax())
        rows.append({
            "replica": replica,
            "distance": float(model.distances()[row]),
            "relative": _ratio(model, row),
            "optimizer": _ratio(slots, row),
            "weight": weights[row],
            "farthest": {"replica": replicas[farthest], "distance": float(apart[row, farthest])},
            "nonfinite": int(model.nonfinite[row]),
        })  # fmt: skip
    return rows, apart


def _spread(file: Checkpoint, kinds: Sequence[str]) -> Spread:
    replicas = file.replicas
    found = Spread(len(replicas))
    for kind in kinds:
        names = dict.fromkeys(entry.name for replica in replicas for entry in file.parameters(kind, replica))
        for name in names:
            blocks = (file.blocks(kind, name, replica) for replica in (None, *replicas))
            for mean, *own in zip(*blocks, strict=True):
                found.add(mean, own)
    return found


def _ratio(spread: Spread, row: int) -> float | None:
    squares = spread.squares[row]
    return math.sqrt(spread.products[row, row] / squares) if squares else None


def _weights(file: Checkpoint, count: int) -> list[float | None]:
    meetings = file.scalars.get("meeting_weights")
    if meetings is None or not len(meetings) or meetings.shape[1] != count:
        return [None] * count
    return [float(weight) if math.isfinite(weight) else None for weight in meetings[-1]]
