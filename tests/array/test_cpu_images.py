"""The compiled kernels for images beside their plain twins, computed in float64."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from mpinn.array import cpu
from mpinn.array import cpu_direct as direct
from mpinn.array import ops as plain
from mpinn.array.cpu_conv import _suits_direct, _suits_winograd
from mpinn.array.pool import Pool

DTYPES = ["float32", "float64"]
ERROR = 16
"""Largest distance in units of the last place, as a share of the norm: what Winograd's algorithm loses."""
WINOGRAD = [
    ((2, 8, 8, 16), 16, 3, (1, 1), (1, 1)),
    ((1, 9, 7, 16), 32, 3, (1, 1), (1, 1)),
    ((3, 15, 18, 32), 16, 3, (1, 1), (1, 1)),
    ((5, 32, 32, 16), 16, 3, (1, 1), (1, 1)),
    ((2, 11, 10, 16), 16, 3, (1, 1), (0, 0)),
    ((2, 9, 9, 16), 48, 3, (1, 1), (2, 2)),
    ((1, 13, 8, 16), 16, 3, (1, 1), (2, 0)),
    ((70, 4, 4, 80), 96, 3, (1, 1), (1, 1)),
    ((9, 8, 8, 80), 80, 3, (1, 1), (1, 1)),
    ((1, 6, 5, 64), 64, 5, (1, 1), (2, 2)),
    ((3, 14, 14, 32), 16, 5, (1, 1), (2, 2)),
    ((2, 9, 12, 16), 32, 5, (1, 1), (0, 1)),
    ((2, 7, 6, 16), 16, 5, (1, 1), (4, 3)),
    ((19, 7, 7, 80), 96, 5, (1, 1), (2, 2)),
]
COLUMNS = [
    ((2, 8, 8, 1), 5, 3, (1, 1), (1, 1)),
    ((2, 9, 8, 16), 33, 3, (2, 2), (1, 1)),
    ((2, 2, 2, 16), 16, 3, (1, 1), (1, 1)),
    ((3, 2, 2, 64), 65, 3, (1, 1), (1, 1)),
    ((5, 1, 3, 66), 64, 3, (2, 1), (1, 2)),
    ((1, 1, 1, 64), 64, 5, (1, 1), (3, 2)),
    ((2, 9, 9, 80), 80, 3, (2, 2), (1, 1)),
]
DIRECT = [
    ((1, 7, 9, 3), 16, 3, (1, 1), (1, 1)),
    ((2, 6, 6, 33), 16, 1, (2, 1), (0, 0)),
    ((0, 8, 8, 16), 16, 3, (1, 1), (1, 1)),
    ((2, 8, 8, 1), 16, 5, (1, 1), (2, 2)),
    ((3, 9, 8, 16), 32, 3, (2, 2), (1, 1)),
    ((2, 8, 11, 32), 16, 1, (2, 2), (0, 0)),
    ((1, 10, 9, 17), 48, 3, (3, 2), (0, 2)),
    ((2, 12, 12, 16), 16, 2, (3, 3), (0, 0)),
    ((2, 7, 7, 16), 16, 5, (2, 1), (4, 3)),
    ((2, 9, 7, 64), 64, 5, (1, 2), (2, 2)),
]
"""Phases of strides that see other places, or none; numbers that a block of pixels or of terms does not divide."""
CONVOLUTIONS = WINOGRAD + DIRECT + COLUMNS
NORMED = [(0, 8), (1, 16), (7, 8), (65, 24), (2, 5, 3, 16), (3, 33), (130, 5), (4, 9, 9, 32)]
POOLED = [
    ((2, 8, 8, 16), (2, 2), (2, 2), (0, 0)),
    ((1, 7, 9, 5), (2, 2), (2, 2), (0, 0)),
    ((2, 9, 9, 33), (3, 3), (2, 2), (1, 1)),
    ((1, 5, 6, 1), (2, 3), (1, 2), (0, 1)),
    ((0, 4, 4, 3), (2, 2), (2, 2), (0, 0)),
]


def noise(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    array = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)
    array.setflags(write=False)
    return array


def wide(*arrays: np.ndarray) -> list[np.ndarray]:
    return [array.astype(np.longdouble if array.dtype == np.float64 else np.float64) for array in arrays]


def close(found: np.ndarray, exact: np.ndarray, dtype: str, error: float = ERROR) -> None:
    assert found.dtype == dtype
    assert found.shape == exact.shape
    assert np.linalg.norm((found - exact).astype(float)) <= error * np.finfo(dtype).eps * np.linalg.norm(
        exact.astype(float)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "outputs", "size", "stride", "padding"), CONVOLUTIONS)
def test_convolution(shape: Any, outputs: int, size: int, stride: Any, padding: Any, dtype: str) -> None:
    x, weight = noise(shape, dtype), noise((size, size, shape[3], outputs), dtype, 1)
    exact = plain.conv(*wide(x, weight), stride, padding, Pool())
    y = cpu.conv(x, weight, stride, padding, Pool())
    close(y, exact, dtype)
    dz = noise(y.shape, dtype, 2)
    exact = plain.conv_backward_input(*wide(dz, weight), shape[1:], stride, padding, Pool())
    close(cpu.conv_backward_input(dz, weight, shape[1:], stride, padding, Pool()), exact, dtype)
    grad, (exact,) = np.full(weight.shape, np.nan, dtype), wide(np.zeros(weight.shape, dtype))
    plain.conv_backward_weight(*wide(x, dz), exact, stride, padding, Pool())
    cpu.conv_backward_weight(x, dz, grad, stride, padding, Pool())
    close(grad, exact, dtype, 2 * ERROR)


@pytest.mark.parametrize(("shape", "outputs", "size", "stride", "padding"), DIRECT)
def test_direct_gradients(shape: Any, outputs: int, size: int, stride: Any, padding: Any) -> None:
    """Also those that other ways have from so many channels on."""
    x, weight = noise(shape, "float32"), noise((size, size, shape[3], outputs), "float32", 1)
    dz = noise(direct.conv(x, weight, stride, padding, Pool()).shape, "float32", 2)
    grad, (exact,) = np.full(weight.shape, np.nan, "float32"), wide(np.zeros(weight.shape, "float32"))
    plain.conv_backward_weight(*wide(x, dz), exact, stride, padding, Pool())
    direct.conv_backward_weight(x, dz, grad, stride, padding, Pool())
    close(grad, exact, "float32")
    if shape[3] % 16 == 0 and direct.suits_backward(dz, shape[1:], weight.shape, stride):
        exact = plain.conv_backward_input(*wide(dz, weight), shape[1:], stride, padding, Pool())
        close(direct.conv_backward_input(dz, weight, shape[1:], stride, padding, Pool()), exact, "float32")


def test_the_shapes_above_reach_all_ways_to_convolve() -> None:
    found = []
    for shape, outputs, size, stride, padding in CONVOLUTIONS:
        x, weight = noise(shape, "float32"), (size, size, shape[3], outputs)
        winograd = _suits_winograd(shape, weight, stride, padding)
        found.append("winograd" if winograd else "direct" if _suits_direct(x, weight, stride, padding) else "columns")
    assert found == ["winograd"] * len(WINOGRAD) + ["direct"] * len(DIRECT) + ["columns"] * len(COLUMNS)


def test_a_forward_pass_of_few_channels_rounds_no_more_than_columns_do() -> None:
    x, weight = noise((4, 32, 32, 16), "float32"), noise((3, 3, 16, 16), "float32")
    exact = plain.conv(*wide(x, weight), (1, 1), (1, 1), Pool())
    own, twin = (np.linalg.norm(ops.conv(x, weight, (1, 1), (1, 1), Pool()) - exact) for ops in (cpu, plain))
    assert own <= twin


@pytest.mark.parametrize("channels", [16, 80])
def test_a_convolution_loses_no_nan(channels: int) -> None:
    x, weight = noise((3, 12, 12, channels), "float32").copy(), noise((3, 3, channels, channels), "float32")
    x[1, 5, 6, 7] = np.nan
    expected, found = (ops.conv(x, weight, (1, 1), (1, 1), Pool()) for ops in (plain, cpu))
    assert np.isnan(expected).any()
    assert np.isnan(found[np.isnan(expected)]).all()
    assert np.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", NORMED)
def test_moments(shape: Any, dtype: str) -> None:
    x = noise(shape, dtype) + np.asarray(100, dtype)
    mean, variance = cpu.column_moments(x, Pool())
    rows = wide(x)[0].reshape(-1, shape[-1])
    assert mean.dtype == variance.dtype == np.float64
    if len(rows):
        np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=np.finfo(dtype).eps)
        np.testing.assert_allclose(variance, rows.var(axis=0), rtol=8 * np.finfo(dtype).eps, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", NORMED)
@pytest.mark.parametrize("momentum", [0.0, 0.1])
def test_statistics(momentum: float, shape: Any, dtype: str) -> None:
    """The twin and the plain kernel have but the moments of their own."""
    x, start = noise(shape, dtype) + np.asarray(100, dtype), [noise(shape[-1:], dtype, 1), np.ones(shape[-1:], dtype)]
    runs = [tuple(array.copy() for array in start) for _ in range(2)]
    found, expected = (
        ops.batch_statistics(x, run, momentum, 1e-5, Pool()) for ops, run in zip((cpu, plain), runs, strict=True)
    )
    for one, other in zip((*found, *runs[0]), (*expected, *runs[1]), strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=64 * np.finfo(dtype).eps)
    assert x.size == 0 or (not np.array_equal(runs[0][0], start[0])) == bool(momentum)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["identity", "relu", "mish"])
@pytest.mark.parametrize("of_batch", [True, False])
@pytest.mark.parametrize("shape", NORMED)
def test_batch_norm(shape: Any, of_batch: bool, activation: str, dtype: str) -> None:
    x, dy = noise(shape, dtype), noise(shape, dtype, 1)
    mean, inverse, scale, shift = (noise(shape[-1:], dtype, seed) for seed in range(2, 6))
    exact = plain.batch_norm(*wide(x, mean, inverse, scale, shift), activation, Pool())
    y, kept = cpu.batch_norm(x, mean, inverse, scale, shift, activation, Pool())
    close(y, exact[0], dtype)
    kept_there = wide(kept)[0]
    exact = plain.batch_norm_backward(
        *wide(x, mean, inverse, scale), activation, kept_there, *wide(dy), of_batch, Pool()
    )
    dx, dscale, dshift = cpu.batch_norm_backward(
        x, mean, inverse, scale, activation, kept, dy, of_batch, Pool()
    )  # fmt: skip
    close(dx, exact[0], dtype)
    close(dscale.astype(dtype), exact[1], dtype)
    close(dshift.astype(dtype), exact[2], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", NORMED)
def test_layer_norm(shape: Any, dtype: str) -> None:
    x, dy = noise(shape, dtype) + np.asarray(3, dtype), noise(shape, dtype, 1)
    scale, shift = (noise(shape[-1:], dtype, seed) for seed in (2, 3))
    exact = plain.layer_norm(*wide(x, scale, shift), 1e-5, Pool())
    found = cpu.layer_norm(x, scale, shift, 1e-5, Pool())
    for one, other in zip(found, exact, strict=True):
        close(one, other, dtype)
    exact = plain.layer_norm_backward(*wide(x, *found[1:], scale, dy), Pool())
    dx, dscale, dshift = cpu.layer_norm_backward(x, *found[1:], scale, dy, Pool())
    assert dscale.dtype == dshift.dtype == np.float64
    for one, other in zip((dx, dscale.astype(dtype), dshift.astype(dtype)), exact, strict=True):
        close(one, other, dtype)


def test_layer_norm_passes_nan_on_within_its_row() -> None:
    x, one = noise((3, 8), "float32").copy(), np.ones(8, np.float32)
    x[1, 2] = np.nan
    assert (np.isnan(cpu.layer_norm(x, one, one, 1e-5, Pool())[0]).all(axis=1) == [False, True, False]).all()


def test_rectified_batch_norm_passes_nan_on() -> None:
    x, one = np.full((3, 8), np.nan, np.float32), np.ones(8, np.float32)
    assert np.isnan(cpu.batch_norm(x, one, one, one, one, "relu", Pool())[0]).all()
    assert np.isnan(cpu.column_moments(x, Pool())).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(("shape", "size", "stride", "padding"), POOLED)
def test_max_pool(shape: Any, size: Any, stride: Any, padding: Any, special: bool, dtype: str) -> None:
    x = np.round(noise(shape, dtype), 1)
    if special and x.size:
        x[0, 1, 1], x[0, -1, 0], x[-1, -1, -1] = np.nan, np.inf, -np.inf
    expected, found = (ops.max_pool(x, size, stride, padding, Pool()) for ops in (plain, cpu))
    np.testing.assert_array_equal(found[0], expected[0])
    known = ~np.isnan(expected[0])
    np.testing.assert_array_equal(found[1][known], expected[1][known])
    dy = noise(expected[0].shape, dtype, 1)
    expected, found = (
        ops.max_pool_backward(expected[1], dy, shape[1:], size, stride, padding, Pool()) for ops in (plain, cpu)
    )
    np.testing.assert_allclose(found, expected, rtol=4 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps)


def test_nothing_large_is_allocated_twice() -> None:
    x, dy, weight = (
        noise((16, 16, 16, 32), "float32"),
        noise((16, 16, 16, 32), "float32"),
        noise((3, 3, 32, 32), "float32"),
    )
    grad, one, pool = np.empty_like(weight), np.ones(32, np.float32), Pool()

    def step() -> None:
        cpu.conv(x, weight, (1, 1), (1, 1), pool)
        cpu.conv_backward_input(dy, weight, x.shape[1:], (1, 1), (1, 1), pool)
        cpu.conv_backward_weight(x, dy, grad, (1, 1), (1, 1), pool)
        y, kept = cpu.batch_norm(x, one, one, one, one, "relu", pool)
        cpu.batch_norm_backward(x, one, one, one, "relu", kept, dy, True, pool)
        cpu.max_pool(y, (2, 2), (2, 2), (0, 0), pool)

    step()
    held = pool.nbytes
    tracemalloc.start()
    step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pool.nbytes == held
    assert peak < 1 << 16
