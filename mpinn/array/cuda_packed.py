"""Populations on a CUDA device: all their networks at once, in a few launches; see `mpinn.array.ragged`.

Why not panel by panel, as on a CPU: 10,000 members with 505,000 hidden units are 250 panels, and 5 launches for each of
them take longer, at 2 us, than all memory traffic of a step at 10 features and batch 32, which is 0.3 GB or 0.1 ms. Why
not one product by cuBLAS: the weights of panels stand apart in the vector, and its algorithm may change with the number
of rows. So a tile of a product is a block, which finds in a table where its weights and its units are. Only one number
for each unit and sample is kept for the backward pass, which overwrites it with dz.

What holds on a device: a number is a sum in an order that follows from the widths of its network, the batch, the
features and the outputs alone. So no bit of a network depends on another, nor on the panel, the rank or the place where
it is, and all results repeat bit for bit. They are not those of a CPU, but for rounding; float32 is never TF32 here.
"""

from typing import NamedTuple

import cupy
import numpy as np

from mpinn.array.cuda_kernels import THREADS, launch, power_of_two
from mpinn.array.cuda_memory import on_device
from mpinn.array.cuda_vectors import DOUBLE, wanted
from mpinn.array.pool import Pool
from mpinn.array.ragged import LOW, TALL, Heads, Products
from mpinn.array.typing import Array

BROAD, SLIM = 64, 32
"""Columns of a tile, whichever leaves fewer of them empty."""
OWN = 8 * 4
"""Numbers of a tile that a thread has."""
WARP, HEAD_THREADS = 32, 128


class Tiles(NamedTuple):
    """A hidden layer on the device: tiles of its rows and of those of the layer before, and the most inputs."""

    forward: Array
    backward: Array
    inputs: int


def ragged_products(products: Products, first: bool) -> Tiles:
    """The twin of `ragged.ragged_products`: tables of tiles."""
    rows, units, weights, biases, sources, inputs, names = products
    n, begin, count = _cut(units, TALL if first else LOW)
    weight = weights[n] + begin * inputs[n]
    forward = _table(rows[n] + begin, count, weight, biases[n] + begin, sources[n], inputs[n], names[n])
    n, begin, count = _cut(inputs[:0] if first else inputs, LOW)
    backward = _table(sources[n] + begin, count, weights[n] + begin, inputs[n], rows[n], units[n], names[n])
    return Tiles(forward, backward, int(inputs.max(initial=0)))


def ragged_heads(heads: Heads) -> Array:
    """The twin of `ragged.ragged_heads`: (M, 5)."""
    return _table(*heads)


def _cut(lengths: Array, most: int) -> tuple[Array, Array, Array]:
    """Which of the lengths each tile is of, where it begins there, and how long it is."""
    tiles = -(-lengths // most)
    which = np.repeat(np.arange(len(lengths)), tiles)
    begin = (np.arange(len(which)) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * most
    return which, begin, np.minimum(lengths[which] - begin, most)


def _table(*columns: Array) -> Array:
    return on_device(np.stack(columns, axis=1).astype(np.int64, copy=False))


def _product(name: str, like: Array, tiles: Array, rows: int, columns: int, *arguments: Array | int) -> None:
    """Launch a block for each tile of so many rows and each part of the columns."""
    broad = SLIM if columns % BROAD and columns % BROAD <= SLIM else BROAD
    _tiled(name, like, tiles, rows, columns, broad, *arguments)


def _tiled(name: str, like: Array, tiles: Array, rows: int, columns: int, broad: int, *arguments: Array | int) -> None:
    parts = -(-columns // broad)
    if len(tiles) * parts:
        launch(name, like.dtype, (len(tiles) * parts,), (rows * broad // OWN,), *arguments, parts)


def ragged_hidden(vector: Array, layer: Tiles, x: Array | None, units: Array, pool: Pool) -> None:
    """The twin of `ragged.ragged_hidden` in one pass."""
    samples, tiles = units.shape[1], layer.forward
    if x is None:
        _product("ragged_later", units, tiles, LOW, samples, vector, tiles, units, samples)
    else:
        _product("ragged_first", units, tiles, TALL, samples, vector, tiles, x, units, samples)


def ragged_output(vector: Array, heads: Array, units: Array, y: Array, pool: Pool) -> None:
    """The twin of `ragged.ragged_output`."""
    members, outputs, samples = y.shape
    parts = -(-samples // WARP)
    blocks = -(-members * parts * WARP // HEAD_THREADS)
    if blocks:
        launch("ragged_output", y.dtype, (blocks,), (HEAD_THREADS,), vector, heads, units, y, members, outputs, samples,
               parts)  # fmt: skip


def ragged_output_backward(vector: Array, heads: Array, units: Array, dy: Array, grads: Array, pool: Pool) -> None:
    """The twin of `ragged.ragged_output_backward`."""
    members, outputs, samples = dy.shape
    if members:
        launch("ragged_output_back", dy.dtype, (members,), (HEAD_THREADS,), vector, heads, units, dy, grads, outputs,
               samples)  # fmt: skip


def ragged_gradient(layer: Tiles, x: Array | None, units: Array, grads: Array, pool: Pool) -> None:
    """The twin of `ragged.ragged_gradient` in one pass."""
    samples, tiles = units.shape[1], layer.forward
    if x is None:
        _tiled("ragged_later_gradient", units, tiles, LOW, layer.inputs, BROAD, tiles, units, grads, samples)
    else:
        _product("ragged_first_gradient", units, tiles, TALL, layer.inputs, tiles, x, units, grads, samples)


def ragged_backward(vector: Array, layer: Tiles, units: Array, pool: Pool) -> None:
    """The twin of `ragged.ragged_backward` in one pass."""
    samples = units.shape[1]
    _product("ragged_back", units, layer.backward, LOW, samples, vector, layer.backward, units, samples)


def finite_sum(numbers: Array) -> Array:
    """The twin of `ragged.finite_sum`: of no dimensions."""
    found: Array = cupy.empty((), DOUBLE)
    launch("finite_sum", DOUBLE, (1,), (THREADS,), numbers, found, numbers.size, doubles=THREADS)
    return found


def packed_cross_entropy(y: Array, target: Array, smoothing: float, dy: Array, losses: Array) -> None:
    """The twin of `packed.packed_cross_entropy`; a class that is not there makes the loss NaN."""
    _by_member("packed_cross_entropy", y, y, target, dy, losses, *y.shape[1:], float(smoothing))


def packed_squared_error(y: Array, target: Array, dy: Array, losses: Array) -> None:
    """The twin of `packed.packed_squared_error`; a class that is not there makes the loss NaN."""
    _by_member("packed_squared_error", y, y, *wanted(target), dy, losses, *y.shape[1:])


def packed_correct(y: Array, target: Array) -> Array:
    """The twin of `packed.packed_correct`, in float64."""
    right: Array = cupy.empty(len(y), DOUBLE)
    _by_member("packed_correct", y, y, *wanted(target), right, *y.shape[1:])
    return right


def _by_member(name: str, y: Array, *arguments: Array | float) -> None:
    """Launch a block for each member of y: (M, O, B); how many threads it has follows from the samples."""
    members, _, samples = y.shape
    threads = power_of_two(samples, WARP, THREADS)
    if members:
        launch(name, y.dtype, (members,), (threads,), *arguments, doubles=threads)


def prepared_pieces(starts: Array, stops: Array, owners: Array) -> tuple[Array, Array, Array]:
    """The twin of `packed.prepared_pieces`: member by member, on the device."""
    order = np.argsort(owners, kind="stable")
    return on_device(starts[order]), on_device(stops[order]), on_device(owners[order])


def packed_squares(vector: Array, starts: Array, stops: Array, owners: Array, squares: Array) -> None:
    """The twin of `packed.packed_squares`, of pieces that are `prepared_pieces`."""
    if squares.size:
        launch("packed_squares", vector.dtype, (squares.size,), (THREADS,), vector, starts, stops, owners, squares,
               starts.size, doubles=THREADS)  # fmt: skip


def packed_scale(vector: Array, starts: Array, stops: Array, factors: Array) -> None:
    """The twin of `packed.packed_scale`."""
    if starts.size:
        launch("packed_scale", vector.dtype, (starts.size,), (THREADS,), vector, starts, stops, factors)
