"""Time of single kernels on a GPU, at the sizes of networks, beside what a copy or a product of that size would take.

Many calls are recorded and launched at once, so no time of the host is between them, and they have other arrays in
turn, more than the second-level cache holds: in a network a kernel may find its input there, and then it is faster.
Below a few microseconds a kernel takes as long as its launch, whatever it does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from mpinn.array.pool import Pool
from mpinn.bench.attempt import attempt
from mpinn.bench.gpu_bench import Bench, Call, Maker
from mpinn.bench.gpu_kernel_list import benches
from mpinn.bench.gpu_roofline import PRECISIONS, Ceilings
from mpinn.bench.timing import Spread, seconds_text

ROUNDS = 5
SAMPLE = 2e-3
"""Seconds of a round, about."""
MOST = 32
"""Calls in a launch, and sets of arrays, at most."""
CACHES = 3
"""How many times the cache the arrays fill together."""
LOW = 0.5
"""A smaller share of the ceiling is marked."""
LAUNCH = 4e-6
"""Seconds: of what could be done in less it is the launch that is measured."""


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of a call, the bytes and operations that it must do, and the seconds that they take at the ceilings."""

    kernel: str
    size: str
    precision: str
    seconds: Spread
    bytes: float
    operations: float
    least: float

    @property
    def share(self) -> float:
        """1 is as fast as a large copy, or a large product."""
        return self.least / self.seconds.median

    @property
    def mark(self) -> str:
        """What to look at."""
        if self.share >= LOW:
            return ""
        return "LOW" if self.least >= LAUNCH else "small"


class Rotation:
    """Calls in turn. What each has given is kept until its next turn, so that the next one writes somewhere else."""

    def __init__(self, calls: Sequence[Call]):
        self._calls = calls
        self._given: list[object] = [None] * len(calls)
        self._next = 0

    def __call__(self) -> None:
        """The next one."""
        self._given[self._next] = self._calls[self._next]()
        self._next = (self._next + 1) % len(self._calls)


def run(
    ops: Any, ceilings: Ceilings, quick: bool = False, batch: int = 128, failed: list[str] | None = None
) -> Iterator[Row]:
    """The rows, each as soon as it is there; ``ops``: the kernels of the current device. See `attempt` for failed."""
    before = ops.Choices.tf32
    try:
        for bench in benches(batch, quick):
            ops.Choices.tf32 = PRECISIONS[bench.precision].tf32
            with attempt(f"{bench.kernel}, {bench.size}, {bench.precision}", failed):
                yield measure(bench, ops, ceilings)
    finally:
        ops.Choices.tf32 = before


def measure(bench: Bench, ops: Any, ceilings: Ceilings) -> Row:
    """One kernel at one size."""
    from mpinn.array import cuda_timing

    maker, moved = Maker(ops, Pool(ops.LIBRARY), PRECISIONS[bench.precision].dtype), bench.demand.bytes(bench.precision)
    sets = min(MOST, max(1, ceil(CACHES * cuda_timing.cache_bytes() / moved)))
    rotation = Rotation([bench.make(maker) for _ in range(sets)])
    for _ in range(2 * sets):
        rotation()
    calls = max(sets, min(MOST, ceil(SAMPLE / max(cuda_timing.seconds(rotation, 2), 1e-6))))
    many = cuda_timing.recorded(rotation, calls)
    many()
    launches = max(1, round(SAMPLE / max(cuda_timing.seconds(many, 1), 1e-6)))
    samples = np.array([cuda_timing.seconds(many, launches) / calls for _ in range(ROUNDS)])
    many.close()
    least = ceilings.seconds(bench.demand, bench.precision)
    return Row(
        bench.kernel,
        bench.size,
        bench.precision,
        Spread.of(samples),
        moved,
        bench.demand.operations,
        least,
    )


def print_head(said: str, ceilings: Ceilings) -> None:
    """What is measured on, and the names of the columns."""
    print(said)
    products = ", ".join(f"{rate / 1e12:.1f} TFLOP/s in {name}" for name, rate in ceilings.products.items())
    print(f"ceilings: a large copy {ceilings.bandwidth / 1e9:,.0f} GB/s, a large product {products}")
    print(
        f"{'kernel':24}  {'size':26}  {'precision':9}  {'time (25-75 %)':>22}  {'GB/s':>6}  {'TFLOP/s':>7}  "
        f"{'share':>6}",
        flush=True,
    )


def print_rows(rows: Sequence[Row]) -> None:
    """Print some."""
    for row in rows:
        rate = row.operations / row.seconds.median / 1e12
        print(
            f"{row.kernel:24}  {row.size:26}  {row.precision:9}  {seconds_text(row.seconds):>22}  "
            f"{row.bytes / row.seconds.median / 1e9:>6,.0f}  {f'{rate:.1f}' if rate else '':>7}  {row.share:>6.0%}  "
            f"{row.mark}".rstrip(),
            flush=True,
        )


def marked(rows: Sequence[Row]) -> list[Row]:
    """Those that are far from what the device can do."""
    return [row for row in rows if row.mark == "LOW"]
