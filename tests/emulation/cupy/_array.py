"""The array of a device: a NumPy array in memory of the stand-in's own, as strict as CuPy's."""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from ._indexing import get_item, set_item
from ._memory import Memory, MemoryPointer, copy_bytes, pinned_at
from ._operators import Operators
from ._pools import alloc
from ._streams import Device, Stream, get_current_stream


class Flags:
    """As CuPy's: what is known of the layout."""

    def __init__(self, array: "ndarray"):
        self.c_contiguous = array.host.flags.c_contiguous
        self.f_contiguous = array.host.flags.f_contiguous
        self.owndata = array.base is None

    def __getitem__(self, name: str) -> bool:
        return bool(getattr(self, name.lower()))


class ndarray(Operators):  # noqa: N801
    """An array on a device. ``host`` is the stand-in's own business."""

    __slots__ = ("__weakref__", "base", "data", "host")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    host: "np.ndarray[Any, Any]"
    data: MemoryPointer
    base: "ndarray | None"

    def __init__(self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"):
        shape = (int(shape),) if np.ndim(shape) == 0 else tuple(int(size) for size in shape)
        kind = np.dtype(dtype)
        self.data = memptr if memptr is not None else alloc(prod(shape) * kind.itemsize)
        self.base = None
        memory: Memory = self.data.mem
        offset = memory.start + self.data.ptr - memory.ptr
        if memptr is not None and self.data.ptr - memory.ptr + prod(shape) * kind.itemsize > memory.size:
            raise ValueError("the array goes beyond its memory")
        self.host = np.ndarray(shape, kind, memory.raw, offset, strides, order)  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.host.shape

    @shape.setter
    def shape(self, shape: Any) -> None:
        flat = self.host.view()
        flat.shape = shape
        self.host = flat

    @property
    def dtype(self) -> "np.dtype[Any]":
        return self.host.dtype

    @property
    def ndim(self) -> int:
        return self.host.ndim

    @property
    def size(self) -> int:
        return self.host.size

    @property
    def nbytes(self) -> int:
        return self.host.nbytes

    @property
    def itemsize(self) -> int:
        return self.host.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        return self.host.strides

    @property
    def flags(self) -> Flags:
        return Flags(self)

    @property
    def device(self) -> Device:
        return Device(self.data.device_id)

    @property
    def T(self) -> "ndarray":  # noqa: N802
        return view_of(self, self.host.T)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "data": (self.data.ptr if self.size else 0, False),
            "strides": None if self.flags.c_contiguous else self.strides,
            "stream": get_current_stream().ptr or 1,
            "version": 3,
        }

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        from ._functions import call_ufunc

        return call_ufunc(ufunc, inputs, options) if method == "__call__" else NotImplemented

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        from ._functions import call_function

        if not all(issubclass(kind, (ndarray, np.ndarray)) for kind in types):
            return NotImplemented
        return call_function(function, args, options)

    def __getitem__(self, key: Any) -> "ndarray":
        return get_item(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        set_item(self, key, value)

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self) -> Iterator["ndarray"]:
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(self.shape[0]))

    def __repr__(self) -> str:
        return repr(self.get())

    def __str__(self) -> str:
        return str(self.get())

    def __format__(self, specification: str) -> str:
        return format(self.get(), specification)

    def __reduce__(self) -> Any:
        from ._creation import array

        return array, (self.get(),)

    def __copy__(self) -> "ndarray":
        return self.copy()

    def __deepcopy__(self, memo: Any) -> "ndarray":
        return self.copy()

    def get(
        self, stream: Stream | None = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> "np.ndarray[Any, Any]":
        """A copy on the host."""
        if out is not None:
            self._check_host(out, "obtained from")
        target = np.empty(self.shape, self.dtype, "F" if order == "F" else "C") if out is None else out
        stream = stream or get_current_stream()
        if not blocking and not (out is not None and pinned_at(out.ctypes.data)):
            blocking = True  # the driver waits for a copy to memory that isn't pinned
        if blocking and stream.is_capturing():
            stream.synchronize()  # raises
        source = self.host
        stream.submit(lambda: np.copyto(target, source), [self.data.mem])
        if blocking:
            stream.synchronize()
        return target

    def set(self, arr: Any, stream: Stream | None = None) -> None:
        """Copy an array of the host here."""
        self._check_host(arr, "set to")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        values = (np.ascontiguousarray if self.flags.c_contiguous else np.asfortranarray)(arr)
        copy_bytes(self.data.ptr, values.ctypes.data, self.nbytes, stream or get_current_stream())

    def _check_host(self, array: Any, what: str) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"Only numpy.ndarray can be {what} cupy.ndarray")
        if array.dtype != self.dtype:
            raise TypeError(f"{array.dtype} array cannot be {what} {self.dtype} array")
        if array.shape != self.shape:
            raise ValueError(f"Shape mismatch: {array.shape} cannot be {what} {self.shape}")

    def fill(self, value: Any) -> None:
        from ._engine import lower, submit

        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        target, number = self.host, lower(value)
        submit(lambda: np.copyto(target, number, casting="unsafe"), self, value)

    def astype(
        self, dtype: Any, order: str = "K", casting: str | None = None, subok: Any = None, copy: bool = True
    ) -> "ndarray":
        from ._creation import empty_like

        if not copy and np.dtype(dtype) == self.dtype and (order == "K" or self.flags[f"{order}_contiguous"]):
            return self
        made = empty_like(self, dtype, order)
        set_item(made, ..., self)
        return made

    def view(self, dtype: Any = None) -> "ndarray":
        return view_of(self, self.host.view() if dtype is None else self.host.view(dtype))


def allocate(shape: Any, dtype: Any, strides: Any = None) -> ndarray:
    """A new array, with strides of a dense layout or in C order."""
    return ndarray(shape, dtype, strides=strides)


def view_of(array: ndarray, host: "np.ndarray[Any, Any]") -> ndarray:
    """A view; its base is the array that owns the memory, as in CuPy."""
    made = ndarray.__new__(ndarray)
    made.host = host
    made.base = array if array.base is None else array.base
    memory = array.data.mem
    made.data = MemoryPointer(memory, host.ctypes.data - memory.ptr) if host.size else array.data
    return made
