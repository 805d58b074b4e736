"""The stand-in for what CuPy has beside NumPy."""

from math import prod
from typing import Any

import numpy as np
from cupy._memory import alloc_pinned_memory


def empty_pinned(shape: Any, dtype: Any = float, order: str = "C") -> "np.ndarray[Any, Any]":
    """An array of the host in pinned memory."""
    shape = (int(shape),) if np.ndim(shape) == 0 else tuple(shape)
    kind = np.dtype(dtype)
    memory = alloc_pinned_memory(max(1, prod(shape) * kind.itemsize))
    return np.ndarray(shape, kind, np.frombuffer(memory, np.uint8), order=order)  # type: ignore[call-overload]


def zeros_pinned(shape: Any, dtype: Any = float, order: str = "C") -> "np.ndarray[Any, Any]":
    """The same with zeros."""
    made = empty_pinned(shape, dtype, order)
    made[...] = 0
    return made
