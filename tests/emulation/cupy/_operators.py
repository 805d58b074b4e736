"""Operators and methods of the array, all of which go through one function."""

from typing import Any

import numpy as np


def _apply(function: Any, *args: Any, **options: Any) -> Any:
    from ._engine import apply

    return apply(function, args, {key: value for key, value in options.items() if value is not None})


def _binary(ufunc: np.ufunc) -> tuple[Any, Any, Any]:
    def forward(self: Any, other: Any) -> Any:
        return _apply(ufunc, self, other)

    def backward(self: Any, other: Any) -> Any:
        return _apply(ufunc, other, self)

    def inplace(self: Any, other: Any) -> Any:
        return _apply(ufunc, self, other, out=self)

    return forward, backward, inplace


def _unary(ufunc: np.ufunc) -> Any:
    def operate(self: Any) -> Any:
        return _apply(ufunc, self)

    return operate


def _compare(ufunc: np.ufunc) -> Any:
    def operate(self: Any, other: Any) -> Any:
        return _apply(ufunc, self, other)

    return operate


def _reduce(function: Any) -> Any:
    def method(self: Any, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return _apply(function, self, axis=axis, out=out, keepdims=keepdims)

    return method


def _accumulate(function: Any) -> Any:
    def method(self: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return _apply(function, self, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    return method


def _scalar(kind: Any) -> Any:
    def convert(self: Any) -> Any:
        return kind(self.get())

    return convert


class Operators:
    """What CuPy's array has besides its attributes."""

    __slots__ = ()

    __add__, __radd__, __iadd__ = _binary(np.add)
    __sub__, __rsub__, __isub__ = _binary(np.subtract)
    __mul__, __rmul__, __imul__ = _binary(np.multiply)
    __truediv__, __rtruediv__, __itruediv__ = _binary(np.true_divide)
    __floordiv__, __rfloordiv__, __ifloordiv__ = _binary(np.floor_divide)
    __mod__, __rmod__, __imod__ = _binary(np.remainder)
    __pow__, __rpow__, __ipow__ = _binary(np.power)
    __and__, __rand__, __iand__ = _binary(np.bitwise_and)
    __or__, __ror__, __ior__ = _binary(np.bitwise_or)
    __xor__, __rxor__, __ixor__ = _binary(np.bitwise_xor)
    __lshift__, __rlshift__, __ilshift__ = _binary(np.left_shift)
    __rshift__, __rrshift__, __irshift__ = _binary(np.right_shift)
    __matmul__, __rmatmul__, __imatmul__ = _binary(np.matmul)
    __eq__, __ne__ = _compare(np.equal), _compare(np.not_equal)
    __lt__, __le__ = _compare(np.less), _compare(np.less_equal)
    __gt__, __ge__ = _compare(np.greater), _compare(np.greater_equal)
    __neg__, __pos__ = _unary(np.negative), _unary(np.positive)
    __abs__, __invert__ = _unary(np.absolute), _unary(np.invert)
    __bool__, __int__, __float__, __complex__ = map(_scalar, (bool, int, float, complex))
    max, min = _reduce(np.max), _reduce(np.min)
    all, any = _reduce(np.all), _reduce(np.any)
    sum, mean, prod = _accumulate(np.sum), _accumulate(np.mean), _accumulate(np.prod)
    argmax, argmin = _reduce(np.argmax), _reduce(np.argmin)

    def __index__(self) -> int:
        value: Any = self.get()  # type: ignore[attr-defined]
        return int(value.__index__())

    def item(self, *place: int) -> Any:
        return self.get().item(*place)  # type: ignore[attr-defined]

    def tolist(self) -> Any:
        return self.get().tolist()  # type: ignore[attr-defined]

    def tobytes(self, order: str = "C") -> bytes:
        return bytes(self.get().tobytes())  # type: ignore[attr-defined]

    def copy(self, order: str = "C") -> Any:
        return self.astype(self.dtype, order)  # type: ignore[attr-defined]

    def flatten(self, order: str = "C") -> Any:
        return self.copy().ravel()

    def reshape(self, *shape: Any, order: str = "C") -> Any:
        return _apply(np.reshape, self, shape[0] if len(shape) == 1 else shape, order=order)

    def ravel(self, order: str = "C") -> Any:
        return _apply(np.ravel, self, order=order)

    def transpose(self, *axes: Any) -> Any:
        if len(axes) == 1 and (axes[0] is None or isinstance(axes[0], (tuple, list))):
            axes = axes[0] or ()
        return _apply(np.transpose, self, axes=tuple(axes) or None)

    def swapaxes(self, axis1: int, axis2: int) -> Any:
        return _apply(np.swapaxes, self, axis1, axis2)

    def squeeze(self, axis: Any = None) -> Any:
        return _apply(np.squeeze, self, axis=axis)

    def diagonal(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
        return _apply(np.diagonal, self, offset, axis1, axis2)

    def dot(self, b: Any, out: Any = None) -> Any:
        return _apply(np.dot, self, b, out=out)

    def clip(self, min: Any = None, max: Any = None, out: Any = None) -> Any:
        return _apply(np.clip, self, min, max, out=out)

    def cumsum(self, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
        return _apply(np.cumsum, self, axis=axis, dtype=dtype, out=out)

    def take(self, indices: Any, axis: Any = None, out: Any = None) -> Any:
        return _apply(np.take, self, indices, axis=axis, out=out)

    def repeat(self, repeats: Any, axis: Any = None) -> Any:
        return _apply(np.repeat, self, repeats, axis=axis)

    def nonzero(self) -> Any:
        return _apply(np.nonzero, self)

    def round(self, decimals: int = 0, out: Any = None) -> Any:
        return _apply(np.round, self, decimals, out=out)

    def std(self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, keepdims: bool = False) -> Any:
        return _apply(np.std, self, axis=axis, dtype=dtype, out=out, ddof=ddof, keepdims=keepdims)

    def var(self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, keepdims: bool = False) -> Any:
        return _apply(np.var, self, axis=axis, dtype=dtype, out=out, ddof=ddof, keepdims=keepdims)

    def argsort(self, axis: int = -1) -> Any:
        return _apply(np.argsort, self, axis=axis)

    def sort(self, axis: int = -1) -> None:
        self[...] = _apply(np.sort, self, axis=axis)  # type: ignore[index]
