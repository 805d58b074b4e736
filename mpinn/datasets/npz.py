"""Data sets in NumPy's own files, .npz."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic

from mpinn.config import Data, InputError
from mpinn.datasets.samples import MOST, Source
from mpinn.datasets.sound import Contents

NAMES = (("x_{}", "y_{}"), ("{}_x", "{}_y"), ("{}_x", "{}_target"))
"""The ways to name the arrays; {} is train, test and, if there is one, validation."""

CONVERT = "convert it before it is saved, with astype(float) or astype(int)"

HEADERS = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}


def npz(data: Data, read: int) -> Source:
    """The file ``data.path``; a tenth of its training split becomes validation if it has none. Raises InputError."""
    if not data.path:
        raise InputError("data.path", 'data.name = "npz" needs the path of a file')
    path = Path(data.path)
    if not path.is_file():
        raise InputError("data.path", f"there is no file {str(path)!r}")
    try:
        with open(path, "rb") as opened:
            if not is_zipfile(opened):
                raise InputError("data.path", f"{str(path)!r} is not a .npz file")
        with np.load(path, allow_pickle=False) as file:
            named = _named(path, file.files)
            _check_headers(path, set(named.values()))
            arrays = {place: file[name] for place, name in named.items() if name in file.files}
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise InputError("data.path", f"{str(path)!r} cannot be read as .npz: {error}") from error
    return Contents(path.name, f"{path}:", arrays, {}, read, named).source()


def _named(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The names of the arrays that are a data set, by what they are, such as train/x."""
    fitting = [pair for pair in NAMES if {name.format("train") for name in pair} <= {*names}]
    if not fitting:
        expected = "expected x_train and y_train, or train_x and train_y, and so on"
        raise InputError(str(path), f"{expected}; got {', '.join(names) or 'nothing'}")
    x, target = fitting[0]
    return {
        f"{split}/{kind}": name.format(split)
        for split in ("train", "validation", "test")
        for kind, name in (("x", x), ("target", target))
    }


def _check_headers(path: Path, wanted: set[str]) -> None:
    """Raise for what is no array of numbers, or claims more than its file has, before memory is taken for it."""
    with ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name not in wanted:
                continue
            with archive.open(entry) as file:
                version = read_magic(file)
                if version not in HEADERS:
                    raise ValueError(f"{entry.filename} is of a version {version} that no array of numbers needs")
                shape, _, dtype = HEADERS[version](file)
            if dtype.hasobject:
                raise InputError(f"{path}:{name}", f"expected integers or floats, got the type {dtype}: {CONVERT}")
            if prod(shape) * dtype.itemsize > min(entry.file_size, MOST * entry.compress_size):
                raise ValueError(f"{entry.filename} claims the shape {shape}, for which too few bytes are stored")
