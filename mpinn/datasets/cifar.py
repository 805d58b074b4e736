"""CIFAR-10 and CIFAR-100: the binary and the Python version, in a folder or in the official archive."""

import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpinn.array.typing import Array
from mpinn.config import InputError
from mpinn.datasets.originals import Originals, labels
from mpinn.datasets.samples import Split
from mpinn.datasets.unpickle import RefusedError, loads

CHANNELS, SIDE = 3, 32
PIXELS = CHANNELS * SIDE * SIDE


@dataclass(frozen=True)
class Version:
    """One of the two forms in which a data set is published; ``files`` say how many images each of them has."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    images: Mapping[str, int]

    @property
    def files(self) -> tuple[str, ...]:
        """All files that hold images."""
        return self.train + self.test


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets: ``label_bytes`` stand before an image, of which the last is the class."""

    binary: Version
    python: Version
    label_bytes: int
    label_key: str
    names_key: str

    def read(self, path: Path) -> Originals:
        """The data set in a folder, or in an archive .tar.gz; raises InputError."""
        version, files = self._files(path)
        places = {name: f"{path}/{name}" if path.is_dir() else f"{path}:{name}" for name in files}
        missing = [name for name in version.files if name not in files]
        if missing:
            raise InputError(str(path), f"{', '.join(missing)} missing in it")
        binary = version is self.binary
        one = self._binary if binary else self._python
        train, test = (
            _joined([one(places[name], files[name], version.images[name]) for name in names])
            for names in (version.train, version.test)
        )
        names = files.get(version.names)
        if names is None:
            return Originals(train, test, ())
        return Originals(train, test, _lines(names) if binary else self._names(places[version.names], names))

    def _files(self, path: Path) -> tuple[Version, Mapping[str, bytes]]:
        """The version that is there, and the content of those of its files that are."""
        versions = (self.binary, self.python)
        if path.is_file():
            files = _archive(path, {name for version in versions for name in (*version.files, version.names)})
            return max(versions, key=lambda version: sum(name in files for name in version.files)), files
        if not path.is_dir():
            raise InputError(str(path), "there is no such folder or archive")
        for version in versions:
            for folder in (path, path / version.folder):
                if (folder / version.train[0]).is_file():
                    there = [name for name in (*version.files, version.names) if (folder / name).is_file()]
                    return version, {name: _content(folder / name) for name in there}
        for version in versions:
            if (path / version.archive).is_file():
                return self._files(path / version.archive)
        wanted = ", ".join(f"{version.train[0]} or {version.archive}" for version in versions)
        raise InputError(str(path), f"there is none of {wanted} in it")

    def _binary(self, place: str, content: bytes, images: int) -> Split:
        record = self.label_bytes + PIXELS
        if len(content) != images * record:
            raise InputError(
                place, f"expected {images} records of {record} bytes, {images * record}, got {len(content)}"
            )
        rows = np.frombuffer(content, np.uint8).reshape(images, record)
        return Split(_images(rows[:, self.label_bytes :]), labels(rows[:, self.label_bytes - 1]))

    def _python(self, place: str, content: bytes, images: int) -> Split:
        entries = _entries(place, content)
        data, target = entries.get("data"), entries.get(self.label_key)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (images, PIXELS):
            shape = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
            raise InputError(place, f"expected data to be uint8 {(images, PIXELS)}, got {shape}")
        if not isinstance(target, list) or len(target) != images or not all(map(_is_label, target)):
            raise InputError(place, f"expected {self.label_key} to be a list of {images} whole numbers from 0")
        return Split(_images(data), labels(np.array(target)))

    def _names(self, place: str, content: bytes) -> tuple[str, ...]:
        names = _entries(place, content).get(self.names_key, [])
        return tuple(name.decode("latin-1") if isinstance(name, bytes) else str(name) for name in names)


def _is_label(value: Any) -> bool:
    return type(value) is int and 0 <= value < 256


def _entries(place: str, content: bytes) -> dict[str, Any]:
    try:
        found = loads(content)
    except RefusedError as error:
        raise InputError(place, f"is not a file of CIFAR's Python version: {error}") from error
    if not isinstance(found, dict):
        raise InputError(place, f"expected a dict, got {type(found).__name__}")
    return {key.decode("latin-1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}


def _images(planes: Array) -> Array:
    """(n, 3072), the red, green and blue plane of each image, to (n, 32, 32, 3)."""
    return np.ascontiguousarray(planes.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1))


def _joined(splits: list[Split]) -> Split:
    return Split(np.concatenate([split.x[:] for split in splits]), np.concatenate([split.target for split in splits]))


def _lines(content: bytes) -> tuple[str, ...]:
    return tuple(line.strip() for line in content.decode("latin-1").splitlines() if line.strip())


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error}") from error


def _archive(path: Path, wanted: set[str]) -> dict[str, bytes]:
    """The wanted files of an archive, by their names without folders; nothing is written anywhere."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if member.isreg() and name in wanted and (content := archive.extractfile(member)):
                    files[name] = content.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        reason = str(error).partition(":\n")[0]  # below which tarfile says of each compression why it is not that
        raise InputError(str(path), f"cannot be read as an archive: {reason}") from error
    return files


PARTS = tuple(f"data_batch_{i}" for i in range(1, 6))
BINARY_PARTS = tuple(f"{part}.bin" for part in PARTS)

CIFAR10 = Cifar(
    binary=Version(
        folder="cifar-10-batches-bin",
        archive="cifar-10-binary.tar.gz",
        train=BINARY_PARTS,
        test=("test_batch.bin",),
        names="batches.meta.txt",
        images=dict.fromkeys((*BINARY_PARTS, "test_batch.bin"), 10_000),
    ),
    python=Version(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        train=PARTS,
        test=("test_batch",),
        names="batches.meta",
        images=dict.fromkeys((*PARTS, "test_batch"), 10_000),
    ),
    label_bytes=1,
    label_key="labels",
    names_key="label_names",
)
CIFAR100 = Cifar(
    binary=Version(
        folder="cifar-100-binary",
        archive="cifar-100-binary.tar.gz",
        train=("train.bin",),
        test=("test.bin",),
        names="fine_label_names.txt",
        images={"train.bin": 50_000, "test.bin": 10_000},
    ),
    python=Version(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        train=("train",),
        test=("test",),
        names="meta",
        images={"train": 50_000, "test": 10_000},
    ),
    label_bytes=2,
    label_key="fine_labels",
    names_key="fine_label_names",
)
