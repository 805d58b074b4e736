"""The activations compiled: bias and activation in one pass over the array, and so the derivative.

Each activation is a pair of functions of numbers; `loops` writes the loops around those that a model has. GELU is
missing: the error function is not one that a loop computes in vector registers, and NumPy's passes around it cost
little beside it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from numba.extending import register_jitable

from mpinn.array.activations import LEAK, SELU_ALPHA, SELU_SCALE, SHRINK
from mpinn.array.cpu_math import exp, expm1, sigmoid, tanh
from mpinn.array.jit import kernel

SELU_FLOOR = SELU_SCALE * SELU_ALPHA

Function = Callable[..., Any]


class Compiled(NamedTuple):
    """The loops of one activation.

    ``forward(z, bias, y)``: y = f(z + bias), z and y: (N, O), bias: (O,), and the bias is added to z as well, where the
    derivative is computed from the input; elsewhere ``forward(z, bias)`` in the place of z: the compiler does not
    vectorise a loop whose arrays may overlap if they do.
    ``activate(z, y)`` and ``backward(kept, dy, dz)``: vectors.
    """

    forward: Function
    activate: Function
    backward: Function


@register_jitable
def _identity(z: Any) -> Any:
    return z


@register_jitable
def _identity_backward(y: Any, dy: Any) -> Any:
    return dy


@register_jitable
def _sigmoid_backward(y: Any, dy: Any) -> Any:
    return dy * ((type(y)(1) - y) * y)


@register_jitable
def _tanh_backward(y: Any, dy: Any) -> Any:
    return dy * (type(y)(1) - y * y)


@register_jitable
def _relu(z: Any) -> Any:
    return type(z)(0) if z < 0 else z


@register_jitable
def _relu_backward(y: Any, dy: Any) -> Any:
    return dy * (type(y)(1) if y > 0 else type(y)(0))


@register_jitable
def _leaky_relu(z: Any) -> Any:
    return z if z > 0 else z * type(z)(LEAK)


@register_jitable
def _leaky_relu_backward(y: Any, dy: Any) -> Any:
    return dy * (type(y)(1) if y > 0 else type(y)(LEAK))


@register_jitable
def _elu(z: Any) -> Any:
    return z if z > 0 else expm1(z)


@register_jitable
def _elu_backward(y: Any, dy: Any) -> Any:
    return dy * (type(y)(1) if y > 0 else y + type(y)(1))


@register_jitable
def _selu(z: Any) -> Any:
    return z * type(z)(SELU_SCALE) if z > 0 else expm1(z) * type(z)(SELU_FLOOR)


@register_jitable
def _selu_backward(y: Any, dy: Any) -> Any:
    return dy * (type(y)(SELU_SCALE) if y > 0 else y + type(y)(SELU_FLOOR))


@register_jitable
def _hardshrink(z: Any) -> Any:
    return z * (type(z)(1) if abs(z) > type(z)(SHRINK) else type(z)(0))


@register_jitable
def _hardshrink_backward(y: Any, dy: Any) -> Any:
    return dy * (type(y)(1) if y != 0 else type(y)(0))


@register_jitable
def _mish(z: Any) -> Any:
    # tanh(log(1 + e)) = n / (n + 2) with n = e (e + 2), which is 1 long before e overflows
    e = exp(type(z)(20) if z > 20 else z)
    n = e * (e + type(z)(2))
    return z * (n / (n + type(z)(2)))


@register_jitable
def _mish_backward(z: Any, dy: Any) -> Any:
    # t + z (1 - t^2) sigmoid(z)
    e = exp(type(z)(20) if z > 20 else z)
    n = e * (e + type(z)(2))
    t = n / (n + type(z)(2))
    return dy * (t + z * (e / (e + type(z)(1))) * (type(z)(1) - t * t))


def _forward(function: Function) -> Function:
    @kernel
    def forward(z: Any, bias: Any) -> None:
        for i in range(z.shape[0]):
            for j in range(z.shape[1]):
                z[i, j] = function(z[i, j] + bias[j])

    return forward


def _forward_of_input(function: Function) -> Function:
    @kernel
    def forward(z: Any, bias: Any, y: Any) -> None:
        for i in range(z.shape[0]):
            for j in range(z.shape[1]):
                z[i, j] += bias[j]
                y[i, j] = function(z[i, j])

    return forward


def _activate(function: Function) -> Function:
    @kernel
    def activate(z: Any, y: Any) -> None:
        for i in range(z.size):
            y[i] = function(z[i])

    return activate


def _backward(function: Function) -> Function:
    @kernel
    def backward(kept: Any, dy: Any, dz: Any) -> None:
        for i in range(dy.size):
            dz[i] = function(kept[i], dy[i])

    return backward


class Pair(NamedTuple):
    """The functions of an activation: of a number, and of what is kept and of dy."""

    function: Function
    derivative: Function
    keeps_input: bool = False


ACTIVATIONS: dict[str, Pair] = {
    "identity": Pair(_identity, _identity_backward),
    "sigmoid": Pair(sigmoid, _sigmoid_backward),
    "tanh": Pair(tanh, _tanh_backward),
    "relu": Pair(_relu, _relu_backward),
    "leaky_relu": Pair(_leaky_relu, _leaky_relu_backward),
    "elu": Pair(_elu, _elu_backward),
    "selu": Pair(_selu, _selu_backward),
    "hardshrink": Pair(_hardshrink, _hardshrink_backward),
    "mish": Pair(_mish, _mish_backward, keeps_input=True),
}


@cache
def loops(name: str) -> Compiled:
    """The loops of one of `ACTIVATIONS`, made at its first use: each costs a look for its cache."""
    function, derivative, keeps_input = ACTIVATIONS[name]
    forward = _forward_of_input(function) if keeps_input else _forward(function)
    return Compiled(forward, _activate(function), _backward(derivative))
