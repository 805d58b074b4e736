"""Data sets in NumPy's own files, .npz."""

from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np

from mpinn.array.typing import Array
from mpinn.config import Data, InputError
from mpinn.datasets.samples import Source
from mpinn.datasets.sound import Contents

NAMES = (("x_{}", "y_{}"), ("{}_x", "{}_y"), ("{}_x", "{}_target"))
"""The ways to name the arrays; {} is train, test and, if there is one, validation."""


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
    arrays: dict[str, Array] = {}
    for split in ("train", "validation", "test"):
        for kind, name in (("x", x.format(split)), ("target", target.format(split))):
            if name in found:
                arrays[f"{split}/{kind}"] = _images(found[name]) if kind == "x" else _column(found[name])
    return Contents(path.name, f"{path}:", arrays, {}, read).source()


def _load(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise InputError("data.path", f"there is no file {str(path)!r}")
    if not is_zipfile(path):
        raise InputError("data.path", f"{str(path)!r} is not a .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise InputError("data.path", f"{str(path)!r} cannot be read as .npz: {error}") from error


def _images(x: Array) -> Array:
    """Images without an axis of channels get one."""
    return np.ascontiguousarray(x[..., None] if x.ndim == 3 else x)


def _column(target: Array) -> Array:
    """Labels in a column become a row."""
    return target[:, 0] if target.ndim == 2 and target.shape[1] == 1 and target.dtype.kind in "ui" else target
