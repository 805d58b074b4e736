"""Convolution with stride 1 by Winograd's F(4x4, 3x3) and F(2x2, 5x5): 36 products in place of 144 or 100.

An output tile y of 4x4 pixels is A' [(G w G') * (B' x B)] A for an input tile x of 6x6, where * is elementwise, and so
the sum over the channels is a matrix product for each of the 36 places. The matrices interpolate a polynomial at
0, +-a, +-b and infinity. Lavin and Gray, Fast algorithms for convolutional neural networks, 2016. They take a = 1 and
b = 2; the points here halve the rounding error (Barabasz et al., Error analysis and improving the accuracy of Winograd
convolution for deep neural networks, 2020). A kernel of 5x5 has the same input tiles, and output tiles of 2x2.

Images are flat vectors in order (B, H, W, C); the transformed ones are (36, T, C) for T tiles of a block. ``tile`` is
the height and width of an output tile, so kernels have 7 - tile taps. Channels are multiples of 16, which fill the
widest register; ``kind`` is that of which the outputs fill two.
"""

from typing import Any

import numpy as np
from numba.extending import register_jitable

from mpinn.array.cpu_points import (
    gradient_into_2,
    gradient_into_4,
    image_from_2,
    image_from_4,
    image_into,
    store_6,
    weight_from_3,
    weight_from_5,
    weight_into_3,
    weight_into_5,
)
from mpinn.array.cpu_products import add_products, products
from mpinn.array.cpu_vector import WIDEST, lanes, load, register, store
from mpinn.array.jit import kernel

POINTS = 36


@register_jitable
def _weight_into(w: Any, at: int, step: int, tile: int, like: Any) -> Any:
    w0, w1, w2 = load(w, at, like), load(w, at + step, like), load(w, at + 2 * step, like)
    if tile == 4:
        return weight_into_3(w0, w1, w2, like)
    return weight_into_5(w0, w1, w2, load(w, at + 3 * step, like), load(w, at + 4 * step, like), like)


@register_jitable
def _weight_from(u: Any, at: int, step: int, tile: int, into: Any, to: int, apart: int, like: Any) -> None:
    u0, u1, u2 = load(u, at, like), load(u, at + step, like), load(u, at + 2 * step, like)
    u3, u4, u5 = load(u, at + 3 * step, like), load(u, at + 4 * step, like), load(u, at + 5 * step, like)
    if tile == 4:
        g = weight_from_3(u0, u1, u2, u3, u4, u5, like)
        store(into, to, g[0])
        store(into, to + apart, g[1])
        store(into, to + 2 * apart, g[2])
    else:
        h = weight_from_5(u0, u1, u2, u3, u4, u5, like)
        store(into, to, h[0])
        store(into, to + apart, h[1])
        store(into, to + 2 * apart, h[2])
        store(into, to + 3 * apart, h[3])
        store(into, to + 4 * apart, h[4])


@register_jitable
def _image_into(x: Any, at: int, step: int, like: Any) -> Any:
    return image_into(
        load(x, at, like),
        load(x, at + step, like),
        load(x, at + 2 * step, like),
        load(x, at + 3 * step, like),
        load(x, at + 4 * step, like),
        load(x, at + 5 * step, like),
        like,
    )


@register_jitable
def _gradient_into(dz: Any, at: int, step: int, tile: int, like: Any) -> Any:
    if tile == 4:
        y2, y3 = load(dz, at + 2 * step, like), load(dz, at + 3 * step, like)
        return gradient_into_4(load(dz, at, like), load(dz, at + step, like), y2, y3, like)
    return gradient_into_2(load(dz, at, like), load(dz, at + step, like), like)


@register_jitable
def _image_from(m: Any, at: int, step: int, tile: int, like: Any, into: Any, to: int, apart: int, count: int) -> None:
    """The first ``count`` outputs, ``apart`` from each other."""
    m0, m1, m2 = load(m, at, like), load(m, at + step, like), load(m, at + 2 * step, like)
    m3, m4, m5 = load(m, at + 3 * step, like), load(m, at + 4 * step, like), load(m, at + 5 * step, like)
    if tile == 4:
        y = image_from_4(m0, m1, m2, m3, m4, m5, like)
        store(into, to, y[0])
        if count > 1:
            store(into, to + apart, y[1])
        if count > 2:
            store(into, to + 2 * apart, y[2])
        if count > 3:
            store(into, to + 3 * apart, y[3])
    else:
        v = image_from_2(m0, m1, m2, m3, m4, m5, like)
        store(into, to, v[0])
        if count > 1:
            store(into, to + apart, v[1])


@kernel
def weight_into_points(w: Any, tile: int, turned: bool, channels: int, outputs: int, points: Any) -> None:
    """w: (taps, taps, C, O) to points: (36, C, O); ``turned`` round for the gradient by the input."""
    like, plane, taps = register(w, WIDEST), channels * outputs, 7 - tile
    width = lanes(like)
    half = np.empty(6 * taps * width, w.dtype)
    for e in range(0, plane, width):
        for j in range(taps):
            first, step = (taps * taps - 1 - j, -taps) if turned else (j, taps)
            u = _weight_into(w, first * plane + e, step * plane, tile, like)
            store_6(half, j * width, taps * width, u)
        for i in range(6):
            u = _weight_into(half, i * taps * width, width, tile, like)
            store_6(points, i * 6 * plane + e, plane, u)


@kernel
def weight_from_points(points: Any, tile: int, channels: int, outputs: int, grad: Any) -> None:
    """points: (36, C, O), the gradient by the transformed weight, to grad: (taps, taps, C, O)."""
    like, plane, taps = register(grad, WIDEST), channels * outputs, 7 - tile
    width = lanes(like)
    half = np.empty(6 * taps * width, grad.dtype)
    for e in range(0, plane, width):
        for j in range(6):
            _weight_from(points, j * plane + e, 6 * plane, tile, half, j * width, 6 * width, like)
        for i in range(taps):
            _weight_from(half, i * 6 * width, width, tile, grad, i * taps * plane + e, plane, like)


@register_jitable
def _patch(x: Any, image: int, high: int, wide: int, channels: int, top: int, left: int, size: int, patch: Any) -> None:
    """Copy size x size pixels from (top, left) on to ``patch``, zeros where there is no image."""
    zero = register(x, WIDEST)
    width = lanes(zero)
    for i in range(size):
        for j in range(size):
            inside = 0 <= top + i < high and 0 <= left + j < wide
            source = ((image * high + top + i) * wide + left + j) * channels
            for c in range(0, channels, width):
                store(patch, (i * size + j) * channels + c, load(x, source + c, zero) if inside else zero)


@kernel
def images_into_points(
    x: Any, high: int, wide: int, channels: int, tile: int, padding: Any, down: int, across: int,
    first: int, count: int, rows: int, points: Any,
) -> None:  # fmt: skip
    """Tiles ``first`` to ``first + count`` of x: (B, H, W, C), ``down * across`` an image, to points: (36, rows, C)."""
    like = register(x, WIDEST)
    width = lanes(like)
    half, patch = np.empty(36 * width, x.dtype), np.empty(36 * channels, x.dtype)
    for t in range(count):
        image, place = divmod(first + t, down * across)
        top, left = place // across * tile - padding[0], place % across * tile - padding[1]
        start, line = ((image * high + top) * wide + left) * channels, wide * channels
        source = x
        if top < 0 or left < 0 or top + 6 > high or left + 6 > wide:
            _patch(x, image, high, wide, channels, top, left, 6, patch)
            source, start, line = patch, 0, 6 * channels
        for c in range(0, channels, width):
            for j in range(6):
                u = _image_into(source, start + j * channels + c, line, like)
                store_6(half, j * width, 6 * width, u)
            for i in range(6):
                u = _image_into(half, i * 6 * width, width, like)
                store_6(points, (i * 6 * rows + t) * channels + c, rows * channels, u)


@kernel
def gradients_into_points(
    dz: Any, high: int, wide: int, channels: int, tile: int, down: int, across: int,
    first: int, count: int, rows: int, points: Any,
) -> None:  # fmt: skip
    """The same for the gradient by the output, dz: (B, OH, OW, O), in the gradient by the weight."""
    like = register(dz, WIDEST)
    width = lanes(like)
    half, patch = np.empty(6 * tile * width, dz.dtype), np.empty(tile * tile * channels, dz.dtype)
    for t in range(count):
        image, place = divmod(first + t, down * across)
        top, left = place // across * tile, place % across * tile
        start, line = ((image * high + top) * wide + left) * channels, wide * channels
        source = dz
        if top + tile > high or left + tile > wide:
            _patch(dz, image, high, wide, channels, top, left, tile, patch)
            source, start, line = patch, 0, tile * channels
        for c in range(0, channels, width):
            for j in range(tile):
                u = _gradient_into(source, start + j * channels + c, line, tile, like)
                store_6(half, j * width, tile * width, u)
            for i in range(6):
                u = _gradient_into(half, i * tile * width, width, tile, like)
                store_6(points, (i * 6 * rows + t) * channels + c, rows * channels, u)


@kernel
def images_from_points(
    points: Any, rows: int, high: int, wide: int, channels: int, tile: int, down: int, across: int,
    first: int, count: int, y: Any,
) -> None:  # fmt: skip
    """points: (36, rows, O) to tiles ``first`` to ``first + count`` of y: (B, OH, OW, O)."""
    like, plane = register(y, WIDEST), rows * channels
    width = lanes(like)
    half = np.empty(6 * tile * width, y.dtype)
    for t in range(count):
        image, place = divmod(first + t, down * across)
        top, left = place // across * tile, place % across * tile
        start = ((image * high + top) * wide + left) * channels
        lower, right = min(tile, high - top), min(tile, wide - left)
        for c in range(0, channels, width):
            for j in range(6):
                at = (j * rows + t) * channels + c
                _image_from(points, at, 6 * plane, tile, like, half, j * width, 6 * width, lower)
            for i in range(lower):
                at = start + i * wide * channels + c
                _image_from(half, i * 6 * width, width, tile, like, y, at, channels, right)


@kernel
def convolve(
    x: Any, high: int, wide: int, channels: int, tile: int, padding: Any, down: int, across: int, total: int,
    rows: int, weight: Any, outputs: int, points: Any, sums: Any, below: int, beside: int, y: Any, kind: Any,
) -> None:  # fmt: skip
    """All tiles, ``total`` of them in blocks of ``rows``: x: (B, H, W, C), weight: (36, C, O), y: (B, OH, OW, O)."""
    for first in range(0, total, rows):
        count = min(rows, total - first)
        images_into_points(x, high, wide, channels, tile, padding, down, across, first, count, rows, points)
        products(points, weight, POINTS, rows, channels, outputs, sums, kind)
        images_from_points(sums, rows, below, beside, outputs, tile, down, across, first, count, y)


@kernel
def add_gradients(
    x: Any, high: int, wide: int, channels: int, tile: int, padding: Any, down: int, across: int, total: int,
    rows: int, dz: Any, below: int, beside: int, outputs: int, points: Any, gradients: Any, whole: Any, kind: Any,
) -> None:  # fmt: skip
    """Add the gradient by the transformed weight to ``whole``: (36, C, O); dz: (B, OH, OW, O)."""
    for first in range(0, total, rows):
        count = min(rows, total - first)
        images_into_points(x, high, wide, channels, tile, padding, down, across, first, count, rows, points)
        gradients_into_points(dz, below, beside, outputs, tile, down, across, first, count, rows, gradients)
        add_products(points, gradients, POINTS, rows, count, channels, outputs, whole, kind)
