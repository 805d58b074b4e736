"""The contents of a checkpoint while it is written: groups, data sets and blocks of them, by their paths.

A model has thousands of small data sets, and whoever writes one holds Python's lock: what is there is remembered, not
looked up, and data sets are made by HDF5's own calls, which take a fifth of the time of h5py's.
"""

from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from mpinn.array.typing import Array, Dtype, Shape
from mpinn.storage import schema


class Contents:
    """What an empty file has been given."""

    def __init__(self, file: h5py.File):
        self._groups: dict[str, h5py.Group] = {"": file["/"]}
        self._datasets: dict[str, h5d.DatasetID] = {}
        self._marked: set[tuple[str, str]] = set()
        self._links = h5p.create(h5p.LINK_CREATE)
        self._links.set_char_encoding(h5t.CSET_UTF8)

    def __contains__(self, path: str) -> bool:
        """Whether there is a data set."""
        return path in self._datasets

    def group(self, path: str) -> h5py.Group:
        """That of a path, made where it is not there yet, in the order of their making."""
        if path not in self._groups:
            parent, _, name = path.rpartition("/")
            self._groups[path] = self.group(parent).create_group(name, track_order=True)
        return self._groups[path]

    def mark(self, path: str, name: str, value: Any) -> None:
        """Give an attribute to a group, or to a data set, unless it has it already."""
        if (path, name) in self._marked:
            return
        self._marked.add((path, name))
        found = self._datasets.get(path)
        owner = self.group(path) if found is None else h5py.Dataset(found)
        owner.attrs[name] = fixed(value)

    def create(self, path: str, shape: Shape, dtype: Dtype) -> None:
        """Make a data set, in chunks with checksums.

        HDF5 has no chunks without elements, and none for scalars: the digest of the file covers those.
        """
        parent, _, name = path.rpartition("/")
        properties = h5p.create(h5p.DATASET_CREATE)
        properties.set_obj_track_times(False)
        if shape and 0 not in shape:
            properties.set_chunk(schema.block_shape(shape, dtype.itemsize))
            properties.set_fletcher32()
        self._datasets[path] = h5d.create(
            self.group(parent).id, name.encode(), h5t.py_create(dtype, logical=True), h5s.create_simple(shape),
            properties, self._links,
        )  # fmt: skip

    def write(self, path: str, selection: tuple[slice, ...], values: Array) -> None:
        """Write a block of a data set."""
        if not values.size:
            return
        dataset, values = self._datasets[path], np.asarray(values, order="C")
        memory = where = h5s.ALL
        if values.shape != dataset.shape:
            memory, where = h5s.create_simple(values.shape), dataset.get_space()
            where.select_hyperslab(tuple(part.start for part in selection), values.shape)
        dataset.write(memory, where, values, dataset.get_type())


def fixed(value: Any) -> Any:
    """A text as a fixed number of bytes. HDF5 keeps others without a checksum, and may read damaged ones for ever."""
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8")
    return np.array(text, dtype=h5py.string_dtype("utf-8", max(1, len(text))))
