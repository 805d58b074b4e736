"""Single values and short lists as `inspect` and `diff` print them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpinn.array.typing import Array

WHOLE = 8
"""Elements of the longest array that is shown whole; of a longer one its shape and range."""


def short(value: Any) -> str:
    """One value of a configuration, a line of metrics or a checkpoint."""
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(short, value))}]"
    if isinstance(value, dict):
        return f"{{{pairs(value)}}}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def pairs(values: Mapping[str, Any]) -> str:
    """All values of a table in one line."""
    return ", ".join(f"{key} {short(value)}" for key, value in values.items())


def shape_text(shape: Sequence[int]) -> str:
    """Such as 64x10."""
    return "x".join(map(str, shape)) or "scalar"


def number(value: float | None) -> str:
    """Three digits; nothing for None."""
    return "" if value is None else f"{value:.3g}"


def _array(values: Array) -> str:
    if values.size <= WHOLE:
        return short(values.tolist())
    known = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    span = f"{short(known.min().item())} to {short(known.max().item())}" if known.size else "nothing finite"
    missing = values.size - known.size
    return f"({shape_text(values.shape)}, {span}{f', {missing:,} not finite' if missing and known.size else ''})"
