# ruff: noqa: F401
"""A stand-in for CuPy on machines without a GPU, for tests: arrays lie in memory of the host, kernels run there.

It has what the program uses of CuPy 14, and is stricter where CuPy is lenient and a device would be silently wrong.
"""

from typing import Any

import numpy as _numpy
from numpy import (
    bool_,
    dtype,
    float32,
    float64,
    inf,
    int8,
    int16,
    int32,
    int64,
    nan,
    newaxis,
    uint8,
    uint16,
    uint32,
    uint64,
)

from . import _functions, cuda
from ._array import ndarray
from ._creation import (
    arange,
    array,
    asarray,
    asnumpy,
    empty,
    empty_like,
    eye,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    zeros,
    zeros_like,
)
from ._kernels import RawKernel, RawModule
from ._pools import get_default_memory_pool
from .cuda import is_available

__version__ = "14.2.0"
EMULATED = True
"""CuPy has no such name: tests tell by it that they run on the stand-in."""

globals().update(_functions.exported())


def get_array_module(*args: Any) -> Any:
    """This package if any of the arguments is an array of it, else NumPy."""
    import cupy

    return cupy if any(isinstance(arg, ndarray) for arg in args) else _numpy
