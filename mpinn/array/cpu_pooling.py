"""Max pooling compiled: one pass over the windows."""

from typing import Any

import numpy as np

from mpinn.array.cpu_vector import (
    BYTES,
    greater_or_nan,
    lanes,
    load,
    load_bytes,
    register,
    spread,
    store,
    store_bytes,
    where_equal,
    where_greater,
    widest,
)
from mpinn.array.im2col import Pair, extent
from mpinn.array.jit import kernel
from mpinn.array.pool import Pool
from mpinn.array.pooling import place_type
from mpinn.array.typing import Array, Shape


@kernel
def choose(x: Any, kernel_: Any, stride: Any, padding: Any, y: Any, place: Any) -> None:
    """The maxima of x: (B, H, W, C) and their places, as `pooling.max_pool` has them."""
    for n in range(y.shape[0]):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                best, where = y[n, i, j], place[n, i, j]
                empty = True
                for k in range(kernel_[0] * kernel_[1]):
                    down, across = (
                        i * stride[0] - padding[0] + k // kernel_[1],
                        j * stride[1] - padding[1] + k % kernel_[1],
                    )
                    if not (0 <= down < x.shape[1] and 0 <= across < x.shape[2]):
                        continue
                    pixel = x[n, down, across]
                    if empty:
                        for c in range(x.shape[3]):
                            best[c] = pixel[c]
                            where[c] = k
                        empty = False
                    else:
                        _replace(pixel, k, best, where)


@kernel
def _replace(pixel: Any, k: int, best: Any, where: Any) -> None:
    index = where.dtype.type(k)
    for c in range(pixel.size):
        value, kept = pixel[c], best[c]
        where[c] = index if value > kept else where[c]
        best[c] = value if value > kept or value != value else kept


@kernel
def give_back(place: Any, dy: Any, kernel_: Any, stride: Any, padding: Any, dx: Any) -> None:
    """Add dy to the pixels of dx: (B, H, W, C) where the maxima were found."""
    for n in range(dy.shape[0]):
        dx[n] = 0
        for i in range(dy.shape[1]):
            for j in range(dy.shape[2]):
                share, where = dy[n, i, j], place[n, i, j]
                for k in range(kernel_[0] * kernel_[1]):
                    down, across = (
                        i * stride[0] - padding[0] + k // kernel_[1],
                        j * stride[1] - padding[1] + k % kernel_[1],
                    )
                    if 0 <= down < dx.shape[1] and 0 <= across < dx.shape[2]:
                        _add_chosen(share, where, k, dx[n, down, across])


@kernel
def _add_chosen(share: Any, where: Any, k: int, pixel: Any) -> None:
    index, zero = where.dtype.type(k), share.dtype.type(0)
    for c in range(share.size):
        pixel[c] += share[c] if where[c] == index else zero


@kernel
def choose_by_registers(
    x: Any, shape: Any, kernel_: Any, stride: Any, padding: Any, y: Any, into: Any, place: Any, kind: Any
) -> None:
    """`choose` for vectors where channels fill registers: x of ``shape`` (B, H, W, C), y of ``into``."""
    like, channels = register(x, kind), shape[3]
    width = lanes(like)
    for n in range(into[0]):
        for i in range(into[1]):
            top = i * stride[0] - padding[0]
            lower, upper = max(0, -top), min(kernel_[0], shape[1] - top)
            for j in range(into[2]):
                left = j * stride[1] - padding[1]
                first, last = max(0, -left), min(kernel_[1], shape[2] - left)
                at = ((n * into[1] + i) * into[2] + j) * channels
                corner = ((n * shape[1] + top) * shape[2] + left) * channels
                for c in range(0, channels, width):
                    best = load(x, corner + (lower * shape[2] + first) * channels + c, like)
                    where = spread(like, lower * kernel_[1] + first)
                    for a in range(lower, upper):
                        for b in range(first, last):
                            value = load(x, corner + (a * shape[2] + b) * channels + c, like)
                            where = where_greater(value, best, spread(like, a * kernel_[1] + b), where)
                            best = greater_or_nan(value, best)
                    store(y, at + c, best)
                    store_bytes(place, at + c, where)


@kernel
def give_back_by_registers(
    place: Any, dy: Any, into: Any, kernel_: Any, stride: Any, padding: Any, dx: Any, shape: Any, kind: Any
) -> None:
    """`give_back` for the same vectors, dx being zero to begin with."""
    like, channels = register(dy, kind), shape[3]
    width = lanes(like)
    for n in range(into[0]):
        for i in range(into[1]):
            top = i * stride[0] - padding[0]
            lower, upper = max(0, -top), min(kernel_[0], shape[1] - top)
            for j in range(into[2]):
                left = j * stride[1] - padding[1]
                first, last = max(0, -left), min(kernel_[1], shape[2] - left)
                at = ((n * into[1] + i) * into[2] + j) * channels
                corner = ((n * shape[1] + top) * shape[2] + left) * channels
                for c in range(0, channels, width):
                    share = load(dy, at + c, like)
                    where = load_bytes(place, at + c, share)
                    for a in range(lower, upper):
                        for b in range(first, last):
                            pixel = corner + (a * shape[2] + b) * channels + c
                            given = where_equal(where, spread(like, a * kernel_[1] + b), share)
                            store(dx, pixel, load(dx, pixel, like) + given)


def max_pool(x: Array, kernel: Pair, stride: Pair, padding: Pair, pool: Pool) -> tuple[Array, Array]:
    """The twin of `pooling.max_pool`."""
    high, wide = (extent(x.shape[axis + 1], kernel[axis], stride[axis], padding[axis]) for axis in (0, 1))
    shape = (len(x), high, wide, x.shape[3])
    y, place = pool.empty(shape, x.dtype), pool.empty(shape, place_type(kernel))
    if _fills_registers(x, kernel):
        places, kind = place.reshape(-1), widest(x.shape[3], x.itemsize)
        choose_by_registers(x.reshape(-1), x.shape, kernel, stride, padding, y.reshape(-1), shape, places, kind)
    else:
        choose(x, kernel, stride, padding, y, place)
    return y, place


def max_pool_backward(
    place: Array, dy: Array, shape: Shape, kernel: Pair, stride: Pair, padding: Pair, pool: Pool
) -> Array:
    """The twin of `pooling.max_pool_backward`."""
    dx = pool.empty((len(dy), *shape), dy.dtype)
    if _fills_registers(dy, kernel):
        dx.fill(0)
        kind = widest(dy.shape[3], dy.itemsize)
        give_back_by_registers(
            place.reshape(-1), dy.reshape(-1), dy.shape, kernel, stride, padding, dx.reshape(-1), dx.shape, kind
        )
    else:
        give_back(place, dy, kernel, stride, padding, dx)
    return dx


def _fills_registers(x: Array, kernel: Pair) -> bool:
    return x.shape[3] % (BYTES // x.itemsize) == 0 and place_type(kernel) == np.uint8
