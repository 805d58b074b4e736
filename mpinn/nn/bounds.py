"""The ranges of hyper-parameters: each check raises ValueError with a sentence that begins with the field."""

from collections.abc import Iterable

from mpinn.array.im2col import Pair, extent
from mpinn.array.typing import Shape


def at_least(name: str, value: int, least: int) -> None:
    """Refuse a value below ``least``."""
    if value < least:
        raise ValueError(f"{name} is {value}, it must be at least {least}")


def at_most(name: str, value: float, most: float) -> None:
    """Refuse a value above ``most``."""
    if not value <= most:
        raise ValueError(f"{name} is {value}, it must be at most {most}")


def share(name: str, value: float) -> None:
    """Refuse a value outside [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}, it must be at least 0 and less than 1")


def known(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a word that is not one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, it must be one of {', '.join(choices)}")


def positive(name: str, value: float) -> None:
    """Refuse a value that is not above zero."""
    if not value > 0:
        raise ValueError(f"{name} is {value}, it must be positive")


def pair(name: str, value: int | Pair, least: int) -> Pair:
    """(height, width) of a field that may be one number for both; refuses numbers below ``least``."""
    both = (value, value) if isinstance(value, int) else (value[0], value[1])
    for number in both:
        at_least(name, number, least)
    return both


def windows(shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Shape:
    """(OH, OW) for an image of ``shape`` (H, W, C); refuses other shapes, and images smaller than the kernel."""
    if len(shape) != 3:
        raise ValueError(f"the layer takes images of shape (height, width, channels), not samples of shape {shape}")
    high, wide = (extent(shape[axis], kernel[axis], stride[axis], padding[axis]) for axis in (0, 1))
    if min(high, wide) < 1:
        raise ValueError(f"a {kernel[0]}x{kernel[1]} kernel is larger than the padded image of shape {shape}")
    return high, wide
