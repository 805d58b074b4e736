"""Registers of 32 and of 64 bytes give the same bits, and are chosen by how many numbers there are."""

from collections.abc import Callable

import numpy as np
import pytest

from mpinn.array import cpu_vector
from mpinn.array.cpu_direct import add_gradient, correlate
from mpinn.array.cpu_norms import gradient, moments, normalise, sums_of_gradient
from mpinn.array.cpu_pooling import choose_by_registers, give_back_by_registers
from mpinn.array.cpu_products import add_products, products
from mpinn.array.cpu_vector import NARROW, WIDE, lanes, register, widest
from mpinn.array.cpu_winograd import add_gradients, convolve
from mpinn.array.jit import kernel
from mpinn.array.taps import forward_taps, reads_of_rows
from mpinn.array.typing import Array

ROWS, CHANNELS = 70, 48
Result = list[Array]
Run = Callable[[tuple[int, ...], np.dtype], Result]


def draw(dtype: np.dtype, *shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def norm(kind: tuple[int, ...], dtype: np.dtype) -> Result:
    x, dy = draw(dtype, ROWS * CHANNELS), draw(dtype, ROWS * CHANNELS, seed=1)
    mean, scale, shift = draw(dtype, 3, CHANNELS, seed=2)
    found = [np.empty(CHANNELS) for _ in range(4)]
    y, dx = np.empty_like(x), np.empty_like(x)
    moments(x, ROWS, *found[:2], kind)
    normalise(x, ROWS, mean, scale, scale, shift, True, y, kind)
    sums_of_gradient(x, y, dy, ROWS, mean, True, *found[2:], kind)
    gradient(x, y, dy, ROWS, mean, True, scale, shift, shift, dx, kind)
    return [*found, y, dx]


def pooling(kind: tuple[int, ...], dtype: np.dtype) -> Result:
    shape, into, window = (2, 7, 6, CHANNELS), (2, 4, 3, CHANNELS), ((3, 2), (2, 2), (1, 0))
    x, dy = draw(dtype, np.prod(shape)), draw(dtype, np.prod(into), seed=1)
    y, place, dx = np.empty_like(dy), np.empty(dy.size, np.uint8), np.zeros_like(x)
    choose_by_registers(x, shape, *window, y, into, place, kind)
    give_back_by_registers(place, dy, into, *window, dx, shape, kind)
    return [y, place, dx]


def small_products(kind: tuple[int, ...], dtype: np.dtype) -> Result:
    a, b, d = draw(dtype, 3, 12, 32), draw(dtype, 3, 32, 64, seed=1), draw(dtype, 3, 12, 64, seed=2)
    c, into = np.empty((3, 12, 64), dtype), draw(dtype, 3, 32, 64, seed=3)
    products(a.reshape(-1), b.reshape(-1), 3, 12, 32, 64, c.reshape(-1), kind)
    add_products(a.reshape(-1), d.reshape(-1), 3, 12, 11, 32, 64, into.reshape(-1), kind)
    np.testing.assert_allclose(c, a @ b, rtol=1e-4, atol=1e-4)
    return [c, into]


def direct(kind: tuple[int, ...], dtype: np.dtype) -> Result:
    x, weight, dz = draw(dtype, 2, 6, 7, 3), draw(dtype, 3, 3, 3, 64, seed=1), draw(dtype, 2, 6, 7, 64, seed=2)
    taps = forward_taps(x.shape[1:], weight.shape, (1, 1), (1, 1))
    room = np.empty(taps.frame[0] * taps.frame[1] * 3, dtype)
    read = reads_of_rows(taps, 6)
    y, grad = np.empty_like(dz), np.zeros((len(read), 64), dtype)
    flat = (x.reshape(-1), *x.shape)
    correlate(*flat, *taps[:-1], weight.reshape(-1), 64, room, y.reshape(-1), kind)
    add_gradient(*flat, taps.frame, taps.bases, read, dz.reshape(-1), 64, room, grad.reshape(-1), kind)
    return [y, grad]


def winograd(kind: tuple[int, ...], dtype: np.dtype) -> Result:
    x, dz, points = draw(dtype, 2, 8, 8, 16), draw(dtype, 2, 8, 8, 64, seed=1), draw(dtype, 36, 16, 64, seed=2)
    into, sums, y = np.empty((36, 12, 16), dtype), np.empty((36, 12, 64), dtype), np.empty_like(dz)
    place, tiles, whole = (x.reshape(-1), 8, 8, 16), (4, (1, 1), 2, 2, 8, 12), np.zeros_like(points)
    flat = into.reshape(-1), sums.reshape(-1)
    convolve(*place, *tiles, points.reshape(-1), 64, *flat, 8, 8, y.reshape(-1), kind)
    add_gradients(*place, *tiles, dz.reshape(-1), 8, 8, 64, *flat, whole.reshape(-1), kind)
    return [y, whole]


@kernel
def count(array: Array, kind: tuple[int, ...]) -> int:
    return lanes(register(array, kind))


@pytest.mark.parametrize(("kind", "size"), [(NARROW, 32), (WIDE, 64)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_they_hold_as_many_numbers_as_they_have_room_for(kind: tuple[int, ...], size: int, dtype: type) -> None:
    assert count(np.empty(0, dtype), kind) == size // np.dtype(dtype).itemsize


@pytest.mark.parametrize("run", [norm, pooling, small_products, direct, winograd])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_give_the_same_bits(run: Run, dtype: str) -> None:
    narrow, wide = (run(kind, np.dtype(dtype)) for kind in (NARROW, WIDE))
    assert all(np.isfinite(array).all() for array in narrow)
    assert [array.tobytes() for array in narrow] == [array.tobytes() for array in wide]


@pytest.mark.parametrize(
    ("count", "itemsize", "registers", "kind"),
    [(16, 4, 1, WIDE), (8, 8, 1, WIDE), (16, 4, 2, NARROW), (32, 4, 2, WIDE), (24, 4, 1, NARROW), (16, 8, 2, WIDE)],
)
def test_the_widest_that_numbers_fill(
    count: int, itemsize: int, registers: int, kind: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_vector, "WIDEST", WIDE)
    assert widest(count, itemsize, registers) == kind
    monkeypatch.setattr(cpu_vector, "WIDEST", NARROW)
    assert widest(count, itemsize, registers) == NARROW
