"""Products of many matrices so small that a call of BLAS costs more than the product."""

from typing import Any

from mpinn.array.cpu_vector import lanes, load, register, spread_from, store
from mpinn.array.jit import kernel

ROWS = 6
"""Rows that `products` handles at once: with two registers each they fill the sixteen of AVX."""
TERMS = 16
"""Terms of a sum that are added up one after another; sums of so many are added then, which loses fewer digits."""


@kernel
def products(a: Any, b: Any, count: int, rows: int, inner: int, outputs: int, c: Any, kind: Any) -> None:
    """c = a b for each of ``count`` matrices, a: (rows, inner), b: (inner, outputs).

    Rows are a multiple of `ROWS`, outputs of two registers of a ``kind``, inner of `TERMS`.
    """
    zero = register(a, kind)
    width = lanes(zero)
    for p in range(count):
        for o in range(0, outputs, 2 * width):
            for t in range(0, rows, ROWS):
                into = (p * rows + t) * outputs + o
                for start in range(0, inner, TERMS):
                    a0 = b0 = c0 = d0 = e0 = f0 = a1 = b1 = c1 = d1 = e1 = f1 = zero
                    at = (p * inner + start) * outputs + o
                    first = (p * rows + t) * inner + start
                    for k in range(first, first + TERMS):
                        w0, w1 = load(b, at, zero), load(b, at + width, zero)
                        at += outputs
                        x = spread_from(a, k, zero)
                        a0, a1 = a0 + x * w0, a1 + x * w1
                        x = spread_from(a, k + inner, zero)
                        b0, b1 = b0 + x * w0, b1 + x * w1
                        x = spread_from(a, k + 2 * inner, zero)
                        c0, c1 = c0 + x * w0, c1 + x * w1
                        x = spread_from(a, k + 3 * inner, zero)
                        d0, d1 = d0 + x * w0, d1 + x * w1
                        x = spread_from(a, k + 4 * inner, zero)
                        e0, e1 = e0 + x * w0, e1 + x * w1
                        x = spread_from(a, k + 5 * inner, zero)
                        f0, f1 = f0 + x * w0, f1 + x * w1
                    if start:
                        a0, a1 = a0 + load(c, into, zero), a1 + load(c, into + width, zero)
                        b0, b1 = b0 + load(c, into + outputs, zero), b1 + load(c, into + outputs + width, zero)
                        c0, c1 = c0 + load(c, into + 2 * outputs, zero), c1 + load(c, into + 2 * outputs + width, zero)
                        d0, d1 = d0 + load(c, into + 3 * outputs, zero), d1 + load(c, into + 3 * outputs + width, zero)
                        e0, e1 = e0 + load(c, into + 4 * outputs, zero), e1 + load(c, into + 4 * outputs + width, zero)
                        f0, f1 = f0 + load(c, into + 5 * outputs, zero), f1 + load(c, into + 5 * outputs + width, zero)
                    store(c, into, a0)
                    store(c, into + width, a1)
                    store(c, into + outputs, b0)
                    store(c, into + outputs + width, b1)
                    store(c, into + 2 * outputs, c0)
                    store(c, into + 2 * outputs + width, c1)
                    store(c, into + 3 * outputs, d0)
                    store(c, into + 3 * outputs + width, d1)
                    store(c, into + 4 * outputs, e0)
                    store(c, into + 4 * outputs + width, e1)
                    store(c, into + 5 * outputs, f0)
                    store(c, into + 5 * outputs + width, f1)


@kernel
def add_products(a: Any, b: Any, count: int, rows: int, used: int, left: int, right: int, c: Any, kind: Any) -> None:
    """c += a' b for each of ``count`` matrices, a: (rows, left), b: (rows, right), of which ``used`` rows count.

    left is a multiple of 4, right of two registers of a ``kind``.
    """
    zero = register(a, kind)
    width = lanes(zero)
    for p in range(count):
        for i in range(0, left, 4):
            for j in range(0, right, 2 * width):
                at = (p * left + i) * right + j
                a0, a1 = load(c, at, zero), load(c, at + width, zero)
                b0, b1 = load(c, at + right, zero), load(c, at + right + width, zero)
                c0, c1 = load(c, at + 2 * right, zero), load(c, at + 2 * right + width, zero)
                d0, d1 = load(c, at + 3 * right, zero), load(c, at + 3 * right + width, zero)
                m, n = p * rows * left + i, p * rows * right + j
                for _ in range(used):
                    w0, w1 = load(b, n, zero), load(b, n + width, zero)
                    x = spread_from(a, m, zero)
                    a0, a1 = a0 + x * w0, a1 + x * w1
                    x = spread_from(a, m + 1, zero)
                    b0, b1 = b0 + x * w0, b1 + x * w1
                    x = spread_from(a, m + 2, zero)
                    c0, c1 = c0 + x * w0, c1 + x * w1
                    x = spread_from(a, m + 3, zero)
                    d0, d1 = d0 + x * w0, d1 + x * w1
                    m += left
                    n += right
                store(c, at, a0)
                store(c, at + width, a1)
                store(c, at + right, b0)
                store(c, at + right + width, b1)
                store(c, at + 2 * right, c0)
                store(c, at + 2 * right + width, c1)
                store(c, at + 3 * right, d0)
                store(c, at + 3 * right + width, d1)
