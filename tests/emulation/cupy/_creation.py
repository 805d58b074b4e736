"""New arrays on the current device."""

from typing import Any

import numpy as np

from ._array import allocate, ndarray
from ._engine import lower, submit, wait
from ._errors import refuse_in_capture
from ._streams import get_current_stream


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """Not initialised: all bits are set."""
    return ndarray(shape, dtype, order=order)


def _filled(array: ndarray, value: Any) -> ndarray:
    array.fill(value)
    return array


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return _filled(empty(shape, dtype, order), 0)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return _filled(empty(shape, dtype, order), 1)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    kind = np.asarray(lower(fill_value)).dtype if dtype is None else dtype
    return _filled(empty(shape, kind, order), fill_value)


def empty_like(prototype: Any, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None) -> ndarray:
    if subok is not None:
        raise TypeError("subok is not supported yet")
    host = prototype.host if isinstance(prototype, ndarray) else np.asarray(prototype)
    twin = np.empty_like(host, dtype, order, False, shape)  # type: ignore[call-overload]
    return allocate(twin.shape, twin.dtype, twin.strides)


def zeros_like(a: Any, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None) -> ndarray:
    return _filled(empty_like(a, dtype, order, subok, shape), 0)


def ones_like(a: Any, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None) -> ndarray:
    return _filled(empty_like(a, dtype, order, subok, shape), 1)


def full_like(
    a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None
) -> ndarray:
    return _filled(empty_like(a, dtype, order, subok, shape), fill_value)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    values = np.arange(start, dtype=dtype) if stop is None else np.arange(start, stop, step, dtype)
    return _held(values)


def eye(N: int, M: int | None = None, k: int = 0, dtype: Any = float, order: str = "C") -> ndarray:
    return _held(np.eye(N, M, k, np.dtype(dtype)))


def linspace(start: Any, stop: Any, num: int = 50, endpoint: bool = True, dtype: Any = None) -> ndarray:
    return _held(np.linspace(start, stop, num, endpoint, dtype=dtype))


def _held(values: Any) -> ndarray:
    """An array whose values a kernel would make on the device."""
    made = allocate(values.shape, values.dtype)
    target = made.host
    submit(lambda: np.copyto(target, values), made)
    return made


def array(
    obj: Any, dtype: Any = None, copy: bool | None = True, order: str | None = "K", subok: bool = False, ndmin: int = 0,
    *, blocking: bool = False,
) -> ndarray:  # fmt: skip
    """A new array from one of the host or of the device, or from numbers."""
    if isinstance(obj, ndarray):
        if not copy and dtype in (None, obj.dtype):
            return obj
        return obj.astype(dtype or obj.dtype, order=order or "K")
    if isinstance(obj, (list, tuple)) and any(isinstance(item, ndarray) for item in obj):
        from ._engine import apply

        return apply(np.stack, [list(obj)], {})
    refuse_in_capture(get_current_stream())
    values = np.array(obj, dtype, order="F" if order == "F" else "C", ndmin=ndmin)
    if values.dtype.char not in "?bhilqBHILQefdFDE":
        raise ValueError(f"Unsupported dtype {values.dtype}")
    made = allocate(values.shape, values.dtype, values.strides)
    target = made.host
    submit(lambda: np.copyto(target, values), made)
    return made


def asarray(
    a: Any, dtype: Any = None, order: str | None = None, *, copy: bool | None = None, blocking: bool = False
) -> ndarray:
    """The array itself if it is one of the device."""
    return array(a, dtype, bool(copy), order, blocking=blocking)


def asnumpy(
    a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True
) -> "np.ndarray[Any, Any]":
    """A copy on the host."""
    if isinstance(a, ndarray):
        return a.get(stream=stream, order=order, out=out, blocking=blocking)
    wait()
    return np.array(a, order=order)  # type: ignore[call-overload]
