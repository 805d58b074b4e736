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

    return vectorize(["float32(float32)", "float64(float64)"], cache=True)(_erf)


def _erf(x: float) -> float:
    return scalar_erf(x)


def erf(x: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> None:
    """Write erf(x) to ``out``, elementwise."""
    erf_function(type(x).__module__.partition(".")[0])(x, out=out)
