"""What is done to samples before they enter a network."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpinn.array.typing import Array, Dtype
from mpinn.config import Data, InputError, read_options
from mpinn.datasets.samples import normalised_in
from mpinn.datasets.source import Source, open_source
from mpinn.storage.reader import Checkpoint


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std of each channel; both are (C,), C the last axis of a sample."""

    mean: Array
    std: Array

    def apply(self, x: Array, dtype: Dtype) -> Array:
        """A normalised copy of x: (B, ..., C), computed as in training."""
        within = normalised_in(x.dtype, dtype)
        found = np.array(x, within)
        np.subtract(found, self.mean.astype(within), out=found)
        np.divide(found, self.std.astype(within), out=found)
        return found.astype(dtype, copy=False)


def normalisation_of(checkpoint: Checkpoint) -> Normalisation:
    """As the file has it; if it is of a program that did not write it down, as the data set of the run has it."""
    data = checkpoint.data
    if "mean" in data and "std" in data:
        return Normalisation(np.asarray(data["mean"]), np.asarray(data["std"]))
    try:
        source = source_of(checkpoint)
    except InputError as error:
        said = "it does not say how samples were normalised, and its data set is not here"
        raise InputError(str(checkpoint.path), f"{said}: {error}") from None
    return Normalisation(source.mean, source.std)


def source_of(checkpoint: Checkpoint, path: str = "") -> Source:
    """The data set of the run, or the one at ``path``; InputError if it is not here or is another one."""
    table: dict[str, Any] = {**checkpoint.configuration["data"], **({"path": path} if path else {})}
    problems: list[InputError] = []
    options: Data = read_options("data", "[data]", table, Data, problems)
    if problems:
        raise problems[0]
    source = open_source(options)
    known, shape = checkpoint.data.get("sample_shape"), " x ".join(map(str, source.sample_shape))
    if known not in (None, shape):
        raise InputError("data.path", f"the samples there have the shape {shape}, the model takes {known}")
    return source
