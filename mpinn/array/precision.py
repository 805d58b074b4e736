"""The types of numbers that activations are stored in, and parameters beside them."""

from functools import cache

import numpy as np

from mpinn.array.typing import Dtype

BFLOAT16 = "E"
"""The letter of bfloat16, a type that NumPy has not itself."""


@cache
def bfloat16() -> Dtype:
    """The upper half of float32: its range, with 8 bits of mantissa. Raises ImportError without ml_dtypes."""
    import ml_dtypes

    found: Dtype = np.dtype(ml_dtypes.bfloat16)
    return found


def wide(dtype: Dtype) -> Dtype:
    """The type of parameters, statistics and arithmetic where activations are stored as ``dtype``."""
    return np.dtype(np.float32) if dtype.char == BFLOAT16 else dtype


def activations(dtype: str, bf16: bool) -> Dtype:
    """The type in which a run stores activations, by its keys ``run.dtype`` and ``run.bf16``."""
    return bfloat16() if bf16 else np.dtype(dtype)
