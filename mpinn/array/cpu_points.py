"""Winograd's transforms in one dimension, at the points 0, +-a, +-b and infinity; see `mpinn.array.cpu_winograd`.

A polynomial of six coefficients is known by its values there: the product of one of three and one of four coefficients,
F(4, 3), or of five and two, F(2, 5). The inputs x are transformed alike for both.
"""

from typing import Any

from numba.extending import register_jitable

from mpinn.array.cpu_vector import spread, store

A, B = 0.625, 1.5
A2, B2 = A * A, B * B
SUM, PRODUCT = A2 + B2, A2 * B2
NODE_0, NODE_A, NODE_B = 1 / PRODUCT, 1 / (2 * A2 * (A2 - B2)), 1 / (2 * B2 * (B2 - A2))


@register_jitable
def image_into(x0: Any, x1: Any, x2: Any, x3: Any, x4: Any, x5: Any, like: Any) -> Any:
    """B' x."""
    a2, b2 = spread(like, A2), spread(like, B2)
    total, product = spread(like, SUM), spread(like, PRODUCT)
    even_a, odd_a = x4 - b2 * x2, spread(like, A) * (x3 - b2 * x1)
    even_b, odd_b = x4 - a2 * x2, spread(like, B) * (x3 - a2 * x1)
    return (
        product * x0 - total * x2 + x4,
        even_a + odd_a,
        even_a - odd_a,
        even_b + odd_b,
        even_b - odd_b,
        product * x1 - total * x3 + x5,
    )


@register_jitable
def image_from_4(m0: Any, m1: Any, m2: Any, m3: Any, m4: Any, m5: Any, like: Any) -> Any:
    """A' m of four outputs."""
    sum_a, sum_b = m1 + m2, m3 + m4
    difference_a, difference_b = spread(like, A) * (m1 - m2), spread(like, B) * (m3 - m4)
    a2, b2 = spread(like, A2), spread(like, B2)
    return (
        m0 + (sum_a + sum_b),
        difference_a + difference_b,
        a2 * sum_a + b2 * sum_b,
        a2 * difference_a + b2 * difference_b + m5,
    )


@register_jitable
def image_from_2(m0: Any, m1: Any, m2: Any, m3: Any, m4: Any, m5: Any, like: Any) -> Any:
    """A' m of two outputs."""
    difference_a, difference_b = spread(like, A) * (m1 - m2), spread(like, B) * (m3 - m4)
    return m0 + ((m1 + m2) + (m3 + m4)), difference_a + difference_b + m5


@register_jitable
def gradient_into_4(y0: Any, y1: Any, y2: Any, y3: Any, like: Any) -> Any:
    """A y of four outputs."""
    a2, b2 = spread(like, A2), spread(like, B2)
    even_a, odd_a = y0 + a2 * y2, spread(like, A) * (y1 + a2 * y3)
    even_b, odd_b = y0 + b2 * y2, spread(like, B) * (y1 + b2 * y3)
    return y0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, y3


@register_jitable
def gradient_into_2(y0: Any, y1: Any, like: Any) -> Any:
    """A y of two outputs."""
    odd_a, odd_b = spread(like, A) * y1, spread(like, B) * y1
    return y0, y0 + odd_a, y0 - odd_a, y0 + odd_b, y0 - odd_b, y1


@register_jitable
def weight_into_3(w0: Any, w1: Any, w2: Any, like: Any) -> Any:
    """G w of three taps."""
    at_0, at_a, at_b = spread(like, NODE_0), spread(like, NODE_A), spread(like, NODE_B)
    even_a, odd_a = at_a * (w0 + spread(like, A2) * w2), spread(like, NODE_A * A) * w1
    even_b, odd_b = at_b * (w0 + spread(like, B2) * w2), spread(like, NODE_B * B) * w1
    return at_0 * w0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, w2


@register_jitable
def weight_into_5(w0: Any, w1: Any, w2: Any, w3: Any, w4: Any, like: Any) -> Any:
    """G w of five taps."""
    a2, b2 = spread(like, A2), spread(like, B2)
    even_a = spread(like, NODE_A) * (w0 + a2 * (w2 + a2 * w4))
    even_b = spread(like, NODE_B) * (w0 + b2 * (w2 + b2 * w4))
    odd_a, odd_b = spread(like, NODE_A * A) * (w1 + a2 * w3), spread(like, NODE_B * B) * (w1 + b2 * w3)
    return spread(like, NODE_0) * w0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, w4


@register_jitable
def weight_from_3(u0: Any, u1: Any, u2: Any, u3: Any, u4: Any, u5: Any, like: Any) -> Any:
    """G' u of three taps."""
    at_0, at_a, at_b = spread(like, NODE_0), spread(like, NODE_A), spread(like, NODE_B)
    sum_a, sum_b = at_a * (u1 + u2), at_b * (u3 + u4)
    a, b = spread(like, NODE_A * A), spread(like, NODE_B * B)
    return (
        at_0 * u0 + (sum_a + sum_b),
        a * (u1 - u2) + b * (u3 - u4),
        spread(like, A2) * sum_a + spread(like, B2) * sum_b + u5,
    )


@register_jitable
def weight_from_5(u0: Any, u1: Any, u2: Any, u3: Any, u4: Any, u5: Any, like: Any) -> Any:
    """G' u of five taps."""
    a2, b2 = spread(like, A2), spread(like, B2)
    even_a, odd_a = spread(like, NODE_A) * (u1 + u2), spread(like, NODE_A * A) * (u1 - u2)
    even_b, odd_b = spread(like, NODE_B) * (u3 + u4), spread(like, NODE_B * B) * (u3 - u4)
    square_a, square_b = a2 * even_a, b2 * even_b
    return (
        spread(like, NODE_0) * u0 + (even_a + even_b),
        odd_a + odd_b,
        square_a + square_b,
        a2 * odd_a + b2 * odd_b,
        a2 * square_a + b2 * square_b + u5,
    )


@register_jitable
def store_6(into: Any, at: int, step: int, u: Any) -> None:
    """Six vectors, ``step`` apart."""
    # written out: a loop over a tuple would keep it in memory
    store(into, at, u[0])
    store(into, at + step, u[1])
    store(into, at + 2 * step, u[2])
    store(into, at + 3 * step, u[3])
    store(into, at + 4 * step, u[4])
    store(into, at + 5 * step, u[5])
