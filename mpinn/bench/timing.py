"""Measuring operations in turns, so that what else the machine does meets all of them alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter, process_time

import numpy as np

from mpinn.array.typing import Array

ROUNDS = 15
SAMPLE = 0.1
"""Turns that each operation gets, and about how many seconds a turn lasts."""

UNITS = (("s", 1.0, 1.0), ("ms", 1e3, 1e-3), ("us", 1e6, 0.0))

Operation = Callable[[], object]
Clock = Callable[[], float]
NO_PEER = "PyTorch is not installed here: nothing is compared with it"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Array) -> "Spread":
        """samples: (N,)."""
        low, median, high = np.percentile(samples, [25, 50, 75])
        return cls(float(median), float(low), float(high))


def alternate(
    operations: Mapping[str, Operation],
    clock: Clock = process_time,
    rounds: int = ROUNDS,
    sample: float = SAMPLE,
) -> dict[str, Array]:
    """Seconds of one call of each operation, (rounds,): the operations take turns of about ``sample`` seconds.

    The default clock counts the processor time of the process, which other processes do not disturb but which adds
    threads up: for operations with several threads, take `time.perf_counter`.
    """
    calls = {name: _calls(operation, sample) for name, operation in operations.items()}
    samples = [
        [_seconds_of(operation, calls[name], clock) for name, operation in operations.items()] for _ in range(rounds)
    ]
    return dict(zip(operations, np.array(samples).T, strict=True))


def _calls(operation: Operation, sample: float) -> int:
    operation()  # a first call compiles, and allocates what is kept
    return max(1, round(sample / max(_seconds_of(operation, 2, perf_counter), 1e-6)))


def _seconds_of(operation: Operation, calls: int, clock: Clock) -> float:
    start = clock()
    for _ in range(calls):
        operation()
    return (clock() - start) / calls


def seconds_text(spread: Spread) -> str:
    """Such as ``5.25 ms (5.19-5.4)``."""
    unit, scale = next((unit, scale) for unit, scale, least in UNITS if spread.median >= least)
    return f"{spread.median * scale:.3g} {unit} ({spread.low * scale:.3g}-{spread.high * scale:.3g})"


def ratio_text(spread: Spread) -> str:
    """Such as ``1.32 (1.30-1.35)``."""
    digits = 1 if spread.median >= 10 else 2
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}-{spread.high:.{digits}f})"


def error_text(spread: Spread) -> str:
    """Such as ``9.9e-04 (4.1e-04-2.0e-03)``."""
    return f"{spread.median:.1e} ({spread.low:.1e}-{spread.high:.1e})"
