"""Numbers of which each member of a population has one: a list, a range, or draws from a distribution."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import exp, isfinite, log
from typing import Any, ClassVar, Self

import numpy as np
from numpy.random import default_rng

from mpinn.config import Nested
from mpinn.errors import InputError
from mpinn.words import nearest, show

SWEEP_STREAM = 0x53574545
MOST = 1_000_000
"""Numbers of one range."""
LISTED = "a list; a range {from = 1, to = 100, step = 1} or {from = 0.001, to = 1, count = 4, scale = 'log'}"
DRAWN = "draws {draw = 'uniform' or 'log_uniform', low = 0.001, high = 0.1, seed = 0}"
KEYS = (("from", "to", "step"), ("from", "to", "count", "scale"), ("draw", "low", "high", "seed"))


@dataclass(frozen=True)
class Sweep(Nested):
    """What was ``written``: numbers, or a table. Without numbers every member has what all have."""

    written: tuple[float, ...] | Mapping[str, Any] = field(default=())

    number: ClassVar[type] = float
    least: ClassVar[float] = 0.0
    forms: ClassVar[str] = f"{LISTED}; or {DRAWN}"

    @classmethod
    def read(cls, path: str, value: Any, problems: list[InputError]) -> Self | None:
        try:
            found = cls(tuple(cls._number(item) for item in value) if isinstance(value, list) else cls._table(value))
        except ValueError as problem:
            problems.append(InputError(path, f"{problem}; expected {cls.forms}"))
            return None
        return found

    @classmethod
    def _table(cls, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError(f"got {show(value)}")
        keys = next((keys for keys in KEYS if value.keys() <= {*keys} and {*keys[:2]} <= value.keys()), None)
        if keys is None or ("draw" in keys and "high" not in value):
            known = tuple(dict.fromkeys(key for keys in KEYS for key in keys))
            unknown = next((key for key in value if key not in known), "")
            raise ValueError(f"{unknown} is unknown{nearest(unknown, known)}" if unknown else f"got {show(value)}")
        table = dict(value)
        ends = ("low", "high") if "draw" in keys else ("from", "to")
        for key in ends:
            table[key] = cls._number(table[key])
        if table[ends[0]] > table[ends[1]]:
            raise ValueError(f"{ends[0]} {table[ends[0]]} is above {ends[1]} {table[ends[1]]}")
        cls._check(table, ends[0])
        return table

    @classmethod
    def _check(cls, table: Mapping[str, Any], low: str) -> None:
        whole = {key: table[key] for key in ("count", "seed") if key in table}
        if any(not isinstance(value, int) or isinstance(value, bool) or value < 0 for value in whole.values()):
            raise ValueError(f"{' and '.join(whole)} must be whole numbers of at least 0, got {show(whole)}")
        choices = {"draw": ("uniform", "log_uniform"), "scale": ("linear", "log")}
        for key, allowed in choices.items():
            if table.get(key, allowed[0]) not in allowed:
                raise ValueError(f"{key} {show(table[key])} is not one of {', '.join(allowed)}")
        if "log" in str(table.get("scale", table.get("draw"))) and table[low] <= 0:
            raise ValueError(f"a logarithmic range begins above 0, got {show(table[low])}")
        step = table.get("step", 1)
        if (
            not isinstance(step, (int, float))
            or not step > 0
            or (table.get("to", 0) - table.get("from", 0)) / step > MOST
        ):
            raise ValueError(f"step {show(step)} must be above 0 and make at most {MOST:,} numbers")
        if not 0 < table.get("count", 1) <= MOST:
            raise ValueError(f"count {table['count']} must be from 1 to {MOST:,}")

    @classmethod
    def _number(cls, value: Any) -> float:
        right = isinstance(value, (int, cls.number)) and not isinstance(value, bool)
        if not right or not isfinite(value) or value < cls.least:
            kind = "whole numbers" if cls.number is int else "numbers"
            raise ValueError(f"{show(value)} is not allowed: {kind} of at least {cls.least:g}")
        number: float = cls.number(value)
        return number

    def tables(self) -> Any:
        return dict(self.written) if isinstance(self.written, Mapping) else list(self.written)

    @classmethod
    def expected(cls) -> str:
        kind = "whole numbers" if cls.number is int else "numbers"
        return f"{kind} of at least {cls.least:g}: {cls.forms}"

    @property
    def drawn(self) -> bool:
        """Whether every member draws its own."""
        return isinstance(self.written, Mapping) and "draw" in self.written

    def axis(self) -> tuple[float | None, ...]:
        """The numbers that are combined with those of other sweeps; one None where there are none."""
        if not isinstance(self.written, Mapping):
            return self.written or (None,)
        return (None,) if self.drawn else tuple(self._range(self.written))

    def _range(self, table: Mapping[str, Any]) -> Iterator[float]:
        low, high = table["from"], table["to"]
        if "count" in table or "scale" in table:
            spread = np.geomspace if table.get("scale") == "log" else np.linspace
            for value in spread(low, high, table.get("count", 2)).tolist():
                yield round(value) if self.number is int else value
        else:
            step = table.get("step", 1)
            for place in range(int((high - low) / step * (1 + 1e-12)) + 1):
                yield self.number(low + place * step)

    def draw(self, member: int) -> float:
        """What the member of this number draws, whatever others there are."""
        table = self.written
        if not isinstance(table, Mapping):
            raise TypeError("nothing is drawn from a list")
        uniform = default_rng([SWEEP_STREAM, table.get("seed", 0), member]).uniform()
        low, high = table["low"], table["high"]
        if table["draw"] == "log_uniform":
            return float(exp(log(low) + uniform * (log(high) - log(low))))
        return float(low + uniform * (high - low))


@dataclass(frozen=True)
class WholeSweep(Sweep):
    """Whole numbers, which nobody draws."""

    number: ClassVar[type] = int
    forms: ClassVar[str] = LISTED

    @classmethod
    def _check(cls, table: Mapping[str, Any], low: str) -> None:
        if "draw" in table or not isinstance(table.get("step", 1), int):
            raise ValueError("whole numbers are listed or in a range with a whole step")
        super()._check(table, low)


@dataclass(frozen=True)
class Widths(WholeSweep):
    """Whole numbers from 1 on."""

    least: ClassVar[float] = 1.0
