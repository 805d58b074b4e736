"""Many small networks side by side, written plainly: the reference for the compiled twins.

Arrays have the batch last: a row is one hidden unit and all samples, so that networks of any width are runs of whole
rows. ``starts`` (M + 1,): the rows ``starts[m]`` up to ``starts[m + 1]`` belong to member m.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from mpinn.array.activations import ACTIVATIONS
from mpinn.array.pool import Pool
from mpinn.array.typing import Array

Runs: TypeAlias = Sequence[tuple[str, int, int]]
"""(activation, start, stop): the rows that it is applied to."""


def packed_activate(z: Array, bias: Array, runs: Runs, slope: Array | None, pool: Pool) -> None:
    """z: (H, B) becomes f(z + bias), bias: (H,); ``slope``, if given, becomes f'(z + bias)."""
    np.add(z, bias[:, None], out=z)
    for name, start, stop in runs:
        rows, activation = slice(start, stop), ACTIVATIONS[name]
        kept = z[rows].copy() if activation.keeps_input else z[rows]
        activation.forward(z[rows], z[rows], pool)
        if slope is not None:
            activation.backward(kept, np.ones_like(z[rows]), slope[rows], pool)


def packed_output(a: Array, weight: Array, bias: Array, starts: Array, y: Array) -> None:
    """The last layer. a: (H, B), weight: (H, O), bias: (M, O); writes y: (M, O, B)."""
    for member, (start, stop) in enumerate(pairwise(starts)):
        np.matmul(weight[start:stop].T, a[start:stop], out=y[member])
    np.add(y, bias[:, :, None], out=y)


def packed_output_backward(
    a: Array,
    weight: Array,
    starts: Array,
    dy: Array,
    slope: Array,
    dz: Array,
    dweight: Array,
    dbias: Array,
    dbefore: Array,
) -> None:
    """Its backward pass, and that of the activation before it. dy: (M, O, B), slope: (H, B).

    Writes dz: (H, B), dweight: (H, O), dbias: (M, O); dbefore: (H,), the gradient of the bias before the activation.
    """
    for member, (start, stop) in enumerate(pairwise(starts)):
        np.matmul(weight[start:stop], dy[member], out=dz[start:stop])
        np.matmul(a[start:stop], dy[member].T, out=dweight[start:stop])
    np.sum(dy, axis=2, out=dbias)
    packed_slope(dz, slope, dbefore)


def packed_slope(da: Array, slope: Array, dbias: Array) -> None:
    """da: (H, B) becomes dz = da * slope; dbias: (H,) is its sum over the samples."""
    np.multiply(da, slope, out=da)
    np.sum(da, axis=1, out=dbias)


def packed_cross_entropy(y: Array, target: Array, smoothing: float, dy: Array, losses: Array) -> None:
    """Cross-entropy of every member. y: (M, O, B), target: (B,) class numbers; writes dy and losses: (M,), float64.

    dy may be y itself.
    """
    outputs, samples = y.shape[1:]
    np.subtract(y, y.max(axis=1, keepdims=True), out=dy)
    columns = np.arange(samples)
    chosen = dy[:, target, columns].sum(axis=1, dtype=np.float64) * (1 - smoothing)
    if smoothing:
        chosen += dy.sum(axis=(1, 2), dtype=np.float64) * (smoothing / outputs)
    np.exp(dy, out=dy)
    total = dy.sum(axis=1, keepdims=True)
    losses[:] = np.log(total).sum(axis=(1, 2), dtype=np.float64) - chosen
    np.divide(dy, total, out=dy)
    if smoothing:
        np.subtract(dy, smoothing / outputs, out=dy)
    dy[:, target, columns] -= 1 - smoothing


def packed_squared_error(y: Array, target: Array, dy: Array, losses: Array) -> None:
    """Half the squared error of every member. y: (M, O, B), target: (B, O), or (B,) class numbers for one-hot rows.

    dy may be y itself.
    """
    if target.ndim == 1 and np.issubdtype(target.dtype, np.integer):
        np.copyto(dy, y)
        dy[:, target, np.arange(len(target))] -= 1
    else:
        np.subtract(y, target.reshape(len(target), -1).T, out=dy)
    losses[:] = 0.5 * np.square(dy, dtype=np.float64).sum(axis=(1, 2))


def packed_correct(y: Array, target: Array) -> Array:
    """How many samples each member has right: (M,). y: (M, O, B); target: (B,) class numbers, or (B, O)."""
    classes = target if target.ndim == 1 else target.argmax(axis=1)
    right: Array = (y.argmax(axis=1) == classes).sum(axis=1)
    return right


def prepared_pieces(starts: Array, stops: Array, owners: Array) -> tuple[Array, Array, Array]:
    """Pieces of a vector as `packed_squares` and `packed_scale` take them."""
    return starts, stops, owners


def packed_squares(vector: Array, starts: Array, stops: Array, owners: Array, squares: Array) -> None:
    """Add to squares (M,) the sums of squares of each member's pieces of a vector; ``owners``: whose each piece is."""
    for start, stop, owner in zip(starts, stops, owners, strict=True):
        squares[owner] += np.dot(vector[start:stop], vector[start:stop])


def packed_scale(vector: Array, starts: Array, stops: Array, factors: Array) -> None:
    """Multiply each piece of a vector by its factor; where that is 1, nothing is touched."""
    for piece in np.flatnonzero(factors != 1):
        vector[starts[piece] : stops[piece]] *= vector.dtype.type(factors[piece])
