"""Every kernel of the device beside its plain twin: on vectors and matrices."""

import sys
from collections.abc import Iterator
from math import erfc
from pathlib import Path
from typing import Any

import cupy
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "array"))

from rounding import Arguments, check_rounding, terms_of, widened
from test_cpu_kernels import CASES, IN_PLACE, SHAPES, numbers

from mpinn.array import activations, cuda, steps
from mpinn.array import ops as plain
from mpinn.array.activations import ACTIVATIONS
from mpinn.array.cuda_kernels import address, placed
from mpinn.array.pool import Pool
from mpinn.array.steps import Segments

EXACT = {"dropout", "dropout_mask", "sgd", "adam", "all_finite"}
"""Kernels that compute in the same order as their twins."""
NAMES = sorted({*CASES} - {"squares_of"})
DTYPES = ["float32", "float64"]


def plainly(item: Any) -> Any:
    """On a device arrays are contiguous, and float32 numbers too small for all digits may be zero."""
    if not isinstance(item, np.ndarray):
        return item
    if item.dtype == np.float32:
        item = np.where(np.abs(item) < np.finfo(np.float32).tiny, np.float32(0), item)
    return np.ascontiguousarray(item)


def on_host(name: str, given: Arguments) -> list[np.ndarray]:
    """What the plain kernel returns, and what it writes."""
    own = [item.copy() if isinstance(item, np.ndarray) else item for item in given]
    with np.errstate(all="ignore"):
        returned = getattr(plain, name)(*own)
    return [np.asarray(array) for array in listed(name, returned, own)]


def on_device(name: str, given: Arguments) -> list[np.ndarray]:
    """The same of the device's kernel."""
    own = [moved(item) for item in given]
    returned = getattr(cuda, name)(*own)
    return [np.asarray(cuda.on_host(array)) for array in listed(name, returned, own)]


def moved(item: Any) -> Any:
    if isinstance(item, np.ndarray):
        return cuda.on_device(item)
    if isinstance(item, Segments):
        return cuda.prepared(item)
    return Pool(cupy) if isinstance(item, Pool) else item


def listed(name: str, returned: Any, own: Arguments) -> list[Any]:
    found = list(returned) if isinstance(returned, tuple) else [] if returned is None else [returned]
    return found + [own[i] for i in IN_PLACE.get(name, ()) if own[i] is not None]


def exact_normal(z: np.ndarray, pool: Pool) -> np.ndarray:
    """Of the error function there is no wider type than float64, and the plain kernel loses digits in 1 + erf."""
    return (0.5 * np.vectorize(erfc, otypes=[float])(-z / np.sqrt(z.dtype.type(2)))).astype(z.dtype)


def same(name: str, given: Arguments, dtype: str) -> None:
    """Fails unless the device gives what the plain kernel does: bit for bit, or as exactly as rounding lets it."""
    expected, found = on_host(name, given), on_device(name, given)
    assert [array.shape for array in found] == [array.shape for array in expected]
    if name in EXACT:
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(plainly(one), plainly(other))
        return
    wide = widened(given, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "_normal_distribution", exact_normal)
        references = on_host(name, wide)
        terms = terms_of(name, wide, references)
    check_rounding(name, given, found, expected, references, terms, dtype)


def cases(name: str, dtype: str, odd: bool) -> Iterator[Arguments]:
    for given in CASES[name](dtype, odd):
        yield [plainly(item) for item in given]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_plain_kernel(name: str, odd: bool, dtype: str) -> None:
    for given in cases(name, dtype, odd):
        same(name, given, dtype)


def test_every_kernel_is_there() -> None:
    names = [name for name in plain.__all__ if not name.startswith("packed_")]
    # these two are parts of others, which have them inside
    missing = {name for name in names if not hasattr(cuda, name)} - {"followed", "column_moments"}
    assert missing == set()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 1, 7), (1, 9, 4), (33, 65, 17), (4, 8, 1), (2, 0, 3), (0, 3, 2)])
def test_products(sizes: tuple[int, ...], batch: tuple[int, ...], turned: tuple[bool, bool], dtype: str) -> None:
    rows, inner, columns = sizes
    a, b = numbers((*batch, rows, inner), dtype), numbers((*batch, inner, columns), dtype, 1)
    stored = [np.ascontiguousarray(x.swapaxes(-1, -2)) if turn else x for x, turn in zip((a, b), turned, strict=True)]
    left, right = (
        cuda.on_device(x).swapaxes(-1, -2) if turn else cuda.on_device(x)
        for x, turn in zip(stored, turned, strict=True)
    )
    out = cupy.full((*batch, rows, columns), np.nan, dtype)
    cuda.matmul(left, right, out)
    wide = (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)) * np.finfo(dtype).eps * (inner + 1)
    exact = a.astype(np.longdouble) @ b.astype(np.longdouble)
    assert (np.abs(out.get() - exact) <= wide).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_activation_does_not_write_its_input(dtype: str) -> None:
    for name in ACTIVATIONS:
        x = cuda.on_device(numbers((7, 9), dtype))
        before = x.get()
        cuda.activate(name, x, Pool(cupy))
        np.testing.assert_array_equal(x.get(), before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(65, 33), (130, 17), (5, 4, 3, 9), (700, 8)])
@pytest.mark.parametrize("momentum", [0.0, 0.1])
def test_statistics_of_a_batch(momentum: float, shape: tuple[int, ...], dtype: str) -> None:
    x, wide = numbers(shape, dtype) + np.asarray(50, dtype), np.float64
    running = [numbers(shape[-1:], dtype, 1), np.abs(numbers(shape[-1:], dtype, 2))]
    here = [array.astype(wide) for array in running]
    there = tuple(map(cuda.on_device, running))
    expected = plain.batch_statistics(x.astype(wide), tuple(here), momentum, 1e-5, Pool())
    found = cuda.batch_statistics(cuda.on_device(x), there, momentum, 1e-5, Pool(cupy))
    for one, other in zip((*found, *there), (*expected, *here), strict=True):
        np.testing.assert_allclose(one.get(), other, rtol=16 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_known_statistics(dtype: str) -> None:
    mean, variance = numbers((9,), dtype), np.abs(numbers((9,), dtype, 1))
    expected = plain.known_statistics((mean, variance), 1e-5, np.dtype(dtype), None)
    there = cuda.on_device(mean), cuda.on_device(variance)
    found = cuda.known_statistics(there, 1e-5, np.dtype(dtype), Pool(cupy))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.get(), other, rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_right_predictions(shape: tuple[int, int], dtype: str) -> None:
    y = np.round(numbers(shape, dtype), 1)
    for target in (np.random.default_rng(0).integers(0, shape[1], shape[0]), np.round(numbers(shape, dtype, 4), 1)):
        found = cuda.correct(cuda.on_device(y), cuda.on_device(target))
        assert int(found) == int(plain.correct(y, target))


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping_on_the_device_is_that_of_the_host(dtype: str) -> None:
    vector = numbers((9000,), dtype)
    spans = [slice(0, 10), slice(10, 5000), slice(5000, 9000)]
    sums = cuda.squares_of(cuda.on_device(vector), spans)
    known = plain.squares_of(vector.astype(np.float64), spans)
    np.testing.assert_allclose(sums.get(), known, rtol=1e-6 if dtype == "float32" else 1e-14)
    for limit in (1e-3, 1e9):
        expected = plain.shortened(0.5, sums.get().tolist(), limit)
        np.testing.assert_allclose(float(cuda.shortened(0.5, sums, limit)), expected, rtol=1e-14)
        assert cuda.shortened(0.5, sums.get().tolist(), limit) == expected
    bad = sums * np.inf
    assert float(cuda.shortened(0.5, bad, 1.0)) == 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_is_shortened_by_a_number_on_the_device(dtype: str) -> None:
    weights, grads = (cuda.on_device(numbers((70,), dtype, seed)) for seed in (0, 1))
    pieces, other = cuda.prepared(Segments.of([(0, 70, 0.0, 1.0)])), weights.copy()
    cuda.sgd(weights, grads, None, pieces, cuda.on_device(np.array(0.25)), 0.1, 0.0, False, Pool(cupy))
    cuda.sgd(other, grads, None, pieces, 0.25, 0.1, 0.0, False, Pool(cupy))
    np.testing.assert_array_equal(weights.get(), other.get())


def test_a_class_that_is_not_there_makes_the_loss_nan() -> None:
    logits = cuda.on_device(np.zeros((3, 4), np.float32))
    for kernel in (
        lambda t: cuda.cross_entropy(logits, t, 0.0, Pool(cupy)),
        lambda t: cuda.squared_error(logits, t, Pool(cupy)),
    ):
        assert np.isfinite(float(kernel(cuda.on_device(np.array([0, 3, 1])))[0]))
        for wrong in (-1, 4):
            assert np.isnan(float(kernel(cuda.on_device(np.array([0, wrong, 1])))[0]))


def test_a_mask_is_drawn_from_numbers_on_the_device() -> None:
    first, second = cupy.empty((5, 7), bool), cupy.empty((5, 7), bool)
    words = cupy.empty(4, np.uint32)
    cuda.set_words(words, (11, 2**32 - 3, 6, 2))
    cuda.dropout_mask(first, 0.4, words, (0, 0), Pool(cupy))
    cuda.dropout_mask(second, 0.4, (11, 2**32 - 3), (6, 2), Pool(cupy))
    np.testing.assert_array_equal(first.get(), second.get())


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_padding_stays_zero(name: str) -> None:
    for given in CASES[name]("float32", False):
        for vector in given[:4]:
            if isinstance(vector, np.ndarray):
                vector[len(vector) // 2 :] = 0
        after = on_device(name, given)[0]
        assert not after[len(after) // 2 :].any()


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_what_learns_no_more_stays_whatever_its_gradient(name: str) -> None:
    for kernels, put in ((plain, lambda x: x), (cuda, cuda.on_device)):
        weights, *slots = (put(numbers((9,), "float32", seed)) for seed in range(3 if name == "adam" else 2))
        grads = put(np.array([1, np.inf, np.nan, 1e30, 1, 1, 1, 1, 1], np.float32))
        before = [cuda.on_host(array).copy() for array in (weights, *slots)]
        pieces = kernels.prepared(Segments.of([(0, 5, 0.1, 0.0), (5, 9, 0.1, 1.0)]))
        rest = (0.1, (0.9, 0.99), 1e-8, 1, False) if name == "adam" else (0.1, 0.9, False)
        slots[-1][...] = abs(slots[-1])
        before[-1] = abs(before[-1])
        getattr(kernels, name)(weights, grads, *slots, pieces, 1.0, *rest, Pool(kernels.LIBRARY))
        for array, was in zip((weights, *slots), before, strict=True):
            now = cuda.on_host(array)
            np.testing.assert_array_equal(now[:5], was[:5])
            assert (now[5:] != was[5:]).all()


def test_columns_that_are_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpinn.array.cuda_kernels.TILES", 2)
    assert cuda.column_sums(cupy.ones((3, 64), np.float32)).get().tolist() == 64 * [3]
    with pytest.raises(OverflowError, match="333 columns"):
        cuda.column_sums(cupy.ones((3, 333), np.float32))


def test_images_that_are_too_many_to_be_pooled_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpinn.array.cuda.POOLED", 2 * 4 * 4 * 3 + 1)
    windows, pool = ((2, 2), (2, 2), (0, 0)), Pool(cupy)
    few, many = (cupy.ones((count, 4, 4, 3), np.float32) for count in (2, 3))
    y, places = cuda.max_pool(few, *windows, pool)
    for refused in (
        lambda: cuda.max_pool(many, *windows, pool),
        lambda: cuda.average_pool(many, *windows, pool),
        lambda: cuda.max_pool_backward(places, y, (8, 8, 3), *windows, pool),
        lambda: cuda.average_pool_backward(y, (8, 8, 3), *windows, pool),
        lambda: cuda.channel_means_backward(cupy.ones((3, 3), np.float32), (4, 4, 3), pool),
    ):
        with pytest.raises(OverflowError, match="fewer than 97 numbers"):
            refused()


def test_an_array_for_a_plan_begins_where_it_is_expected() -> None:
    whole = cuda.on_device(numbers((4, 3, 3, 1), "float32"))
    assert placed(whole, Pool(cupy)) is whole
    part = whole[1:3]
    copy = placed(part, Pool(cupy))
    assert address(part) % 16
    assert address(copy) % 16 == 0
    np.testing.assert_array_equal(copy.get(), part.get())


def test_equal_calls_give_equal_bits() -> None:
    for name in ("column_sums", "cross_entropy", "sum_of_squares"):
        for given in cases(name, "float32", False):
            for one, other in zip(on_device(name, given), on_device(name, given), strict=True):
                np.testing.assert_array_equal(one, other)


def test_steps_know_all_segments() -> None:
    assert steps.BLOCK < cuda.STEP
    pieces = cuda.prepared(Segments.of([(3, 5, 0.5, 1.0), (8, 9, 0.0, 2.0)]))
    weights, grads = cupy.ones(10, np.float64), cupy.ones(10, np.float64)
    cuda.sgd(weights, grads, None, pieces, 1.0, 0.1, 0.0, False, Pool(cupy))
    np.testing.assert_allclose(weights.get(), [1, 1, 1, 0.85, 0.85, 1, 1, 1, 0.8, 1])
