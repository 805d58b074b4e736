"""Compiling a kernel: serial, since each rank has its own core, and kept in a cache on disk, since many ranks start.

NaN and infinity behave as in NumPy: no flag lets the compiler assume that they do not occur.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from numba import config, njit
from numba.core.caching import IndexDataCacheFile

if config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise ImportError("NUMBA_DISABLE_JIT is set")

Function = Callable[..., Any]

REORDERED = {"reassoc", "contract"}
"""Flags for sums: additions in any order, so that they run in vector registers."""
UNUSABLE = (OSError, EOFError, UnpicklingError)
"""What numba raises where the disk of its cache is full, or a machine has died while it wrote there."""


class _Kept(IndexDataCacheFile):
    """What is kept of a kernel; a list of it that is damaged is written anew."""

    def _load_index(self) -> dict[Any, str]:
        found: dict[Any, str] = {}
        with suppress(*UNUSABLE):
            found = super()._load_index()  # type: ignore[no-untyped-call]
        return found


def kernel(function: Function) -> Function:
    """``function`` compiled at its first call for each combination of types."""
    return _compile(function, False)


def fused(function: Function) -> Function:
    """The same for a function whose products may be added without being rounded before."""
    return _compile(function, {"contract"})


def sums(function: Function) -> Function:
    """The same for a function that adds up and so may add in any order; not for one that relies on how sums round."""
    return _compile(function, REORDERED)


def _compile(function: Function, fastmath: Any) -> Function:
    options = {"error_model": "numpy", "fastmath": fastmath, "nogil": True}
    try:
        compiled: Any = njit(cache=True, **options)(function)
        # numba's cache notices a change of the kernel's own file alone, and kernels call functions of other files
        kept = compiled._cache
        stamp = (kept._cache_file._source_stamp, _sources())
        kept._cache_file = _Kept(kept.cache_path, kept._impl.filename_base, stamp)  # type: ignore[no-untyped-call]
        # what cannot be kept, or is damaged, is compiled: numba lets only Windows fail so
        kept._guard_against_spurious_io_errors = partial(suppress, *UNUSABLE)
    except RuntimeError:  # nowhere to keep it: neither beside the source nor in the user's cache directory
        compiled = njit(**options)(function)
    return compiled  # type: ignore[no-any-return]


@cache
def _sources() -> str:
    """A digest of all files that kernels are made of."""
    digest = blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
