"""Where samples come from: the data sets by name, and what one rank checks before anything starts."""

from collections.abc import Callable, Mapping
from typing import Any

from mpinn.config import Data, InputError, not_one_of
from mpinn.datasets.hdf5 import digits, hdf5
from mpinn.datasets.samples import Source, Split

__all__ = ["SOURCES", "Source", "Split", "check_source", "open_source"]

SOURCES: Mapping[str, Callable[[Data], Source]] = {"digits": digits, "hdf5": hdf5}
"""What ``data.name`` may be."""


def open_source(data: Data) -> Source:
    """The data set that ``data`` names, in memory; InputError if it is not there, not complete or not sound."""
    if data.name not in SOURCES:
        raise not_one_of("data.name", data.name, tuple(SOURCES))
    return SOURCES[data.name](data)


def check_source(data: Data) -> dict[str, Any]:
    """What one rank checks before anything starts: the `Source.summary` for the others, or an InputError."""
    source = open_source(data)
    size = source.splits["train"].size
    if data.batch > size:
        raise InputError("data.batch", f"{data.batch} is more than the {size} samples of the training split")
    return source.summary()
