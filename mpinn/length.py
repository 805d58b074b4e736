"""Lengths of training and periods, as the configuration writes them."""

from fractions import Fraction
from math import ceil
from typing import ClassVar, Self


class Length(str):
    """A length of training, "100 steps" or "2 epochs"; zero is allowed, and so is a fraction of an epoch."""

    __slots__ = ()
    units: ClassVar[tuple[str, ...]] = ("step", "epoch")
    positive: ClassVar[bool] = False

    def __new__(cls, text: str) -> Self:
        """Bring ``text`` to its one spelling; ValueError if it is not a length of this type."""
        count, _, unit = text.strip().partition(" ")
        unit = unit.strip().removesuffix("s")
        if unit not in cls.units or not count.replace(".", "", 1).isdecimal() or not count.isascii():
            raise ValueError(f"expected {cls.expected()}")
        number = Fraction(count)
        if (cls.positive and number == 0) or (unit == "step" and number.denominator > 1):
            raise ValueError(f"expected {cls.expected()}")
        shown = str(number) if number.denominator == 1 else count
        return super().__new__(cls, f"{shown} {unit}{'' if number == 1 else 's'}")

    @classmethod
    def expected(cls) -> str:
        """What a user may write, for messages."""
        examples = {"step": '"100 steps"', "epoch": '"2 epochs"', "minute": '"15 minutes"'}
        return f"a length{' above zero' if cls.positive else ''} such as {' or '.join(examples[u] for u in cls.units)}"

    @property
    def number(self) -> Fraction:
        """How many of its unit."""
        return Fraction(self.split()[0])

    @property
    def unit(self) -> str:
        """``step``, ``epoch`` or ``minute``."""
        return self.split()[1].removesuffix("s")

    def steps(self, steps_per_epoch: int) -> int:
        """The length in steps, rounded up; ValueError for minutes, which no count of steps can express."""
        if self.unit == "minute":
            raise ValueError(f"{self!r} is not a number of steps")
        return ceil(self.number * (steps_per_epoch if self.unit == "epoch" else 1))


class Period(Length):
    """A `Length` above zero: what happens again and again."""

    __slots__ = ()
    positive = True


class Cadence(Period):
    """A `Period` that may also be counted in minutes."""

    __slots__ = ()
    units = ("step", "epoch", "minute")
