"""Where samples come from: the data sets by name, and what one rank checks before anything starts."""

import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mpinn.config import Data, InputError, not_one_of
from mpinn.datasets.augment import Augmentation
from mpinn.datasets.hdf5 import digits, hdf5
from mpinn.datasets.npz import npz
from mpinn.datasets.samples import GIB, Source, Split

__all__ = ["SOURCES", "Source", "Split", "check_source", "open_source"]


def _official(data: Data, read: int) -> Source:
    from mpinn.datasets.official import official

    return official(data, read)


SOURCES: Mapping[str, Callable[[Data, int], Source]] = {
    "digits": digits,
    **dict.fromkeys(("mnist", "cifar10", "cifar100"), _official),
    "hdf5": hdf5,
    "npz": npz,
}
"""What ``data.name`` may be; the functions are told up to how many bytes samples are to be checked."""
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, MemoryError),
    *(zlib.error, struct.error),
)
"""What h5py, NumPy and zipfile make of damaged bytes."""


def open_source(data: Data) -> Source:
    """The data set that ``data`` names; InputError if it is not there or not complete."""
    return _open(data, 0)


def check_source(data: Data) -> dict[str, Any]:
    """What one rank checks before anything starts: the `Source.summary` for the others, or an InputError.

    All samples are read to see that they are sound, unless there are more of them than memory is to hold.
    """
    source = _open(data, _bytes(data))
    size = source.splits["train"].size
    if data.batch > size:
        raise InputError("data.batch", f"{data.batch} is more than the {size} samples of the training split")
    source.augmentation.check(source.sample_shape)
    return source.summary()


def _open(data: Data, read: int) -> Source:
    if data.name not in SOURCES:
        raise not_one_of("data.name", data.name, tuple(SOURCES))
    try:
        source = SOURCES[data.name](data, read)
    except PermissionError as error:
        raise InputError("data.path", f"{data.path or data.name!r} cannot be read: {error}") from error
    except UNREADABLE as error:
        raise InputError("data.path", f"{data.path or data.name!r} is damaged: {error}") from error
    return replace(source, augmentation=Augmentation(data.crop, data.flip), memory=_bytes(data))


def _bytes(data: Data) -> int:
    return int(min(data.memory * GIB, sys.maxsize))
