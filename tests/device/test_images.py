"""The device's kernels for images beside their plain twins, computed in a wider type."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cupy
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "array"))

from test_cpu_images import CONVOLUTIONS, DTYPES, ERROR, NORMED, POOLED, close, noise, wide

from mpinn.array import cuda, cuda_conv
from mpinn.array import ops as plain
from mpinn.array.pool import Pool


def there(*arrays: np.ndarray) -> list[Any]:
    return [cuda.on_device(array) for array in arrays]


def pool() -> Pool:
    return Pool(cupy)


def work(shape: Any, outputs: int, size: int, *rest: Any) -> int:
    return int(np.prod(shape)) * outputs * size**2


MOST = 10**5 if hasattr(cupy, "EMULATED") else 10**12
"""Multiplications: without a device they take seconds."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "outputs", "size", "stride", "padding"), [given for given in CONVOLUTIONS if work(*given) <= MOST]
)
def test_convolution(shape: Any, outputs: int, size: int, stride: Any, padding: Any, dtype: str) -> None:
    x, weight = noise(shape, dtype), noise((size, size, shape[3], outputs), dtype, 1)
    exact = plain.conv(*wide(x, weight), stride, padding, Pool())
    y = cuda.conv(*there(x, weight), stride, padding, pool())
    close(y.get(), exact, dtype)
    dz = noise(y.shape, dtype, 2)
    exact = plain.conv_backward_input(*wide(dz, weight), shape[1:], stride, padding, Pool())
    close(cuda.conv_backward_input(*there(dz, weight), shape[1:], stride, padding, pool()).get(), exact, dtype)
    (exact,), grad = wide(np.zeros(weight.shape, dtype)), cupy.full(weight.shape, np.nan, dtype)
    plain.conv_backward_weight(*wide(x, dz), exact, stride, padding, Pool())
    cuda.conv_backward_weight(*there(x, dz), grad, stride, padding, pool())
    close(grad.get(), exact, dtype, 2 * ERROR)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["identity", "relu", "mish"])
@pytest.mark.parametrize("of_batch", [True, False])
@pytest.mark.parametrize("shape", NORMED)
def test_batch_norm(shape: Any, of_batch: bool, activation: str, dtype: str) -> None:
    x, dy = noise(shape, dtype), noise(shape, dtype, 1)
    mean, inverse, scale, shift = (noise(shape[-1:], dtype, seed) for seed in range(2, 6))
    exact = plain.batch_norm(*wide(x, mean, inverse, scale, shift), activation, Pool())
    y, kept = cuda.batch_norm(*there(x, mean, inverse, scale, shift), activation, pool())
    close(y.get(), exact[0], dtype)
    kept_there = wide(kept.get())[0]
    exact = plain.batch_norm_backward(
        *wide(x, mean, inverse, scale), activation, kept_there, *wide(dy), of_batch, Pool()
    )
    found = cuda.batch_norm_backward(
        *there(x, mean, inverse, scale), activation, kept, *there(dy), of_batch, pool()
    )  # fmt: skip
    for one, other in zip(found, exact, strict=True):
        close(one.get(), other, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", NORMED)
def test_layer_norm(shape: Any, dtype: str) -> None:
    x, dy = noise(shape, dtype) + np.asarray(3, dtype), noise(shape, dtype, 1)
    scale, shift = (noise(shape[-1:], dtype, seed) for seed in (2, 3))
    exact = plain.layer_norm(*wide(x, scale, shift), 1e-5, Pool())
    found = cuda.layer_norm(*there(x, scale, shift), 1e-5, pool())
    for one, other in zip(found, exact, strict=True):
        close(one.get(), other, dtype)
    exact = plain.layer_norm_backward(*wide(x, *(one.get() for one in found[1:]), scale, dy), Pool())
    there_found = cuda.layer_norm_backward(cuda.on_device(x), *found[1:], *there(scale, dy), pool())
    for one, other in zip(there_found, exact, strict=True):
        close(one.get(), other, dtype)


def test_norms_pass_nan_on() -> None:
    x, one = noise((3, 8), "float32").copy(), np.ones(8, np.float32)
    x[1, 2] = np.nan
    rows = np.isnan(cuda.layer_norm(*there(x, one, one), 1e-5, pool())[0].get()).all(axis=1)
    assert rows.tolist() == [False, True, False]
    found = cuda.batch_norm(*there(np.full((3, 8), np.nan, np.float32), one, one, one, one), "relu", pool())[0]
    assert np.isnan(found.get()).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(("shape", "size", "stride", "padding"), POOLED)
def test_max_pool(shape: Any, size: Any, stride: Any, padding: Any, special: bool, dtype: str) -> None:
    x = np.round(noise(shape, dtype), 1)
    if special and x.size:
        x[0, 1, 1], x[0, -1, 0], x[-1, -1, -1] = np.nan, np.inf, -np.inf
    expected = plain.max_pool(x, size, stride, padding, Pool())
    found = cuda.max_pool(cuda.on_device(x), size, stride, padding, pool())
    np.testing.assert_array_equal(found[0].get(), expected[0])
    known = ~np.isnan(expected[0])
    np.testing.assert_array_equal(found[1].get()[known], expected[1][known])
    dy = noise(expected[0].shape, dtype, 1)
    exact = plain.max_pool_backward(expected[1], dy, shape[1:], size, stride, padding, Pool())
    there_found = cuda.max_pool_backward(*there(expected[1], dy), shape[1:], size, stride, padding, pool())
    np.testing.assert_allclose(there_found.get(), exact, rtol=4 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "size", "stride", "padding"), POOLED)
def test_means(shape: Any, size: Any, stride: Any, padding: Any, dtype: str) -> None:
    x = noise(shape, dtype)
    exact = plain.average_pool(*wide(x), size, stride, padding, Pool())
    y = cuda.average_pool(cuda.on_device(x), size, stride, padding, pool())
    close(y.get(), exact, dtype)
    dy = noise(y.shape, dtype, 1)
    exact = plain.average_pool_backward(*wide(dy), shape[1:], size, stride, padding, Pool())
    close(cuda.average_pool_backward(*there(dy), shape[1:], size, stride, padding, pool()).get(), exact, dtype)
    close(cuda.channel_means(*there(x), pool()).get(), plain.channel_means(*wide(x), Pool()), dtype)
    dy = noise((shape[0], shape[3]), dtype, 2)
    exact = plain.channel_means_backward(*wide(dy), shape[1:], Pool())
    close(cuda.channel_means_backward(*there(dy), shape[1:], pool()).get(), exact, dtype)


def test_graphs_without_cudnn_itself_are_no_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-cudnn-frontend can be imported, and fails only when it is asked for something."""

    def version() -> int:
        raise RuntimeError("Unable to find symbol cudnnGetVersion")

    monkeypatch.setitem(sys.modules, "cudnn", SimpleNamespace(backend_version=version))
    assert cuda_conv.frontend.__wrapped__() is None
    monkeypatch.setitem(sys.modules, "cudnn", SimpleNamespace(backend_version=lambda: 91900))
    assert cuda_conv.frontend.__wrapped__() is sys.modules["cudnn"]
