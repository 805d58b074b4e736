"""Data sets in HDF5 files: /train/x, /train/target, as much of validation and test; attributes mean, std, classes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import mpinn
from mpinn.config import Data, InputError
from mpinn.datasets.samples import MOST, Samples, Source, Split
from mpinn.datasets.sound import Contents
from mpinn.datasets.stored import Stored

CHUNK = 2**15
"""Bytes, about, of a chunk: small, since a batch takes samples from everywhere, and a chunk is read as a whole."""


def digits(data: Data, read: int) -> Source:
    """The handwritten digits that come with the program."""
    if data.path:
        said = f"the digits come with the program and have no path, got {data.path!r}"
        raise InputError("data.path", f"{said}; data.name = hdf5 or npz is for a file of your own")
    package = Path(mpinn.__file__).parent
    places = (package / "data" / "digits.h5", package.parent / "data" / "digits.h5")
    for place in places:
        if place.is_file():
            return read_hdf5(place, read)
    raise InputError("data.name", f"digits needs the file {places[0]} or {places[1]}, and there is neither")


def hdf5(data: Data, read: int) -> Source:
    """The file ``data.path``; a tenth of its training split becomes validation if it has none."""
    if not data.path:
        raise InputError("data.path", 'data.name = "hdf5" needs the path of a file')
    return read_hdf5(Path(data.path), read)


def read_hdf5(path: Path, read: int) -> Source:
    """The data set in a file; InputError if it is not complete and sound. Samples up to ``read`` bytes are checked."""
    if not path.is_file():
        raise InputError("data.path", f"there is no file {str(path)!r}")
    try:
        if not h5py.is_hdf5(path):
            raise InputError("data.path", f"{str(path)!r} is not an HDF5 file")
        # The file is only read: a lock gains nothing, and many shared file systems refuse it.
        with h5py.File(path, "r", locking=False) as file:
            return Contents(path.name, f"{path}:/", _arrays(path, file), _attributes(path, file), read).source()
    except OSError as error:
        raise InputError("data.path", f"{str(path)!r} cannot be read: {error}") from error


def _arrays(path: Path, file: h5py.File) -> Mapping[str, Samples]:
    """Targets in memory, samples in the file; what is neither is left out."""
    arrays: dict[str, Samples] = {}
    for split in ("train", "validation", "test"):
        group = file.get(split)
        if isinstance(group, h5py.Group):
            for kind in ("x", "target"):
                entry = group.get(kind)
                if isinstance(entry, h5py.Dataset):
                    if entry.shape is None:
                        raise InputError(f"{path}:{entry.name}", "there are no values in it")
                    _check_size(path, entry)
                    arrays[f"{split}/{kind}"] = Stored(path, f"{split}/{kind}", entry.shape, entry.dtype)
    return arrays


def _attributes(path: Path, file: h5py.File) -> Mapping[str, Any]:
    """The numbers that are asked for. Nothing else is looked at: HDF5 may read a damaged text for ever."""
    found: dict[str, Any] = {}
    for name in ("mean", "std", "classes"):
        if name in file.attrs:
            found[name] = _numbers(file.attrs, name)
            if found[name] is None:
                raise InputError(f"{path}:/", f"the attribute {name} must be numeric")
    return found


def _numbers(attributes: h5py.AttributeManager, name: str) -> Any:
    """The value of an attribute; None if it has none, or one that is not of numbers."""
    try:
        kind = attributes.get_id(name).dtype.kind
    except TypeError:  # of a type that NumPy has not
        return None
    value = attributes[name] if kind in "biuf" else None
    return None if isinstance(value, h5py.Empty) else value


def _check_size(path: Path, entry: h5py.Dataset) -> None:
    """What is stored must be able to become what is claimed, before memory is taken for that."""
    if not entry.is_virtual and entry.nbytes > MOST * entry.id.get_storage_size():
        raise InputError(f"{path}:{entry.name}", f"claims {entry.nbytes} bytes, of which too few are stored")


def write_hdf5(path: Path, source: Source, attributes: Mapping[str, str | Sequence[str]]) -> None:
    """Write a data set whose targets are labels, so that there is either the whole file or none."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with h5py.File(part, "w", libver="v110") as file:
            for name, split in source.splits.items():
                _write_split(file, name, split)
            file.attrs.update({"mean": source.mean, "std": source.std, "classes": source.classes, **attributes})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_split(file: h5py.File, name: str, split: Split) -> None:
    x, labels = split.x[:], split.target.astype(np.min_scalar_type(int(split.target.max())))
    rows = min(len(x), max(1, CHUNK * len(x) // x.nbytes))
    for kind, values, chunks in (("x", x, (rows, *x.shape[1:])), ("target", labels, labels.shape)):
        file.create_dataset(f"{name}/{kind}", data=values, chunks=chunks, fletcher32=True, track_times=False)
