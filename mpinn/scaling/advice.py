"""Which grid to take: the fastest that trains exactly as one rank does, and beside it the fastest that does not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mpinn.errors import InputError
from mpinn.scaling.predict import Prediction, Scaling

ENOUGH = 0.5
"""The least efficiency of the grid that is recommended."""


class Predicts(Protocol):
    """Whoever knows all grids."""

    scaling: Scaling

    def predictions(self, ranks: int) -> list[Prediction]:
        """Of all grids of so many ranks."""
        ...

    def why_not(self, ranks: int) -> str:
        """Why there is none."""
        ...


@dataclass(frozen=True)
class Advice:
    """For one number of ranks; ``why_not`` where there is no grid, or none that fits into memory.

    ``exact`` gives the result of one rank with the same batch, to rounding; ``other`` does not, see its ``changes``.
    ``slower``: with how many ranks fewer the exact one was faster.
    """

    ranks: int
    exact: Prediction | None = None
    other: Prediction | None = None
    reason: str = ""
    why_not: str = ""
    slower: int = 0


def advise(planner: Predicts, counts: Sequence[int], memory: float) -> tuple[list[Advice], list[Prediction]]:
    """For each number of ranks, rising; and all predictions. ``memory``: bytes that a rank may hold, 0 for any."""
    found, everything = [], list[Prediction]()
    best: Prediction | None = None
    for ranks in counts:
        known = planner.predictions(ranks)
        everything += known
        advice = _advice(planner, ranks, known, memory, best)
        found.append(advice)
        if advice.exact and (best is None or advice.exact.throughput > best.throughput):
            best = advice.exact
    return found, everything


def _advice(
    planner: Predicts, ranks: int, known: Sequence[Prediction], memory: float, before: Prediction | None
) -> Advice:
    if not known:
        return Advice(ranks, why_not=planner.why_not(ranks))
    fitting = [one for one in known if one.joined and (not memory or one.memory <= memory)]
    if not fitting:
        least = min(one.memory for one in known if one.joined)
        return Advice(ranks, why_not=f"a rank needs {least / 2**30:.3g} GiB at least")
    exact = sorted((one for one in fitting if not one.changes), key=_order)
    others = sorted((one for one in fitting if one.changes), key=_order)
    slower = before.ranks if exact and before and before.throughput >= exact[0].throughput else 0
    return Advice(
        ranks, exact[0] if exact else None, others[0] if others else None, _reason(exact) if exact else "",
        "" if exact else "no exact schedule fits", slower,
    )  # fmt: skip


def _order(one: Prediction) -> tuple[float, int, int]:
    """The fastest first; of equal ones that with fewer stages, and gradients before what is the same without them."""
    return -one.throughput, one.stages, one.consensus != "gradients"


def _reason(exact: Sequence[Prediction]) -> str:
    """Where the time goes, and how much slower the next grid is."""
    best = exact[0]
    told = [f"{min(1.0, best.computing / best.seconds):.0%} computing, {best.exchanging / best.seconds:.0%} sums"]
    others = [one for one in exact if (one.stages, one.shards) != (best.stages, best.shards)]
    if others:
        ratio = best.throughput / others[0].throughput
        told.append(f"{grid_text(others[0])} takes {ratio:.2f} times as long")
    return "; ".join(told)


def grid_text(one: Prediction) -> str:
    """Replicas x stages, or replicas x shards where there are any."""
    return f"{one.replicas:,} x {one.stages * one.shards}"


def chosen(found: Sequence[Advice]) -> Prediction | None:
    """The ranks that are worth it: of exact grids with an efficiency of at least `ENOUGH` the knee of their profile.

    That is where speed-up times efficiency is largest (Eager, Zahorjan & Lazowska 1989, IEEE Transactions on Computers
    38, 408-423): beyond it, ranks cost more efficiency than they win time.
    """
    good = [one.exact for one in found if one.exact and one.exact.efficiency >= ENOUGH]
    return max(good, key=lambda one: one.speedup * one.efficiency, default=None)


def counts_of(text: str) -> list[int]:
    """Numbers of ranks: "64", "1,6,48", or "1-100000" for the powers of two between and both ends; else InputError."""
    found: set[int] = set()
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError("--ranks", f"expected numbers such as 64, 1,6,48 or 1-100000, got {text!r}")
        low, high = int(first), int(last or first)
        if not 1 <= low <= high <= MOST:
            raise InputError("--ranks", f"expected numbers from 1 to {MOST:,} that rise, got {piece.strip()!r}")
        found |= {low, high} | {2**power for power in range(high.bit_length()) if low <= 2**power <= high}
    return sorted(found)


MOST = 10_000_000
