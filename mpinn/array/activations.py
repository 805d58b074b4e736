"""Activations and their derivatives, written plainly: the reference for every faster twin.

Each activation is a pair of functions on arrays of any shape. ``forward(z, y, pool)`` writes y, which may be z itself.
``backward(kept, dy, dx, pool)`` writes dx = dy * f'(z), where ``kept`` is y, or z for those listed in `KEEPS_INPUT`.
"""

from collections.abc import Callable
from math import pi, sqrt
from typing import NamedTuple

import numpy as np

from mpinn.array.erf import erf
from mpinn.array.pool import Pool
from mpinn.array.typing import Array

LEAK = 0.01
SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543772
SHRINK = 0.5


class Activation(NamedTuple):
    """The two functions of an activation and what its derivative is computed from."""

    forward: Callable[[Array, Array, Pool], None]
    backward: Callable[[Array, Array, Array, Pool], None]
    keeps_input: bool = False


def _identity(z: Array, y: Array, pool: Pool) -> None:
    if y is not z:
        np.copyto(y, z)


def _identity_backward(y: Array, dy: Array, dx: Array, pool: Pool) -> None:
    np.copyto(dx, dy)


def _sigmoid(z: Array, y: Array, pool: Pool) -> None:
    # 1 / (1 + exp(-z)) = (1 + tanh(z/2)) / 2 never overflows
    np.multiply(z, 0.5, out=y)
    np.tanh(y, out=y)
    np.add(y, 1, out=y)
    np.multiply(y, 0.5, out=y)


def _sigmoid_backward(y: Array, dy: Array, dx: Array, pool: Pool) -> None:
    slope = pool.empty(y.shape, y.dtype)
    np.subtract(1, y, out=slope)
    np.multiply(slope, y, out=slope)
    np.multiply(dy, slope, out=dx)


def _tanh(z: Array, y: Array, pool: Pool) -> None:
    np.tanh(z, out=y)


def _tanh_backward(y: Array, dy: Array, dx: Array, pool: Pool) -> None:
    slope = pool.empty(y.shape, y.dtype)
    np.multiply(y, y, out=slope)
    np.subtract(1, slope, out=slope)
    np.multiply(dy, slope, out=dx)


def _relu(z: Array, y: Array, pool: Pool) -> None:
    np.maximum(z, 0, out=y)


def _relu_backward(y: Array, dy: Array, dx: Array, pool: Pool) -> None:
    active = pool.empty(y.shape, np.dtype(bool))
    np.greater(y, 0, out=active)
    np.multiply(dy, active, out=dx)


def _leaky_relu(z: Array, y: Array, pool: Pool) -> None:
    scaled = pool.empty(z.shape, z.dtype)
    np.multiply(z, LEAK, out=scaled)
    np.maximum(z, scaled, out=y)


def _leaky_relu_backward(y: Array, dy: Array, dx: Array, pool: Pool) -> None:
    slope = pool.empty(y.shape, y.dtype)
    np.greater(y, 0, out=slope, casting="unsafe")
    np.multiply(slope, 1 - LEAK, out=slope)
    np.add(slope, LEAK, out=slope)
    np.multiply(dy, slope, out=dx)


def _scaled_elu(z: Array, y: Array, pool: Pool, scale: float, alpha: float) -> None:
    negative = pool.empty(z.shape, z.dtype)
    np.minimum(z, 0, out=negative)
    np.expm1(negative, out=negative)
    np.multiply(negative, scale * alpha, out=negative)
    np.maximum(z, 0, out=y)
    np.multiply(y, scale, out=y)
    np.add(y, negative, out=y)


def _scaled_elu_backward(y: Array, dy: Array, dx: Array, pool: Pool, scale: float, alpha: float) -> None:
    # y <= 0: the slope is scale * alpha * exp(z) = y + scale * alpha; y > 0: scale
    slope = pool.empty(y.shape, y.dtype)
    active = pool.empty(y.shape, np.dtype(bool))
    np.greater(y, 0, out=active)
    np.add(y, scale * alpha, out=slope)
    np.copyto(slope, scale, where=active)
    np.multiply(dy, slope, out=dx)


def _elu(z: Array, y: Array, pool: Pool) -> None:
    _scaled_elu(z, y, pool, 1.0, 1.0)


def _elu_backward(y: Array, dy: Array, dx: Array, pool: Pool) -> None:
    _scaled_elu_backward(y, dy, dx, pool, 1.0, 1.0)


def _selu(z: Array, y: Array, pool: Pool) -> None:
    _scaled_elu(z, y, pool, SELU_SCALE, SELU_ALPHA)


def _selu_backward(y: Array, dy: Array, dx: Array, pool: Pool) -> None:
    _scaled_elu_backward(y, dy, dx, pool, SELU_SCALE, SELU_ALPHA)


def _normal_distribution(z: Array, pool: Pool) -> Array:
    share = pool.empty(z.shape, z.dtype)
    np.multiply(z, 1 / sqrt(2), out=share)
    erf(share, out=share)
    np.add(share, 1, out=share)
    np.multiply(share, 0.5, out=share)
    return share


def _gelu(z: Array, y: Array, pool: Pool) -> None:
    np.multiply(z, _normal_distribution(z, pool), out=y)


def _gelu_backward(z: Array, dy: Array, dx: Array, pool: Pool) -> None:
    density = pool.empty(z.shape, z.dtype)
    np.multiply(z, z, out=density)
    np.multiply(density, -0.5, out=density)
    np.exp(density, out=density)
    np.multiply(density, 1 / sqrt(2 * pi), out=density)
    np.multiply(density, z, out=density)
    np.add(density, _normal_distribution(z, pool), out=density)
    np.multiply(dy, density, out=dx)


def _hardshrink(z: Array, y: Array, pool: Pool) -> None:
    active = pool.empty(z.shape, z.dtype)
    size = pool.empty(z.shape, z.dtype)
    np.abs(z, out=size)
    np.greater(size, SHRINK, out=active, casting="unsafe")
    np.multiply(z, active, out=y)


def _hardshrink_backward(y: Array, dy: Array, dx: Array, pool: Pool) -> None:
    active = pool.empty(y.shape, np.dtype(bool))
    np.not_equal(y, 0, out=active)
    np.multiply(dy, active, out=dx)


def _tanh_softplus(z: Array, pool: Pool) -> Array:
    value = pool.empty(z.shape, z.dtype)
    np.logaddexp(z, 0, out=value)
    np.tanh(value, out=value)
    return value


def _mish(z: Array, y: Array, pool: Pool) -> None:
    np.multiply(z, _tanh_softplus(z, pool), out=y)


def _mish_backward(z: Array, dy: Array, dx: Array, pool: Pool) -> None:
    # f = z t, t = tanh(softplus(z)), f' = t + z (1 - t^2) sigmoid(z)
    t = _tanh_softplus(z, pool)
    slope = pool.empty(z.shape, z.dtype)
    rest = pool.empty(z.shape, z.dtype)
    _sigmoid(z, slope, pool)
    np.multiply(slope, z, out=slope)
    np.multiply(t, t, out=rest)
    np.subtract(1, rest, out=rest)
    np.multiply(slope, rest, out=slope)
    np.add(slope, t, out=slope)
    np.multiply(dy, slope, out=dx)


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(_identity, _identity_backward),
    "sigmoid": Activation(_sigmoid, _sigmoid_backward),
    "tanh": Activation(_tanh, _tanh_backward),
    "relu": Activation(_relu, _relu_backward),
    "leaky_relu": Activation(_leaky_relu, _leaky_relu_backward),
    "elu": Activation(_elu, _elu_backward),
    "selu": Activation(_selu, _selu_backward),
    "gelu": Activation(_gelu, _gelu_backward, keeps_input=True),
    "hardshrink": Activation(_hardshrink, _hardshrink_backward),
    "mish": Activation(_mish, _mish_backward, keeps_input=True),
}
