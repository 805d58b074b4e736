"""Special functions."""

import math
from typing import Any

import numpy as np
from cupy._engine import apply


def _erf(x: Any, out: Any = None) -> Any:
    values = np.array([math.erf(value) for value in np.ravel(x).tolist()], np.result_type(x, np.float32))
    values = values.reshape(np.shape(x))
    if out is None:
        return values
    np.copyto(out, values)
    return out


def erf(x: Any, out: Any = None) -> Any:
    """The error function of each element."""
    return apply(_erf, [x], {} if out is None else {"out": out})
