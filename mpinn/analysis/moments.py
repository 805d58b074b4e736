"""Statistics of an array that is seen one block at a time."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpinn.analysis.apart import SLICE
from mpinn.array.typing import Array


@dataclass(slots=True)
class Moments:
    """Count, norm, mean, deviation, range and exact zeros of the finite elements, and the number of all others.

    Blocks are combined by the parallel form of Welford's update (Chan, Golub and LeVeque 1983), in float64.
    """

    count: int = 0
    nonfinite: int = 0
    zeros: int = 0
    mean: float = 0.0
    spread: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, block: Array) -> None:
        """Take the elements of a block, (n,)."""
        for start in range(0, len(block), SLICE):
            values = block[start : start + SLICE].astype(np.float64)
            squares = float(np.dot(values, values))
            if not math.isfinite(squares):
                finite = values[np.isfinite(values)]
                self.nonfinite += values.size - finite.size
                values, squares = finite, float(np.dot(finite, finite))
            if values.size:
                self.merge(_moments(values, squares))

    def merge(self, other: "Moments") -> None:
        """Take the elements that another has seen."""
        total, apart = self.count + other.count, other.mean - self.mean
        self.nonfinite += other.nonfinite
        if other.count:
            self.spread += other.spread + apart * apart * self.count * other.count / total
            self.mean += apart * other.count / total
        self.count, self.zeros, self.squares = total, self.zeros + other.zeros, self.squares + other.squares
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def summary(self) -> dict[str, Any]:
        """The statistics by name; None where there are no finite elements to have one."""
        if self.count == 0:
            return {
                "count": self.nonfinite,
                "norm": None,
                "mean": None,
                "std": None,
                "min": None,
                "max": None,
                "zeros": None,
                "nonfinite": self.nonfinite,
            }
        return {
            "count": self.count + self.nonfinite,
            "norm": math.sqrt(self.squares),
            "mean": self.mean,
            "std": math.sqrt(self.spread / self.count),
            "min": self.low,
            "max": self.high,
            "zeros": self.zeros / self.count,
            "nonfinite": self.nonfinite,
        }


def _moments(values: Array, squares: float) -> Moments:
    mean = float(values.mean())
    apart = values - mean
    return Moments(
        count=values.size,
        zeros=values.size - int(np.count_nonzero(values)),
        mean=mean,
        spread=float(np.dot(apart, apart)),
        squares=squares,
        low=float(values.min()),
        high=float(values.max()),
    )
