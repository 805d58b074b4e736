"""Data sets in NumPy's own files, .npz."""

from math import prod
from pathlib import Path
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic

from mpinn.array.typing import Array
from mpinn.config import Data, InputError
from mpinn.datasets.samples import MOST, Source
from mpinn.datasets.sound import Contents

NAMES = (("x_{}", "y_{}"), ("{}_x", "{}_y"), ("{}_x", "{}_target"))
"""The ways to name the arrays; {} is train, test and, if there is one, validation."""

HEADERS = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}


def npz(data: Data, read: int) -> Source:
    """The file ``data.path``; a tenth of its training split becomes validation if it has none. Raises InputError."""
    if not data.path:
        raise InputError("data.path", 'data.name = "npz" needs the path of a file')
    path = Path(data.path)
    found = _load(path)
    fitting = [names for names in NAMES if {name.format("train") for name in names} <= found.keys()]
    if not fitting:
        raise InputError(
            str(path),
            f"expected x_train and y_train, or train_x and train_y, and so on; got {', '.join(found) or 'nothing'}",
        )
    x, target = fitting[0]
    named = {
        f"{split}/{kind}": name.format(split)
        for split in ("train", "validation", "test")
        for kind, name in (("x", x), ("target", target))
    }
    arrays = {
        place: _images(found[name]) if place.endswith("/x") else _column(found[name])
        for place, name in named.items()
        if name in found
    }
    return Contents(path.name, f"{path}:", arrays, {}, read, named).source()


def _load(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise InputError("data.path", f"there is no file {str(path)!r}")
    try:
        with open(path, "rb") as opened:
            if not is_zipfile(opened):
                raise InputError("data.path", f"{str(path)!r} is not a .npz file")
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise InputError("data.path", f"{str(path)!r} cannot be read as .npz: {error}") from error


def _check_sizes(path: Path) -> None:
    """ValueError if an array claims more than its file has, before memory is taken for it."""
    with ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                version = read_magic(file)
                if version not in HEADERS:
                    raise ValueError(f"{entry.filename} is of a version {version} that no array of numbers needs")
                shape, _, dtype = HEADERS[version](file)
            if not dtype.hasobject and prod(shape) * dtype.itemsize > min(entry.file_size, MOST * entry.compress_size):
                raise ValueError(f"{entry.filename} claims the shape {shape}, for which too few bytes are stored")


def _images(x: Array) -> Array:
    """Images without an axis of channels get one."""
    return np.ascontiguousarray(x[..., None] if x.ndim == 3 else x)


def _column(target: Array) -> Array:
    """Labels in a column become a row."""
    return target[:, 0] if target.ndim == 2 and target.shape[1] == 1 and target.dtype.kind in "ui" else target
