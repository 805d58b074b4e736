"""Layers of many networks of different widths at once, written plainly: the reference for the kernels of a device.

``units`` (U, B) has a row for each hidden unit of all layers of all networks, the batch last. After the forward pass a
row has what the slope is computed from: f(z), or z for the activations that keep their input. In the backward pass it
becomes dz. A network is nothing but places in a flat ``vector`` of weights, and in ``grads``, which is laid out alike.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mpinn.array.activations import ACTIVATIONS
from mpinn.array.pool import Pool
from mpinn.array.typing import Array

NAMES = tuple(ACTIVATIONS)
"""Activations by their numbers."""
TALL, LOW = 64, 32
"""Rows of a tile, as a device cuts layers: of first ones, where it may have rows of several networks, and of later
ones."""


class Products(NamedTuple):
    """One hidden layer of many networks, (N,) int64 each: f(W a + b) of the rows a of the layer before.

    ``rows`` and ``sources``: the first row of the layer and of the one before, or 0 where that is the samples;
    ``units`` and ``inputs``: how many rows these are. W: (units, inputs) begins at ``weights``, b at ``biases``.
    Networks with the same sources, whose rows and weights follow one another, may be one.
    """

    rows: Array
    units: Array
    weights: Array
    biases: Array
    sources: Array
    inputs: Array
    activations: Array
    """Places in `NAMES`."""


class Heads(NamedTuple):
    """The last layer of each network, (M,) int64 each: W: (units, O) at ``weights``, and O numbers at ``biases``."""

    rows: Array
    units: Array
    weights: Array
    biases: Array
    activations: Array


def ragged_products(products: Products, first: bool) -> Any:
    """A hidden layer as the kernels take it; ``first``: whether it is that of the samples."""
    return products


def ragged_heads(heads: Heads) -> Any:
    """Last layers as the kernels take them."""
    return heads


def _each(table: Products | Heads) -> Iterator[list[int]]:
    return iter(np.stack(table, axis=1).tolist())


def _value(kept: Array, name: str, pool: Pool) -> Array:
    """f(z) from what is kept of it."""
    if not ACTIVATIONS[name].keeps_input:
        return kept
    a = np.empty_like(kept)
    ACTIVATIONS[name].forward(kept, a, pool)
    return a


def _source(units: Array, x: Array | None, start: int, count: int, name: str, pool: Pool) -> Array:
    return x.T if x is not None else _value(units[start : start + count], name, pool)


def ragged_hidden(vector: Array, layer: Any, x: Array | None, units: Array, pool: Pool) -> None:
    """A hidden layer forward: the first one, of the samples x: (B, I), or a later one. ``layer``: `ragged_products`."""
    for row, count, weight, bias, source, inputs, number in _each(layer):
        name, rows = NAMES[number], units[row : row + count]
        matrix = vector[weight : weight + count * inputs].reshape(count, inputs)
        np.matmul(matrix, _source(units, x, source, inputs, name, pool), out=rows)
        np.add(rows, vector[bias : bias + count, None], out=rows)
        if not ACTIVATIONS[name].keeps_input:
            ACTIVATIONS[name].forward(rows, rows, pool)


def ragged_output(vector: Array, heads: Any, units: Array, y: Array, pool: Pool) -> None:
    """The last layers forward: writes y: (M, O, B). ``heads``: `ragged_heads`."""
    outputs = y.shape[1]
    for own, (row, count, weight, bias, number) in zip(y, _each(heads), strict=True):
        matrix = vector[weight : weight + count * outputs].reshape(count, outputs)
        np.matmul(matrix.T, _value(units[row : row + count], NAMES[number], pool), out=own)
        np.add(own, vector[bias : bias + outputs, None], out=own)


def ragged_output_backward(vector: Array, heads: Any, units: Array, dy: Array, grads: Array, pool: Pool) -> None:
    """Their backward pass: writes gradients of weights and biases, and dz of the last hidden layers. dy: (M, O, B)."""
    outputs = dy.shape[1]
    for own, (row, count, weight, bias, number) in zip(dy, _each(heads), strict=True):
        name, kept, span = NAMES[number], units[row : row + count], slice(weight, weight + count * outputs)
        np.matmul(_value(kept, name, pool), own.T, out=grads[span].reshape(count, outputs))
        np.sum(own, axis=1, out=grads[bias : bias + outputs])
        ACTIVATIONS[name].backward(kept, vector[span].reshape(count, outputs) @ own, kept, pool)


def ragged_gradient(layer: Any, x: Array | None, units: Array, grads: Array, pool: Pool) -> None:
    """Gradients of the weights and biases of a hidden layer, from its dz and from what the layer before has kept."""
    for row, count, weight, bias, source, inputs, number in _each(layer):
        dz, matrix = units[row : row + count], grads[weight : weight + count * inputs].reshape(count, inputs)
        np.matmul(dz, _source(units, x, source, inputs, NAMES[number], pool).T, out=matrix)
        np.sum(dz, axis=1, out=grads[bias : bias + count])


def ragged_backward(vector: Array, layer: Any, units: Array, pool: Pool) -> None:
    """The backward pass of a later hidden layer: what the layer before has kept becomes its dz."""
    for row, count, weight, _, source, inputs, number in _each(layer):
        matrix, kept = vector[weight : weight + count * inputs].reshape(count, inputs), units[source : source + inputs]
        ACTIVATIONS[NAMES[number]].backward(kept, matrix.T @ units[row : row + count], kept, pool)


def finite_sum(numbers: Array) -> Any:
    """The sum of those that are finite."""
    return numbers[np.isfinite(numbers)].sum()
