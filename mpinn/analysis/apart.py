"""How far two arrays are apart, seen one block at a time."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpinn.array.typing import Array

SLICE = 1 << 16
"""Elements that are taken at once: they stay in the cache, also as float64."""


@dataclass(slots=True)
class Apart:
    """Distance, relative distance and angle between a and b, over the elements that are finite in both.

    All sums are in float64. The angle comes from the distance of the two directions, which also tells small ones apart:
    |a/|a| - b/|b||^2 = (|a - b|^2 - (|a| - |b|)^2) / (|a| |b|).
    """

    count: int = 0
    nonfinite: int = 0
    differing: int = 0
    """Elements that are not the same; NaN is the same as NaN."""
    ours: float = 0.0
    theirs: float = 0.0
    squares: float = 0.0

    def add(self, ours: Array, theirs: Array) -> None:
        """Take the elements of two blocks, (n,) each."""
        for start in range(0, len(ours), SLICE):
            one, other = (block[start : start + SLICE].astype(np.float64) for block in (ours, theirs))
            self.count += one.size
            sums = self._sums(one, other)
            if not np.isfinite(sums).all():
                both = np.isfinite(one) & np.isfinite(other)
                self.nonfinite += one.size - int(both.sum())
                rest = ~both
                self.differing += _differing(one[rest], other[rest])
                one, other = one[both], other[both]
                sums = self._sums(one, other)
            self.differing += int(np.count_nonzero(one != other)) if sums[2] or not np.isfinite(sums[2]) else 0
            self.ours, self.theirs, self.squares = self.ours + sums[0], self.theirs + sums[1], self.squares + sums[2]

    @staticmethod
    def _sums(one: Array, other: Array) -> tuple[float, float, float]:
        between = one - other
        return float(np.dot(one, one)), float(np.dot(other, other)), float(np.dot(between, between))

    def merge(self, other: "Apart") -> None:
        """Take the elements that another has seen."""
        self.count += other.count
        self.nonfinite += other.nonfinite
        self.differing += other.differing
        self.ours, self.theirs = self.ours + other.ours, self.theirs + other.theirs
        self.squares += other.squares

    def summary(self) -> dict[str, Any]:
        """By name: |a - b|, |a - b| / |a|, the angle in degrees; None where an array without length has none."""
        ours, theirs = math.sqrt(self.ours), math.sqrt(self.theirs)
        angle = None
        if ours and theirs:
            chord = (self.squares - (ours - theirs) ** 2) / (ours * theirs)
            angle = math.degrees(2 * math.asin(min(1.0, math.sqrt(max(0.0, chord)) / 2)))
        return {
            "count": self.count,
            "differing": self.differing,
            "norms": [ours, theirs],
            "distance": math.sqrt(self.squares),
            "relative": math.sqrt(self.squares) / ours if ours else None,
            "angle": angle,
            "nonfinite": self.nonfinite,
        }


def _differing(one: Array, other: Array) -> int:
    return int(np.count_nonzero((one != other) & ~(np.isnan(one) & np.isnan(other))))
