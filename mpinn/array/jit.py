"""Compiling a kernel: serial, since each rank has its own core, and kept in a cache on disk, since many ranks start.

NaN and infinity behave as in NumPy: no flag lets the compiler assume that they do not occur.
"""

from collections.abc import Callable
from typing import Any

from numba import njit

Function = Callable[..., Any]

REORDERED = {"reassoc", "contract"}
"""Flags for sums: additions in any order, so that they run in vector registers."""


def kernel(function: Function) -> Function:
    """``function`` compiled at its first call for each combination of types.

    The cache notices that the kernel's own file has changed, but not that one it imports has: after a change of
    `mpinn.array.cpu_math`, remove the cache (__pycache__/*.nb?).
    """
    return _compile(function, False)


def sums(function: Function) -> Function:
    """The same for a function that adds up and so may add in any order; not for one that relies on how sums round."""
    return _compile(function, REORDERED)


def _compile(function: Function, fastmath: Any) -> Function:
    options = {"error_model": "numpy", "fastmath": fastmath}
    try:
        compiled: Function = njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to keep it: neither beside the source nor in the user's cache directory
        compiled = njit(**options)(function)
    return compiled
