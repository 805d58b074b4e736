"""Convolution with a 3x3 kernel and stride 1 by Winograd's F(4x4, 3x3): 36 products in place of 144 for 16 pixels.

An output tile y of 4x4 pixels is A' [(G w G') * (B' x B)] A for an input tile x of 6x6, where * is elementwise, and so
the sum over the channels is a matrix product for each of the 36 places. The matrices interpolate a polynomial at
0, +-a, +-b and infinity. Lavin and Gray, Fast algorithms for convolutional neural networks, 2016. They take a = 1 and
b = 2; the points here halve the rounding error (Barabasz et al., Error analysis and improving the accuracy of Winograd
convolution for deep neural networks, 2020).

Images are flat vectors in order (B, H, W, C); the transformed ones are (36, T, C) for T tiles of a block.
"""

from typing import Any

import numpy as np
from numba.extending import register_jitable

from mpinn.array.cpu_vector import lanes, load, spread, store
from mpinn.array.jit import kernel

A, B = 0.625, 1.5
A2, B2 = A * A, B * B
SUM, PRODUCT = A2 + B2, A2 * B2
NODE_0, NODE_A, NODE_B = 1 / PRODUCT, 1 / (2 * A2 * (A2 - B2)), 1 / (2 * B2 * (B2 - A2))
TILE, POINTS = 4, 36


@register_jitable
def _into_points(x0: Any, x1: Any, x2: Any, x3: Any, x4: Any, x5: Any, number: Any) -> Any:
    """B' x."""
    a2, b2 = spread(number(A2)), spread(number(B2))
    total, product = spread(number(SUM)), spread(number(PRODUCT))
    even_a, odd_a = x4 - b2 * x2, spread(number(A)) * (x3 - b2 * x1)
    even_b, odd_b = x4 - a2 * x2, spread(number(B)) * (x3 - a2 * x1)
    return (
        product * x0 - total * x2 + x4,
        even_a + odd_a,
        even_a - odd_a,
        even_b + odd_b,
        even_b - odd_b,
        product * x1 - total * x3 + x5,
    )


@register_jitable
def _from_points(m0: Any, m1: Any, m2: Any, m3: Any, m4: Any, m5: Any, number: Any) -> Any:
    """A' m."""
    sum_a, sum_b = m1 + m2, m3 + m4
    difference_a, difference_b = spread(number(A)) * (m1 - m2), spread(number(B)) * (m3 - m4)
    a2, b2 = spread(number(A2)), spread(number(B2))
    return (
        m0 + (sum_a + sum_b),
        difference_a + difference_b,
        a2 * sum_a + b2 * sum_b,
        a2 * difference_a + b2 * difference_b + m5,
    )


@register_jitable
def _gradient_into_points(y0: Any, y1: Any, y2: Any, y3: Any, number: Any) -> Any:
    """A y."""
    a2, b2 = spread(number(A2)), spread(number(B2))
    even_a, odd_a = y0 + a2 * y2, spread(number(A)) * (y1 + a2 * y3)
    even_b, odd_b = y0 + b2 * y2, spread(number(B)) * (y1 + b2 * y3)
    return y0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, y3


@register_jitable
def _weight_into_points(w0: Any, w1: Any, w2: Any, number: Any) -> Any:
    """G w."""
    at_0, at_a, at_b = spread(number(NODE_0)), spread(number(NODE_A)), spread(number(NODE_B))
    even_a, odd_a = at_a * (w0 + spread(number(A2)) * w2), spread(number(NODE_A * A)) * w1
    even_b, odd_b = at_b * (w0 + spread(number(B2)) * w2), spread(number(NODE_B * B)) * w1
    return at_0 * w0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, w2


@register_jitable
def _weight_from_points(u0: Any, u1: Any, u2: Any, u3: Any, u4: Any, u5: Any, number: Any) -> Any:
    """G' u."""
    at_0, at_a, at_b = spread(number(NODE_0)), spread(number(NODE_A)), spread(number(NODE_B))
    sum_a, sum_b = at_a * (u1 + u2), at_b * (u3 + u4)
    a, b = spread(number(NODE_A * A)), spread(number(NODE_B * B))
    return (
        at_0 * u0 + (sum_a + sum_b),
        a * (u1 - u2) + b * (u3 - u4),
        spread(number(A2)) * sum_a + spread(number(B2)) * sum_b + u5,
    )


@register_jitable
def _store_6(into: Any, at: int, step: int, u: Any) -> None:
    # written out: a loop over a tuple would keep it in memory
    store(into, at, u[0])
    store(into, at + step, u[1])
    store(into, at + 2 * step, u[2])
    store(into, at + 3 * step, u[3])
    store(into, at + 4 * step, u[4])
    store(into, at + 5 * step, u[5])


@kernel
def weight_into_points(w: Any, turned: bool, channels: int, outputs: int, points: Any) -> None:
    """w: (3, 3, C, O) to points: (36, C, O); ``turned`` round for the gradient by the input."""
    number, width, plane = w.dtype.type, lanes(w), channels * outputs
    half = np.empty(18 * width, w.dtype)
    for e in range(0, plane, width):
        for j in range(3):
            first, step = (8 - j, -3) if turned else (j, 3)
            u = _weight_into_points(
                load(w, first * plane + e),
                load(w, (first + step) * plane + e),
                load(w, (first + 2 * step) * plane + e),
                number,
            )
            _store_6(half, j * width, 3 * width, u)
        for i in range(6):
            at = i * 3 * width
            u = _weight_into_points(load(half, at), load(half, at + width), load(half, at + 2 * width), number)
            _store_6(points, i * 6 * plane + e, plane, u)


@kernel
def weight_from_points(points: Any, channels: int, outputs: int, grad: Any) -> None:
    """points: (36, C, O), the gradient by the transformed weight, to grad: (3, 3, C, O)."""
    number, width, plane = grad.dtype.type, lanes(grad), channels * outputs
    half = np.empty(18 * width, grad.dtype)
    for e in range(0, plane, width):
        for j in range(6):
            g = _weight_from_points(
                load(points, j * plane + e),
                load(points, (j + 6) * plane + e),
                load(points, (j + 12) * plane + e),
                load(points, (j + 18) * plane + e),
                load(points, (j + 24) * plane + e),
                load(points, (j + 30) * plane + e),
                number,
            )
            store(half, j * width, g[0])
            store(half, (6 + j) * width, g[1])
            store(half, (12 + j) * width, g[2])
        for i in range(3):
            at = i * 6 * width
            g = _weight_from_points(
                load(half, at),
                load(half, at + width),
                load(half, at + 2 * width),
                load(half, at + 3 * width),
                load(half, at + 4 * width),
                load(half, at + 5 * width),
                number,
            )
            store(grad, i * 3 * plane + e, g[0])
            store(grad, (i * 3 + 1) * plane + e, g[1])
            store(grad, (i * 3 + 2) * plane + e, g[2])


@register_jitable
def _patch(x: Any, image: int, high: int, wide: int, channels: int, top: int, left: int, size: int, patch: Any) -> None:
    """Copy size x size pixels from (top, left) on to ``patch``, zeros where there is no image."""
    width = lanes(x)
    zero = spread(x.dtype.type(0))
    for i in range(size):
        for j in range(size):
            inside = 0 <= top + i < high and 0 <= left + j < wide
            source = ((image * high + top + i) * wide + left + j) * channels
            for c in range(0, channels, width):
                store(patch, (i * size + j) * channels + c, load(x, source + c) if inside else zero)


@kernel
def images_into_points(
    x: Any, high: int, wide: int, channels: int, padding: Any, down: int, across: int,
    first: int, count: int, rows: int, points: Any,
) -> None:  # fmt: skip
    """Tiles ``first`` to ``first + count`` of x: (B, H, W, C), ``down * across`` an image, to points: (36, rows, C)."""
    number, width = x.dtype.type, lanes(x)
    half, patch = np.empty(36 * width, x.dtype), np.empty(36 * channels, x.dtype)
    for t in range(count):
        image, tile = divmod(first + t, down * across)
        top, left = tile // across * TILE - padding[0], tile % across * TILE - padding[1]
        start, line = ((image * high + top) * wide + left) * channels, wide * channels
        source = x
        if top < 0 or left < 0 or top + 6 > high or left + 6 > wide:
            _patch(x, image, high, wide, channels, top, left, 6, patch)
            source, start, line = patch, 0, 6 * channels
        for c in range(0, channels, width):
            for j in range(6):
                at = start + j * channels + c
                u = _into_points(
                    load(source, at),
                    load(source, at + line),
                    load(source, at + 2 * line),
                    load(source, at + 3 * line),
                    load(source, at + 4 * line),
                    load(source, at + 5 * line),
                    number,
                )
                _store_6(half, j * width, 6 * width, u)
            for i in range(6):
                at = i * 6 * width
                u = _into_points(
                    load(half, at),
                    load(half, at + width),
                    load(half, at + 2 * width),
                    load(half, at + 3 * width),
                    load(half, at + 4 * width),
                    load(half, at + 5 * width),
                    number,
                )
                _store_6(points, (i * 6 * rows + t) * channels + c, rows * channels, u)


@kernel
def gradients_into_points(
    dz: Any, high: int, wide: int, channels: int, down: int, across: int, first: int, count: int, rows: int, points: Any
) -> None:
    """The same for the gradient by the output, dz: (B, OH, OW, O), in the gradient by the weight."""
    number, width = dz.dtype.type, lanes(dz)
    half, patch = np.empty(24 * width, dz.dtype), np.empty(16 * channels, dz.dtype)
    for t in range(count):
        image, tile = divmod(first + t, down * across)
        top, left = tile // across * TILE, tile % across * TILE
        start, line = ((image * high + top) * wide + left) * channels, wide * channels
        source = dz
        if top + TILE > high or left + TILE > wide:
            _patch(dz, image, high, wide, channels, top, left, TILE, patch)
            source, start, line = patch, 0, TILE * channels
        for c in range(0, channels, width):
            for j in range(TILE):
                at = start + j * channels + c
                u = _gradient_into_points(
                    load(source, at),
                    load(source, at + line),
                    load(source, at + 2 * line),
                    load(source, at + 3 * line),
                    number,
                )
                _store_6(half, j * width, TILE * width, u)
            for i in range(6):
                at = i * TILE * width
                u = _gradient_into_points(
                    load(half, at),
                    load(half, at + width),
                    load(half, at + 2 * width),
                    load(half, at + 3 * width),
                    number,
                )
                _store_6(points, (i * 6 * rows + t) * channels + c, rows * channels, u)


@kernel
def images_from_points(
    points: Any, rows: int, high: int, wide: int, channels: int, down: int, across: int, first: int, count: int, y: Any
) -> None:
    """points: (36, rows, O) to tiles ``first`` to ``first + count`` of y: (B, OH, OW, O)."""
    number, width, plane = y.dtype.type, lanes(y), rows * channels
    half = np.empty(24 * width, y.dtype)
    for t in range(count):
        image, tile = divmod(first + t, down * across)
        top, left = tile // across * TILE, tile % across * TILE
        start = ((image * high + top) * wide + left) * channels
        lower, right = min(TILE, high - top), min(TILE, wide - left)
        for c in range(0, channels, width):
            for j in range(6):
                at = (j * rows + t) * channels + c
                m = _from_points(
                    load(points, at),
                    load(points, at + 6 * plane),
                    load(points, at + 12 * plane),
                    load(points, at + 18 * plane),
                    load(points, at + 24 * plane),
                    load(points, at + 30 * plane),
                    number,
                )
                store(half, j * width, m[0])
                store(half, (6 + j) * width, m[1])
                store(half, (12 + j) * width, m[2])
                store(half, (18 + j) * width, m[3])
            for i in range(lower):
                at = i * 6 * width
                m = _from_points(
                    load(half, at),
                    load(half, at + width),
                    load(half, at + 2 * width),
                    load(half, at + 3 * width),
                    load(half, at + 4 * width),
                    load(half, at + 5 * width),
                    number,
                )
                at = start + i * wide * channels + c
                store(y, at, m[0])
                if right > 1:
                    store(y, at + channels, m[1])
                if right > 2:
                    store(y, at + 2 * channels, m[2])
                if right > 3:
                    store(y, at + 3 * channels, m[3])
