"""The functions that a device has, with the arguments that CuPy's have, for NumPy's protocols and for the package."""

from typing import Any

import numpy as np

from ._array import ndarray, view_of
from ._creation import (
    arange,
    array,
    asarray,
    empty,
    empty_like,
    eye,
    full,
    full_like,
    ones,
    ones_like,
    zeros,
    zeros_like,
)
from ._engine import apply, lower, submit

_UFUNCS = (
    "abs absolute add arccos arccosh arcsin arcsinh arctan arctan2 arctanh bitwise_and bitwise_count bitwise_or "
    "bitwise_xor cbrt ceil conjugate copysign cos cosh deg2rad degrees divide divmod equal exp exp2 expm1 fabs "
    "float_power floor floor_divide fmax fmin fmod frexp gcd greater greater_equal heaviside hypot invert isfinite "
    "isinf isnan lcm ldexp left_shift less less_equal log log10 log1p log2 logaddexp logaddexp2 logical_and "
    "logical_not logical_or logical_xor matmul maximum minimum modf multiply negative nextafter not_equal positive "
    "power rad2deg radians reciprocal remainder right_shift rint sign signbit sin sinh sqrt square subtract "
    "tan tanh trunc"
)
UFUNCS = frozenset(_UFUNCS.split())
UFUNC_OPTIONS = frozenset(("out", "dtype", "casting"))
PRODUCT_OPTIONS = frozenset(("axes", "axis", "keepdims"))
"""Of those ufuncs besides that work on more than elements."""
ARGUMENTS = {
    "all": "a axis out keepdims",
    "allclose": "a b rtol atol equal_nan",
    "any": "a axis out keepdims",
    "argmax": "a axis dtype out keepdims",
    "argmin": "a axis dtype out keepdims",
    "argsort": "a axis kind",
    "argwhere": "a",
    "array_equal": "a1 a2 equal_nan",
    "array_split": "ary indices_or_sections axis",
    "ascontiguousarray": "a dtype",
    "atleast_1d": "",
    "bincount": "x weights minlength",
    "broadcast_to": "array shape",
    "clip": "a a_min a_max out",
    "concatenate": "tup axis out dtype casting",
    "copyto": "dst src casting where",
    "count_nonzero": "a axis",
    "cumsum": "a axis dtype out",
    "diagonal": "a offset axis1 axis2",
    "diff": "a n axis prepend append",
    "dot": "a b out",
    "einsum": "",
    "expand_dims": "a axis",
    "flatnonzero": "a",
    "flip": "a axis",
    "inner": "a b",
    "isclose": "a b rtol atol equal_nan",
    "max": "a axis out keepdims",
    "mean": "a axis dtype out keepdims",
    "median": "a axis out overwrite_input keepdims",
    "min": "a axis out keepdims",
    "moveaxis": "a source destination",
    "nan_to_num": "x copy nan posinf neginf",
    "nonzero": "a",
    "outer": "a b out",
    "prod": "a axis dtype out keepdims",
    "ravel": "a order",
    "repeat": "a repeats axis",
    "reshape": "a newshape order copy",
    "roll": "a shift axis",
    "searchsorted": "a v side sorter",
    "sliding_window_view": "x window_shape axis subok writeable",
    "sort": "a axis kind",
    "split": "ary indices_or_sections axis",
    "squeeze": "a axis",
    "stack": "tup axis out dtype casting",
    "std": "a axis dtype out ddof keepdims",
    "sum": "a axis dtype out keepdims",
    "swapaxes": "a axis1 axis2",
    "take": "a indices axis out",
    "take_along_axis": "a indices axis",
    "tensordot": "a b axes",
    "tile": "A reps",
    "trace": "a offset axis1 axis2 dtype out",
    "transpose": "a axes",
    "tril": "m k",
    "triu": "m k",
    "unique": "ar return_index return_inverse return_counts axis equal_nan",
    "var": "a axis dtype out ddof keepdims",
    "vdot": "a b",
    "where": "condition x y",
}
"""Function -> what CuPy calls its arguments, or nothing where any number goes."""
ABOUT = {"shape": np.shape, "ndim": np.ndim, "size": np.size, "result_type": np.result_type}
"""Functions that need to see no values."""


def call_ufunc(ufunc: np.ufunc, args: Any, options: dict[str, Any]) -> Any:
    """A ufunc as CuPy has it; NotImplemented if it hasn't."""
    out = options.get("out")
    if out is not None and isinstance(out, tuple) and len(out) != 1:
        raise ValueError("The 'out' parameter must have exactly one array value")
    if ufunc.__name__ not in UFUNCS:
        return NotImplemented
    _refuse(ufunc.__name__, set(options) - UFUNC_OPTIONS - (PRODUCT_OPTIONS if ufunc.signature else set()))
    return apply(ufunc, args, options)


def call_function(function: Any, args: Any, options: dict[str, Any]) -> Any:
    """A function as CuPy has it; NotImplemented if it hasn't."""
    name = function.__name__
    if name in OWN:
        return OWN[name](*args, **options)
    if name in ABOUT:
        return ABOUT[name](*map(_empty_twin, args))
    if name not in ARGUMENTS:
        return NotImplemented
    names = ARGUMENTS[name].split()
    if names:
        if len(args) > len(names):
            raise TypeError(f"{name}() takes {len(names)} arguments at most, {len(args)} were given")
        _refuse(name, set(options) - set(names))
        options = {**dict(zip(names[1:], args[1:], strict=False)), **options}
        args = args[:1]
    return apply(function, *_numpy_names(name, args, options))


def _refuse(name: str, unknown: set[str]) -> None:
    if unknown:
        raise TypeError(f"{name}() got an unexpected keyword argument {min(unknown)!r}")


POSITIONAL = {
    "where": ("x", "y"), "dot": ("b",), "vdot": ("b",), "inner": ("b",), "outer": ("b",),
    "take": ("indices",), "tensordot": ("b",), "tile": ("reps",), "roll": ("shift",), "searchsorted": ("v",),
    "reshape": ("newshape",), "repeat": ("repeats",), "clip": ("a_min", "a_max"), "isclose": ("b",),
    "allclose": ("b",), "array_equal": ("a2",), "moveaxis": ("source", "destination"), "swapaxes": ("axis1", "axis2"),
    "broadcast_to": ("shape",), "take_along_axis": ("indices", "axis"), "split": ("indices_or_sections",),
    "array_split": ("indices_or_sections",), "sliding_window_view": ("window_shape",), "transpose": ("axes",),
    "expand_dims": ("axis",), "concatenate": (), "stack": (),
}  # fmt: skip
"""Arguments that are passed by their places, since NumPy calls some of them otherwise."""


def _numpy_names(name: str, args: Any, options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    values = [*args, *(options.pop(key) for key in POSITIONAL.get(name, ()) if key in options)]
    if name in ("argmax", "argmin") and options.pop("dtype", None) is not None:
        raise TypeError(f"the stand-in has no dtype for {name}")
    return values, options


def _empty_twin(value: Any) -> Any:
    return value.host if isinstance(value, ndarray) else value


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    """Copy values of the device, or a number, to an array of the device."""
    if not isinstance(dst, ndarray):
        raise TypeError(f"dst must be cupy.ndarray, not {type(dst)}")
    target, source = lower(dst), lower(src)
    mask = True if where is None else lower(where)
    submit(lambda: np.copyto(target, source, casting=casting, where=mask), dst, src, where)  # type: ignore[arg-type]


def concatenate(
    tup: Any, axis: int | None = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind"
) -> Any:
    """Join arrays of the device."""
    arrays = list(tup)
    for part in arrays:
        if not isinstance(part, ndarray):
            raise TypeError("Only cupy arrays can be concatenated")
    options = {"axis": axis, "casting": casting} | ({} if dtype is None else {"dtype": dtype})
    return apply(np.concatenate, [arrays], options | ({} if out is None else {"out": out}))


def ascontiguousarray(a: Any, dtype: Any = None) -> Any:
    """The array itself if it is in C order already."""
    if not isinstance(a, ndarray):
        return array(a, dtype, order="C")
    if a.flags.c_contiguous and a.ndim and dtype in (None, a.dtype):
        return a
    return a.astype(dtype or a.dtype, order="C").reshape(a.shape or (1,))


def may_share_memory(a: Any, b: Any, max_work: Any = None) -> bool:
    return bool(np.may_share_memory(_empty_twin(a), _empty_twin(b)))


def atleast_1d(*arrays: Any) -> Any:
    made = [a if a.ndim else view_of(a, a.host.reshape(1)) for a in arrays]
    return made[0] if len(made) == 1 else made


OWN = {
    "arange": arange,
    "array": array,
    "asarray": asarray,
    "ascontiguousarray": ascontiguousarray,
    "atleast_1d": atleast_1d,
    "concatenate": concatenate,
    "copyto": copyto,
    "empty": empty,
    "empty_like": empty_like,
    "eye": eye,
    "full": full,
    "full_like": full_like,
    "may_share_memory": may_share_memory,
    "ones": ones,
    "ones_like": ones_like,
    "shares_memory": may_share_memory,
    "zeros": zeros,
    "zeros_like": zeros_like,
}


def exported() -> dict[str, Any]:
    """The functions of the package that take arrays of the device."""
    made: dict[str, Any] = dict(OWN) | dict(ABOUT)
    for name in ARGUMENTS.keys() - made.keys() - {"sliding_window_view"}:
        made[name] = _function(getattr(np, name))
    for name in UFUNCS & set(dir(np)):
        made[name] = _ufunc(getattr(np, name))
    return made


def _function(function: Any) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        return call_function(function, args, options)

    call.__name__ = function.__name__
    return call


def _ufunc(ufunc: np.ufunc) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        if len(args) > ufunc.nin:
            args, options = args[: ufunc.nin], options | {"out": args[ufunc.nin]}
        if not any(isinstance(arg, (ndarray, int, float, np.generic)) for arg in args):
            raise TypeError(f"Unsupported type {type(args[0])}")
        return call_ufunc(ufunc, args, {key: value for key, value in options.items() if value is not None})

    call.__name__ = ufunc.__name__
    return call
