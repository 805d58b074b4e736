"""With activations in bfloat16: kernels give what those for float32 do, rounded once; steps have float32 weights."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cupy
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "array"))

from test_cpu_images import CONVOLUTIONS, NORMED, POOLED, noise
from test_images import MOST, work

from mpinn.array import cuda
from mpinn.array.activations import ACTIVATIONS
from mpinn.array.pool import Pool
from mpinn.array.precision import bfloat16
from mpinn.models.mlp import MLP
from mpinn.nn.layer import Pass
from mpinn.nn.loss import CrossEntropy, SquaredError
from mpinn.partition.profile import estimate, measure
from mpinn.training.choices import build_model, read_config

BFLOAT16, SINGLE = bfloat16(), np.dtype(np.float32)
STEP = 2.0**-8
"""What rounding to bfloat16 changes at most, as a share."""
SPECIAL = [0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 1e-40, 3.4e38, -3.39e38, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1.00390624]


def short(shape: Any, seed: int = 0) -> Any:
    """On the device, in bfloat16."""
    return cuda.on_device(noise(shape, "float32", seed).astype(BFLOAT16))


def long(shape: Any, seed: int = 0) -> Any:
    """On the device, in float32."""
    return cuda.on_device(noise(shape, "float32", seed).copy())


def of(name: str, *given: Any) -> list[np.ndarray]:
    """What a kernel gives, on the host."""
    found = getattr(cuda, name)(*(copied(item) for item in given), Pool(cupy))
    return [cuda.on_host(array) for array in (found if isinstance(found, tuple) else (found,))]


def copied(item: Any) -> Any:
    return item.copy() if isinstance(item, cupy.ndarray) else item


def widened(item: Any) -> Any:
    return item.astype(np.float32) if isinstance(item, cupy.ndarray) and item.dtype == BFLOAT16 else item


def rounded_once(name: str, *given: Any) -> None:
    """Fails unless activations are those of float32, rounded, bit for bit, and all else is in float32 and near it."""
    found, wide = of(name, *given), of(name, *map(widened, given))
    for one, other in zip(found, wide, strict=True):
        if one.dtype == BFLOAT16:
            np.testing.assert_array_equal(one.view(np.uint16), other.astype(BFLOAT16).view(np.uint16))
        else:
            # sums of float32 numbers in another order
            assert one.dtype == other.dtype
            scale = np.abs(other).max(initial=0) if other.dtype.kind == "f" else 0
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * scale)


def near(found: Any, exact: np.ndarray, dtype: Any, steps: float) -> None:
    """By the norm; products add up in float32, of factors that were rounded."""
    assert found.dtype == dtype
    apart = np.linalg.norm(found.get().astype(np.float64) - exact)
    assert apart <= steps * STEP * np.linalg.norm(exact)


def test_numbers_are_rounded_as_the_library_of_the_host_does() -> None:
    x = np.array([*SPECIAL, *noise((997,), "float32")], np.float32)
    weight = cuda.on_device(x.reshape(1, 1, 1, -1))
    turned = cupy.empty(x.size, BFLOAT16)
    cuda.cuda_conv.transposed(weight, 1, turned)
    known = x.astype(BFLOAT16)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(turned.get().view(np.uint16)[number], known.view(np.uint16)[number])
    assert np.isnan(turned.get().astype(np.float32)[~number]).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(5, 7), (4, 16), (3, 3, 2, 8)])
def test_activations(shape: Any, name: str) -> None:
    rounded_once("bias_activation", short(shape), long(shape[-1:]), name)
    rounded_once("bias_activation", short(shape), None, name)
    rounded_once("activate", name, short(shape))
    rounded_once("activation_backward", name, short(shape), short(shape, 1))


@pytest.mark.parametrize("shape", [(5, 7), (4, 16)])
def test_elementwise(shape: Any) -> None:
    rounded_once("add", short(shape), short(shape, 1))
    rounded_once("dropout", short(shape), cuda.on_device(noise(shape, "float32", 2) > 0), 0.3)


@pytest.mark.parametrize("activation", ["identity", "relu", "mish"])
@pytest.mark.parametrize("of_batch", [True, False])
@pytest.mark.parametrize("shape", [*NORMED, (40, 1000)])
def test_batch_norm(shape: Any, of_batch: bool, activation: str) -> None:
    mean, inverse, scale, shift = (long(shape[-1:], seed) for seed in range(2, 6))
    rounded_once("batch_norm", short(shape), mean, inverse, scale, shift, activation)
    given = (short(shape), mean, inverse, scale, activation, short(shape, 6), short(shape, 1), of_batch)
    found, wide = of("batch_norm_backward", *given), of("batch_norm_backward", *map(widened, given))
    assert [array.dtype for array in found] == [BFLOAT16, SINGLE, SINGLE]
    # the sums differ in the last digits, and so may what is rounded
    for one, other in zip(found, wide, strict=True):
        largest = np.abs(other).max(initial=0)
        np.testing.assert_allclose(one.astype(np.float32), other, rtol=1.01 * STEP, atol=1e-6 * largest)


@pytest.mark.parametrize("shape", [*NORMED[1:], (40, 1000)])
def test_statistics(shape: Any) -> None:
    x, running = short(shape), [long(shape[-1:], seed) for seed in (1, 2)]
    other = [array.copy() for array in running]
    found = cuda.batch_statistics(x, (running[0], running[1]), 0.1, 1e-5, Pool(cupy))
    wide = cuda.batch_statistics(widened(x), (other[0], other[1]), 0.1, 1e-5, Pool(cupy))
    for one, there in zip((*found, *running), (*wide, *other), strict=True):
        assert one.dtype == SINGLE
        np.testing.assert_allclose(one.get(), there.get(), rtol=1e-5, atol=1e-6)
    assert cuda.known_statistics((running[0], abs(running[1])), 1e-5, BFLOAT16, Pool(cupy))[1].dtype == SINGLE
    sums = cuda.column_sums(x)
    assert sums.dtype == SINGLE
    np.testing.assert_allclose(sums.get(), cuda.column_sums(widened(x)).get(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", NORMED)
def test_layer_norm(shape: Any) -> None:
    scale, shift = long(shape[-1:], 2), long(shape[-1:], 3)
    rounded_once("layer_norm", short(shape), scale, shift, 1e-5)
    _, mean, inverse = cuda.layer_norm(short(shape), scale, shift, 1e-5, Pool(cupy))
    rounded_once("layer_norm_backward", short(shape), mean, inverse, scale, short(shape, 1))


@pytest.mark.parametrize(("shape", "size", "stride", "padding"), [*POOLED, ((2, 8, 8, 24), (2, 2), (2, 2), (0, 0))])
def test_pooling(shape: Any, size: Any, stride: Any, padding: Any) -> None:
    rounded_once("max_pool", short(shape), size, stride, padding)
    y, place = cuda.max_pool(short(shape), size, stride, padding, Pool(cupy))
    rounded_once("max_pool_backward", place, short(y.shape, 1), shape[1:], size, stride, padding)
    rounded_once("average_pool", short(shape), size, stride, padding)
    rounded_once("average_pool_backward", short(y.shape, 1), shape[1:], size, stride, padding)
    rounded_once("channel_means", short(shape))
    rounded_once("channel_means_backward", short((shape[0], shape[3]), 1), shape[1:])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(5, 10), (3, 1), (70, 300)])
def test_losses(shape: Any, smoothing: float) -> None:
    target = cuda.on_device(np.random.default_rng(0).integers(0, shape[1], shape[0]))
    rounded_once("cross_entropy", short(shape), target, smoothing)
    rounded_once("squared_error", short(shape), target)
    rounded_once("squared_error", short(shape), long(shape, 4))
    assert int(cuda.correct(short(shape), target)) == int(cuda.correct(widened(short(shape)), target))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 1, 7), (33, 65, 17), (128, 784, 512), (2, 0, 3)])
def test_products(sizes: tuple[int, int, int]) -> None:
    rows, inner, columns = sizes
    x, weight, dz = short((rows, inner)), long((inner, columns), 1), short((rows, columns), 2)
    z, dx, grad = cupy.empty(dz.shape, BFLOAT16), cupy.empty(x.shape, BFLOAT16), cupy.empty(weight.shape, np.float32)
    cuda.matmul(x, weight, z)
    cuda.matmul(dz, weight.T, dx)
    cuda.matmul(x.T, dz, grad)
    x, weight, dz = (array.get().astype(np.float64) for array in (x, weight, dz))
    # a weight is rounded, and what comes out; activations are not
    for found, left, right, roundings in ((z, x, weight, 1), (dx, dz, weight.T, 1), (grad, x.T, dz, 0)):
        terms = np.abs(left) @ np.abs(right)
        bound = roundings * STEP * (terms + np.abs(left @ right)) + (inner + rows) * np.finfo(np.float32).eps * terms
        assert (np.abs(found.get().astype(np.float64) - left @ right) <= 1.01 * bound).all()
    assert (z.dtype, dx.dtype, grad.dtype) == (BFLOAT16, BFLOAT16, SINGLE)


@pytest.mark.parametrize(
    ("shape", "outputs", "size", "stride", "padding"), [given for given in CONVOLUTIONS if work(*given) <= MOST]
)
def test_convolutions(shape: Any, outputs: int, size: int, stride: Any, padding: Any) -> None:
    x, weight = short(shape), long((size, size, shape[3], outputs), 1)
    y = cuda.conv(x, weight, stride, padding, Pool(cupy))
    dz, grad = short(y.shape, 2), cupy.full(weight.shape, np.nan, np.float32)
    dx = cuda.conv_backward_input(dz, weight, shape[1:], stride, padding, Pool(cupy))
    cuda.conv_backward_weight(x, dz, grad, stride, padding, Pool(cupy))
    exact = [array.astype(np.float64) for array in (x, weight, dz)]
    z = cuda.conv(exact[0], exact[1], stride, padding, Pool(cupy)).get()
    near(y, z, BFLOAT16, 1)
    back = cuda.conv_backward_input(exact[2], exact[1], shape[1:], stride, padding, Pool(cupy)).get()
    near(dx, back, BFLOAT16, 1)
    known = cupy.empty(weight.shape, np.float64)
    cuda.conv_backward_weight(exact[0], exact[2], known, stride, padding, Pool(cupy))
    near(grad, known.get(), SINGLE, 1)


def test_targets_that_are_drawn_are_as_wide_as_others() -> None:
    """Consensuses that measure with labels of the model's own distribution draw them from what it says."""
    y, rng = short((40, 3)), np.random.default_rng(0)
    target = SquaredError().draw(cuda.on_host(y), rng)
    assert target.dtype == SINGLE
    loss, dy = SquaredError()(y, cuda.on_device(target), Pass(Pool(cupy), cuda))
    assert dy.dtype == BFLOAT16
    np.testing.assert_allclose(float(loss), 0.5 * np.square(cuda.on_host(y).astype(float) - target).sum(), rtol=1e-6)
    assert CrossEntropy().draw(cuda.on_host(y), rng).dtype.kind == "i"


def test_a_profile_is_of_what_is_computed() -> None:
    """Half the bytes of activations, and weights as they are."""
    model = MLP(widths=(24, 16), norm="layer").build((7,), 5)
    found, whole = (measure(model, 64, dtype, cuda, repeats=1) for dtype in (BFLOAT16, SINGLE))
    told, known = (estimate(model, 64, dtype) for dtype in (BFLOAT16, SINGLE))
    for one, other in ((found, whole), (told, known)):
        assert [cost.parameter_bytes for cost in one] == [cost.parameter_bytes for cost in other]
        assert [2 * cost.output_bytes for cost in one] == [cost.output_bytes for cost in other]
        assert all(0.4 < own.kept_bytes / cost.kept_bytes < 0.7 for own, cost in zip(one, other, strict=True))
    assert all(cost.forward > 0 and cost.backward > 0 for cost in found)


@pytest.mark.parametrize("dtype", [SINGLE, BFLOAT16], ids=str)
@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((7,), ("model.widths=[24,16]", "model.norm=layer", "model.dropout=0.3")),
        ((7,), ("model.widths=[24,16]", "model.norm=batch", "model.activation=gelu")),
        ((8, 8, 1), ("model.name=cnn", "model.channels=[3,4]", "model.widths=[6]", "model.dropout=0.3")),
    ],
)
def test_an_estimate_counts_the_bytes_of_a_device(shape: Any, settings: tuple[str, ...], dtype: Any) -> None:
    """Masks of dropout, places of a pool and statistics of a norm are as wide as ever."""
    model = build_model(read_config(None, settings), shape, 10)
    for found, told in zip(measure(model, 5, dtype, cuda, repeats=1), estimate(model, 5, dtype), strict=True):
        assert replace(found, forward=0.0, backward=0.0) == replace(told, forward=0.0, backward=0.0)
