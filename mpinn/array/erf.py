"""The error function, which NumPy lacks: a compiled universal function, made at its first use."""

from functools import cache
from math import erf as scalar_erf
from typing import Any

import numpy as np


@cache
def erf_function(library: str) -> Any:
    """``erf(x, out=...)`` for arrays of ``library``, which is "numpy" or "cupy"."""
    if library == "cupy":
        from cupyx.scipy.special import erf

        return erf
    from numba import vectorize

    types = ["float32(float32)", "float64(float64)"]
    try:
        return vectorize(types, cache=True)(_erf)
    except RuntimeError:  # nowhere to keep it, as in `mpinn.array.jit`, which is not imported where nothing is compiled
        return vectorize(types)(_erf)


def _erf(x: float) -> float:
    return scalar_erf(x)


def erf(x: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> None:
    """Write erf(x) to ``out``, elementwise."""
    erf_function(type(x).__module__.partition(".")[0])(x, out=out)
