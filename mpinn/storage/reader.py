"""Reading a checkpoint or a run directory, without MPI and without changing anything."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from mpinn.array.typing import Array, Dtype, Shape
from mpinn.config import InputError
from mpinn.nn.layout import Layout
from mpinn.storage import schema
from mpinn.storage.damage import check_links, reads_files, sound
from mpinn.storage.lock import lockable


@dataclass(frozen=True, slots=True)
class Parameter:
    """One stored array: its path below the kind, shape and type, and whether it is the mean of replicas that differ."""

    name: str
    shape: Shape
    dtype: Dtype
    merged: bool


@reads_files
class Checkpoint:
    """One checkpoint file, open for reading; arrays are read when they are asked for.

    Raises InputError, which names the file, for whatever is not a readable checkpoint of this format and version, or is
    closed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._listed: dict[str, dict[str, tuple[Parameter, h5py.Dataset]]] = {}
        """What is below a path, by its name there, once all of it has been asked for."""
        try:
            # HDF5's best effort knows only some of those that have no locks, and after a failure it opens nothing more
            self._opened = h5py.File(self.path, "r", locking="best-effort" if lockable(self.path) else False)
        except FileNotFoundError as error:
            raise self._wrong("no such file") from error
        except OSError as error:
            raise self._wrong(f"not a readable HDF5 file: {error}") from error
        try:
            self._read_header()
            check_links(self._file)
        except BaseException:
            self._opened.close()
            raise

    def close(self) -> None:
        """Close the file, after which nothing more can be read from it."""
        self._opened.close()
        self._listed.clear()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def configuration(self) -> dict[str, Any]:
        """The configuration of the run."""
        return dict(json.loads(self._string(self._dataset(schema.CONFIGURATION))))

    @property
    def data(self) -> dict[str, Any]:
        """The position in the data."""
        return self._table("data")

    @property
    def random(self) -> dict[str, Any]:
        """The state of what draws random numbers."""
        return self._table("random")

    @property
    def scalars(self) -> dict[str, Any]:
        """Scores and other small results."""
        return self._table("scalars")

    @property
    def history(self) -> dict[str, Array]:
        """The columns of the metrics up to this step."""
        return self._table("history")

    @property
    def replicas(self) -> list[int]:
        """The replicas that have values of their own; none if all agree."""
        return sorted(int(name) for name in self._file.get(schema.REPLICA, ()))

    def kinds(self, replica: int | None = None) -> list[str]:
        """The vectors of the file, or those in which the replica differs: ``model/network``, ``state/network`` ..."""
        top = self._file if replica is None else self._file.get(schema.replica_path(replica, ""), {})
        return [kind for name in top if name != schema.REPLICA for kind in self._kinds_below(top[name])]

    def parameters(self, kind: str, replica: int | None = None) -> list[Parameter]:
        """The arrays of a kind in the order of the layers; for a replica those in which it differs."""
        path = kind if replica is None else schema.replica_path(replica, kind)
        return [parameter for parameter, _ in self._below(path).values()]

    def weights(self, name: str, kind: str | None = None, replica: int | None = None) -> Array:
        """One array, by default of the only model: ``weights("hidden1/dense/weight")``."""
        dataset = self._find(kind or self.model(), name, replica)
        values = np.empty(dataset.shape, dataset.dtype)
        self._read(dataset, values)
        return values

    def model(self) -> str:
        """The kind of the only model in the file."""
        models = self.models()
        if len(models) != 1:
            raise self._wrong(f"holds {len(models)} models, name one of them: {', '.join(models)}")
        return models[0]

    def models(self) -> list[str]:
        """The kinds of the models; auxiliary heads, which stand beside the network, are none."""
        found = [kind for kind in self.kinds() if kind.startswith("model/")]
        return [schema.NETWORK] if schema.NETWORK in found else found

    def blocks(self, kind: str, name: str, replica: int | None = None, itemsize: int = 0) -> Iterator[Array]:
        """The blocks of one array in C order, flat, of a few MiB each.

        Two arrays of one shape have the same blocks where ``itemsize`` is the same; by default it is the array's own.
        """
        dataset = self._find(kind, name, replica)
        for block in schema.blocks(dataset.shape, itemsize or dataset.dtype.itemsize):
            values = np.empty([s.stop - s.start for s in block.selection], dataset.dtype)
            self._read(dataset, values, block.selection)
            yield values.reshape(-1)

    def check(self, layout: Layout, kind: str, *, whole: bool = True) -> None:
        """Raise InputError unless the file has exactly the layout's parameters; if not ``whole``, it may have more."""
        stored = {parameter.name: parameter for parameter in self.parameters(kind)}
        for entry in layout:
            parameter = stored.pop(entry.name, None)
            if parameter is None:
                raise self._wrong(f"{kind}/{entry.name} is missing")
            if parameter.shape != entry.shape:
                raise self._wrong(f"{kind}/{entry.name} has shape {parameter.shape}, the model needs {entry.shape}")
            if parameter.dtype != layout.dtype:
                raise self._wrong(f"{kind}/{entry.name} is {parameter.dtype}, the model needs {layout.dtype}")
        if whole and stored:
            raise self._wrong(f"{kind}/{next(iter(stored))} is not in the model")

    def fill(self, layout: Layout, vector: Array, kind: str, replica: int | None = None, *, whole: bool = True) -> None:
        """Read a kind into a vector of the host, (layout.size,); a replica's own values where it has them.

        Nothing is written before ``check`` has passed; if reading fails after that, the vector is not to be used.
        """
        self.check(layout, kind, whole=whole)
        for entry in layout:
            self._read(self._find(kind, entry.name, replica), vector[entry.slice].reshape(entry.shape))

    def verify(self) -> None:
        """Read every block, so that HDF5 compares the checksums; raises InputError at the first one that is wrong."""
        for name, dataset in _leaves(self._file):
            for block in schema.blocks(dataset.shape, dataset.dtype.itemsize) if dataset.chunks else ():
                try:
                    dataset[block.selection]
                except (OSError, RuntimeError) as error:
                    raise self._wrong(f"/{name} cannot be read: {error}") from error

    @property
    def _file(self) -> h5py.File:
        if not self._opened:
            raise self._wrong("it has been closed, and nothing more can be read from it")
        return self._opened

    def _read_header(self) -> None:
        try:
            attributes = {name: self._file.attrs[name] for name in schema.ATTRIBUTES if name in self._file.attrs}
        except (OSError, RuntimeError) as error:
            raise self._wrong(f"damaged attributes: {error}") from error
        if _text(attributes.get("format")) != schema.FORMAT:
            raise self._wrong("not a checkpoint of this program")
        if attributes.get("version") != schema.VERSION:
            raise self._wrong(f"format version {attributes.get('version')}, this program reads {schema.VERSION}")
        try:
            self.step, self.epoch, self.seed = (int(attributes[name]) for name in ("step", "epoch", "seed"))
            replicas, stages, shards = (int(length) for length in attributes["grid"])
            self.dtype, self.program = _text(attributes["dtype"]), _text(attributes["program"])
        except (KeyError, ValueError, TypeError) as error:
            raise self._wrong(f"damaged attributes: {error}") from error
        self.grid = (replicas, stages, shards)

    def _kinds_below(self, item: h5py.Group | h5py.Dataset) -> list[str]:
        if isinstance(item, h5py.Dataset):
            return []
        if schema.KIND in item.attrs:
            return [_text(item.attrs[schema.KIND])]
        return [kind for name in item for kind in self._kinds_below(item[name])]

    def _below(self, path: str) -> dict[str, tuple[Parameter, h5py.Dataset]]:
        if path not in self._listed:
            leaves = _leaves(self._file.get(path, {}))
            self._listed[path] = {name: (_parameter(name, dataset), dataset) for name, dataset in leaves}
        return self._listed[path]

    def _find(self, kind: str, name: str, replica: int | None) -> h5py.Dataset:
        own = {} if replica is None else self._below(schema.replica_path(replica, kind))
        found = own.get(name) or self._listed.get(kind, {}).get(name)
        return found[1] if found else self._dataset(f"{kind}/{name}")

    def _dataset(self, path: str) -> h5py.Dataset:
        dataset = self._file.get(path)
        if not isinstance(dataset, h5py.Dataset):
            raise self._wrong(f"/{path} is missing")
        return sound(dataset)

    def _read(self, dataset: h5py.Dataset, into: Array, selection: tuple[slice, ...] = ()) -> None:
        try:
            if into.size:
                dataset.read_direct(into, selection or None)
        except (OSError, RuntimeError) as error:
            raise self._wrong(f"{dataset.name} cannot be read: {error}") from error

    def _table(self, name: str) -> dict[str, Any]:
        return {path: self._value(dataset) for path, dataset in _leaves(self._file.get(name, {}))}

    def _value(self, dataset: h5py.Dataset) -> Any:
        if dataset.dtype.kind == "S":
            return self._string(dataset)
        return dataset[()] if dataset.shape else dataset[()].item()

    def _string(self, dataset: h5py.Dataset) -> str:
        return bytes(dataset[()]).decode("utf-8")

    def _wrong(self, message: str) -> InputError:
        return InputError(str(self.path), message)


def _text(value: Any) -> str:
    """A text among the attributes: bytes of a fixed number, or of any in the first files."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _leaves(group: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    for name in group:
        item = group[name]
        if isinstance(item, h5py.Dataset):
            yield path + name, sound(item)
        else:
            yield from _leaves(item, f"{path}{name}/")


def _parameter(name: str, dataset: h5py.Dataset) -> Parameter:
    return Parameter(name, dataset.shape, dataset.dtype, schema.MERGED in dataset.attrs)
