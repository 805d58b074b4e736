"""Calls NumPy's functions on arrays of a device, at once, or recorded, or later; so are their results."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _streams
from ._array import allocate, ndarray, view_of
from ._errors import refuse_in_capture

_VIEWS = (
    "reshape ravel transpose swapaxes moveaxis squeeze expand_dims broadcast_to diagonal flip split array_split "
    "atleast_1d atleast_2d atleast_3d as_strided sliding_window_view rollaxis"
)
VIEWS = frozenset(_VIEWS.split())
"""Functions whose results share the memory of their argument, as a rule."""
SYNCHRONOUS = frozenset(("nonzero", "flatnonzero", "argwhere", "unique", "extract", "compress"))
"""Functions whose results have a size that only the device knows."""


def lower(value: Any, lists: bool = True) -> Any:
    """What stands on the host for an argument. Arrays of the host are refused, as CuPy does.

    What takes no ``lists`` is a ufunc, which takes no array of one number either.
    """
    if isinstance(value, ndarray):
        if value.data.device_id != _streams.current_device():
            raise ValueError(
                f"Array device must be same as the current device: array device = {value.data.device_id} "
                f"while current = {_streams.current_device()}"
            )
        return value.host
    if isinstance(value, np.ndarray):
        if value.ndim or not lists:
            raise TypeError(f"Unsupported type {type(value)}")
        return value[()]
    if isinstance(value, (list, tuple)):
        if not lists:
            raise TypeError(f"Unsupported type {type(value)}")
        return type(value)(lower(item) for item in value)
    return value


def blocks(*values: Any) -> list[Any]:
    """The memory of all device arrays among some values."""
    found = []
    for value in values:
        if isinstance(value, ndarray):
            found.append(value.data.mem)
        elif isinstance(value, (list, tuple)):
            found.extend(blocks(*value))
    return found


def submit(work: Callable[[], Any], *values: Any) -> None:
    """Let the current stream do work that uses the device arrays among the values."""
    _streams.get_current_stream().submit(work, blocks(*values))


def wait() -> None:
    """Until the current stream has nothing to do; an error while it is captured."""
    stream = _streams.get_current_stream()
    refuse_in_capture(stream)
    stream.synchronize()


def apply(function: Any, args: Sequence[Any], options: dict[str, Any]) -> Any:
    """``function(*args, **options)`` on the device."""
    name = function.__name__
    out = options.pop("out", None)
    if isinstance(out, tuple):
        (out,) = out
    lists = not isinstance(function, np.ufunc)
    inputs = [lower(arg, lists) for arg in args]
    keywords = {key: lower(value) for key, value in options.items()}
    if out is not None:
        if not isinstance(out, ndarray):
            raise TypeError(f"return arrays must be of cupy.ndarray, not {type(out)}")
        target = lower(out)
        submit(lambda: function(*inputs, out=target, **keywords), *args, *options.values(), out)
        return out
    if name in VIEWS:
        result = _shared(function(*inputs, **keywords), args)
        if result is not None:
            return result
    if name in SYNCHRONOUS:
        wait()
    elif _streams.get_current_stream().putting_off():
        return _put_off(function, args, inputs, options, keywords)
    results: list[Any] = []
    _streams.execute(lambda: results.append(function(*inputs, **keywords)))
    return lift(results[0])


def _shared(result: Any, args: Sequence[Any]) -> Any:
    """Views of the array that a result shares memory with; None if it shares none."""
    if isinstance(result, (list, tuple)):
        views = [_shared(part, args) for part in result]
        return None if any(view is None for view in views) else type(result)(views)
    for arg in args:
        if isinstance(arg, ndarray) and isinstance(result, np.ndarray) and np.may_share_memory(arg.host, result):
            return view_of(arg, result)
    return None


def _put_off(function: Any, args: Any, inputs: Any, options: dict[str, Any], keywords: dict[str, Any]) -> Any:
    """Shapes and types come from a trial on zeros, the values later."""
    with np.errstate(all="ignore"):
        trial = function(*map(_zeros, inputs), **{key: _zeros(value) for key, value in keywords.items()})
    result = lift(trial, _room)
    targets = [part.host for part in (result if isinstance(result, (list, tuple)) else [result])]

    def fill() -> None:
        values = function(*inputs, **keywords)
        for target, value in zip(targets, values if isinstance(values, (list, tuple)) else [values], strict=True):
            np.copyto(target, value)

    made = result if isinstance(result, (list, tuple)) else [result]
    submit(fill, *args, *options.values(), *made)
    return result


def _zeros(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return np.zeros_like(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_zeros(item) for item in value)
    return value


def lift(result: Any, make: Callable[[Any], Any] | None = None) -> Any:
    """The result of a function of NumPy's as arrays of the device, which ``make`` makes."""
    if isinstance(result, (list, tuple)):
        parts = [lift(part, make) for part in result]
        return parts if type(result) is list else tuple(parts)
    if isinstance(result, bool):
        result = np.bool_(result)
    if not isinstance(result, (np.ndarray, np.generic)):
        return result
    return (make or _held)(result)


def _room(result: Any) -> ndarray:
    """An array for such a result: whoever wrote to it before its turn might write over what others still read."""
    return allocate(result.shape, result.dtype, getattr(result, "strides", ()) if _dense(result) else None)


def _held(result: Any) -> ndarray:
    array = _room(result)
    target = array.host
    submit(lambda: np.copyto(target, result), array)
    return array


def _dense(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.flags.f_contiguous
