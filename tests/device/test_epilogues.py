"""Dense layers by cuBLASLt beside product and kernels, which they must equal up to rounding, and themselves exactly."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import cupy
import numpy as np
import pytest
from test_steps import trained

from mpinn.array import cuda, cuda_epilogues, cuda_products
from mpinn.array.activations import ACTIVATIONS
from mpinn.array.cuda_epilogues import Plan, plan, usable
from mpinn.array.cuda_kernels import address
from mpinn.array.pool import Pool
from mpinn.array.precision import bfloat16
from mpinn.models.mlp import MLP
from mpinn.nn.optimizer import SGD

pytestmark = pytest.mark.skipif(cuda_epilogues.library() is None, reason="nvmath-python is not installed")

PRECISIONS = ["float32", "float64", "TF32"]
SIZES = [(1, 1, 1), (1, 5, 4), (2, 3, 5), (33, 65, 17), (128, 128, 64), (64, 300, 10)]
"""Batch, inputs, outputs."""
LOST = {"float32": 0.0, "float64": 0.0, "TF32": 2.0**-10}
"""What rounding both factors costs, as a share of each term."""


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that were run, in order."""
    found: list[Plan] = []
    run = Plan.run
    monkeypatch.setattr(Plan, "run", lambda self, *given: [run(self, *given), found.append(self)][0])
    return found


@pytest.fixture(autouse=True)
def choices() -> Iterator[None]:
    before = cuda.Choices.tf32, cuda.Choices.epilogues
    yield
    cuda.Choices.tf32, cuda.Choices.epilogues = before


def chosen(precision: str) -> np.dtype:
    cuda.Choices.tf32 = precision == "TF32"
    return np.dtype("float32" if precision == "TF32" else precision)


def numbers(shape: Any, dtype: Any, seed: int = 0) -> Any:
    return cuda.on_device(np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype))


def layer(sizes: tuple[int, int, int], dtype: Any, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    """x, weight, bias and dz."""
    batch, inputs, outputs = sizes
    shapes = (batch, inputs), (inputs, outputs), (outputs,), (batch, outputs)
    found = [numbers(shape, dtype, seed + place) for place, shape in enumerate(shapes)]
    return found[0], found[1], found[2], found[3]


def is_there(kind: Any, sizes: tuple[int, int, int], char: str) -> bool:
    """Whether cuBLASLt has a plan; on the stand-in it has all that are asked for."""
    batch, inputs, outputs = sizes
    stream, tf32 = cupy.cuda.get_current_stream().ptr, cuda.Choices.tf32
    if kind == "gradient" and (batch == 1 or (tf32 and char == "f")):
        return False
    shape = (inputs, batch, outputs) if kind == "gradient" else sizes
    found = usable(kind, char, tf32, stream) and plan(kind, *shape, char, tf32, stream) is not None
    assert found or not hasattr(cupy, "EMULATED")
    return found


def exactly(*arrays: Any) -> list[np.ndarray]:
    """On the host, in a wider type."""
    wider = {"f": np.float64, "d": np.longdouble}
    return [array.get().astype(wider[array.dtype.char]) for array in arrays]


def near(found: Any, exact: np.ndarray, terms: np.ndarray, precision: str, added: int) -> None:
    """No further than rounding ``added`` terms lets it be."""
    bound = (LOST[precision] + (added + 2) * np.finfo(found.dtype).eps) * terms
    assert (np.abs(found.get() - exact) <= 1.01 * bound).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["identity", "relu"])
@pytest.mark.parametrize("sizes", SIZES)
def test_forward(sizes: Any, name: Any, precision: str, runs: list[Plan]) -> None:
    x, weight, bias, _ = layer(sizes, chosen(precision))
    there = is_there(name, sizes, x.dtype.char)
    runs.clear()
    y, kept = cuda.affine(x, weight, bias, name, Pool(cupy))
    assert len(runs) == there
    assert kept is y
    exact = exactly(x, weight, bias)
    z = exact[0] @ exact[1] + exact[2]
    terms = np.abs(exact[0]) @ np.abs(exact[1]) + np.abs(exact[2])
    near(y, np.maximum(z, 0) if name == "relu" else z, terms, precision, sizes[1])
    again, _ = cuda.affine(x, weight, bias, name, Pool(cupy))
    np.testing.assert_array_equal(again.get(), y.get())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients(sizes: Any, precision: str, runs: list[Plan]) -> None:
    x, weight, bias, dz = layer(sizes, chosen(precision))
    there = is_there("gradient", sizes, x.dtype.char)
    runs.clear()
    found = [cupy.full_like(array, np.nan) for array in (weight, bias)]
    cuda.affine_gradients(x, dz, *found, Pool(cupy))
    assert len(runs) == there
    left, right = exactly(x, dz)
    near(found[0], left.T @ right, np.abs(left).T @ np.abs(right), precision, sizes[0])
    # TF32 is for products
    kept = "float32" if precision == "TF32" else precision
    near(found[1], right.sum(axis=0), np.abs(right).sum(axis=0), kept, sizes[0])
    again = [cupy.full_like(array, np.nan) for array in (weight, bias)]
    cuda.affine_gradients(x, dz, *again, Pool(cupy))
    for one, other in zip(again, found, strict=True):
        np.testing.assert_array_equal(one.get(), other.get())


def apart(x: Any, weight: Any, bias: Any, name: str) -> Any:
    """Product and kernel."""
    y = cupy.empty((len(x), weight.shape[1]), x.dtype)
    cuda.matmul(x, weight, y)
    return cuda.bias_activation(y, bias, name, Pool(cupy))


def sums_apart(x: Any, weight: Any, dz: Any) -> list[Any]:
    grad = cupy.full_like(weight, np.nan)
    cuda.matmul(x.T, dz, grad)
    return [grad, cuda.column_sums(dz)]


def same(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.get().view(np.uint8), other.get().view(np.uint8))


def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.Choices.epilogues = False


def without_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_epilogues, "plan", lambda *_: None)


def not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_epilogues, "usable", lambda *_: False)


def refused_when_run(monkeypatch: pytest.MonkeyPatch) -> None:
    lt = cuda_epilogues.library()

    def refuse(*_: Any) -> None:
        raise lt.cuBLASLtError(15)

    monkeypatch.setattr(cuda_epilogues, "plan", plan.__wrapped__)
    monkeypatch.setattr(lt, "matmul", refuse)


def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_epilogues, "library", lambda: None)
    monkeypatch.setattr(cuda_epilogues, "usable", usable.__wrapped__)


@pytest.mark.parametrize("way", [forbidden, without_algorithms, not_right, refused_when_run, not_installed])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_otherwise_product_and_kernels_serve(
    precision: str, way: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias, dz = layer((33, 65, 17), chosen(precision))
    way(monkeypatch)
    for name in ("identity", "relu"):
        same(cuda.affine(x, weight, bias, name, Pool(cupy)), apart(x, weight, bias, name))
    found = [cupy.full_like(array, np.nan) for array in (weight, bias)]
    cuda.affine_gradients(x, dz, *found, Pool(cupy))
    same(found, sums_apart(x, weight, dz))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_is_no_epilogue(name: str, runs: list[Plan]) -> None:
    """Other activations, layers without a bias, and bfloat16 with its weights in float32."""
    x, weight, bias, dz = layer((9, 8, 4), "float32")
    short, back = x.astype(bfloat16()), dz.astype(bfloat16())
    given = [(x, weight, None), (short, weight, bias), (short, weight, None)]
    if name not in ("identity", "relu"):
        given.append((x, weight, bias))
    for own in given:
        same(cuda.affine(*own, name, Pool(cupy)), apart(*own, name))
    found = [cupy.full_like(array, np.nan) for array in (weight, bias)]
    cuda.affine_gradients(short, back, *found, Pool(cupy))
    same(found, sums_apart(short, weight, back))
    cuda.affine_gradients(x, dz, found[0], None, Pool(cupy))
    same(found[:1], sums_apart(x, weight, dz)[:1])
    # nor what is of several types, which no layer has
    assert not cuda_epilogues.affine(x, weight.astype(float), bias, "relu", dz, Pool(cupy), False)
    assert not runs


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2)])
def test_nothing_to_add_up(shape: Any, runs: list[Plan]) -> None:
    x, weight, bias, dz = layer(shape, "float32")
    same(cuda.affine(x, weight, bias, "relu", Pool(cupy)), apart(x, weight, bias, "relu"))
    found = [cupy.full_like(array, np.nan) for array in (weight, bias)]
    cuda.affine_gradients(x, dz, *found, Pool(cupy))
    same(found, sums_apart(x, weight, dz))
    assert not runs


def test_a_batch_may_begin_anywhere(runs: list[Plan]) -> None:
    """To the same bits, since what is recorded reads a batch elsewhere than what is not."""
    x, weight, bias, dz = layer((7, 5, 3), "float32")
    parts = x[1:6], dz[1:6]
    assert all(address(part) % 16 for part in parts)
    both = []
    for left, right in (parts, [part.copy() for part in parts]):
        grads = [cupy.full_like(array, np.nan) for array in (weight, bias)]
        cuda.affine_gradients(left, right, *grads, Pool(cupy))
        both.append([*cuda.affine(left, weight, bias, "relu", Pool(cupy)), *grads])
    same(*both)
    assert len(runs) in (0, 2, 4)
    assert runs or not hasattr(cupy, "EMULATED")
    # what lasts is in a vector whose parts begin on multiples of 256 bytes; nothing else is taken
    runs.clear()
    odd = cupy.empty(bias.size + 1, bias.dtype)[1:]
    odd[...] = bias
    same(cuda.affine(x, weight, odd, "relu", Pool(cupy)), apart(x, weight, bias, "relu"))
    assert not runs


def test_one_plan_serves_all_weights_and_a_recording_keeps_its_own() -> None:
    layers = [layer((6, 8, 4), "float32", seed) for seed in (0, 10)]
    expected = [cuda.affine(*own[:3], "relu", Pool(cupy))[0].get() for own in layers]
    memory, stream = cupy.cuda.MemoryPool(), cupy.cuda.get_current_stream()
    with cupy.cuda.using_allocator(memory.malloc):
        stream.begin_capture()
        recorded = cuda.affine(*layers[0][:3], "relu", Pool(cupy))[0]
        graph = stream.end_capture()
    for _ in range(2):
        other = cuda.affine(*layers[1][:3], "relu", Pool(cupy))[0]
        graph.launch(stream)
        np.testing.assert_array_equal(other.get(), expected[1])
        np.testing.assert_array_equal(recorded.get(), expected[0])
    layers[0][2][...] += 1
    graph.launch(stream)
    np.testing.assert_array_equal(recorded.get(), cuda.affine(*layers[0][:3], "relu", Pool(cupy))[0].get())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_not_a_number_stays_so(precision: str) -> None:
    x, weight, bias, _ = layer((40, 30, 20), chosen(precision))
    x[3, 4] = np.nan
    bias[7] = np.nan
    for name in ("identity", "relu"):
        y = cuda.affine(x, weight, bias, name, Pool(cupy))[0].get()
        odd = np.isnan(y)
        assert odd[3].all()
        assert odd[:, 7].all()
        assert odd.sum() == 20 + 40 - 1


def test_products_and_epilogues_share_their_workspace() -> None:
    told: list[Any] = []
    done: Any = lambda *_: 0  # noqa: E731
    fake = SimpleNamespace(
        cublasCreate_v2=done, cublasSetStream_v2=done, cublasSetMathMode=done,
        cublasSetWorkspace_v2=lambda _, place, size: told.extend((place.value, size.value)) or 0,
    )  # fmt: skip
    stream = cupy.cuda.get_current_stream().ptr
    cuda_products.Blas(fake, stream, False)
    assert told == [address(cuda_products.workspace(stream)), cuda_products.WORKSPACE]


MODEL = MLP(widths=(24, 16)).build((7,), 5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_whole_steps(dtype: str, runs: list[Plan]) -> None:
    """Both ways, recorded and not, and again; plans are made in the first step of each size only."""
    part, losses, _ = trained(MODEL, cuda, dtype, optimizer=SGD(rate=0.05, decay="constant"))
    used, plans = len(runs), plan.cache_info().misses
    assert used or not hasattr(cupy, "EMULATED")
    for record in (True, False):
        other, same_losses, _ = trained(MODEL, cuda, dtype, record=record, optimizer=SGD(rate=0.05, decay="constant"))
        np.testing.assert_array_equal(part.weights.get(), other.weights.get())
        assert same_losses == losses
    assert plan.cache_info().misses == plans
    cuda.Choices.epilogues = False
    runs.clear()
    plainly, _, _ = trained(MODEL, cuda, dtype, optimizer=SGD(rate=0.05, decay="constant"))
    assert not runs
    distance = np.linalg.norm(part.weights.get() - plainly.weights.get())
    assert distance <= 100 * np.finfo(dtype).eps * np.linalg.norm(plainly.weights.get())
