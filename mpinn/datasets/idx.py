"""MNIST's own format: IDX files, plain or compressed with gzip."""

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np

from mpinn.array.typing import Array
from mpinn.config import InputError
from mpinn.datasets.originals import Originals, labels
from mpinn.datasets.samples import Split

GZIP = b"\x1f\x8b"
UINT8 = 0x08


def read_mnist(folder: Path) -> Originals:
    """The four files of MNIST, or of another data set in its format, in a folder; raises InputError."""
    if not folder.is_dir():
        raise InputError(str(folder), "there is no such folder")
    train, test = _split(folder, "train"), _split(folder, "t10k")
    if train.x.shape[1:] != test.x.shape[1:]:
        raise InputError(str(folder), f"images of {train.x.shape[1:3]} for training and {test.x.shape[1:3]} for test")
    return Originals(train, test, tuple("0123456789"))


def _split(folder: Path, name: str) -> Split:
    images, targets = _find(folder, f"{name}-images", 3), _find(folder, f"{name}-labels", 1)
    x, target = read_idx(images, 3), read_idx(targets, 1)
    if len(x) != len(target):
        raise InputError(str(targets), f"{len(target)} labels for the {len(x)} images of {images.name}")
    if x.size == 0:
        raise InputError(str(images), f"there are no values in it: its shape is {x.shape}")
    return Split(x[..., None], labels(target))


def _find(folder: Path, stem: str, axes: int) -> Path:
    names = [f"{stem}{dot}idx{axes}-ubyte{end}" for end in ("", ".gz") for dot in "-."]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(str(folder), f"there is neither {names[0]} nor {names[2]} in it")


def read_idx(path: Path, axes: int) -> Array:
    """The uint8 array in an IDX file; InputError if it is damaged or has another number of axes."""
    content = _content(path)
    if len(content) < 4 or content[:2] != b"\0\0":
        raise InputError(str(path), f"is not an IDX file: it begins with {content[:4].hex(' ') or 'nothing'}")
    if content[2] != UINT8 or content[3] != axes:
        raise InputError(
            str(path), f"expected bytes with {axes} axes (magic 00 00 08 {axes:02x}), got {content[:4].hex(' ')}"
        )
    first = 4 + 4 * axes
    if len(content) < first:
        raise InputError(str(path), f"ends within its header, after {len(content)} bytes")
    shape = tuple(np.frombuffer(content[4:first], ">u4").tolist())
    if len(content) - first != prod(shape):
        says = f"{' x '.join(map(str, shape))} bytes"
        raise InputError(str(path), f"its header announces {says}, but {len(content) - first} follow")
    return np.frombuffer(content, np.uint8, offset=first).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == GZIP else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(str(path), f"cannot be read: {error}") from error
