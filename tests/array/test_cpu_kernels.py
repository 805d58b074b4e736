"""Every compiled kernel beside its plain twin, for all arguments that follow."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from inspect import isfunction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rounding import Arguments, check_rounding, terms_of, widened

from mpinn.array import cpu, cpu_math, steps
from mpinn.array import ops as plain
from mpinn.array.activations import ACTIVATIONS
from mpinn.array.device import choose_kernels
from mpinn.array.jit import kernel
from mpinn.array.pool import Pool
from mpinn.array.steps import Segments

OF_IMAGES = {
    "batch_norm", "batch_norm_backward", "batch_statistics", "column_moments", "conv",
    "conv_backward_input", "conv_backward_weight", "layer_norm", "layer_norm_backward", "max_pool", "max_pool_backward",
}  # fmt: skip
"""Compared in test_cpu_images.py; kernels of packed networks are compared in test_cpu_packed.py."""
COMPOSED = {"affine", "affine_gradients"}
"""Of products and kernels that are compared."""
OVERRIDDEN = sorted(
    name
    for name in plain.__all__
    if getattr(cpu, name) is not getattr(plain, name)
    and name not in OF_IMAGES | COMPOSED
    and not name.startswith("packed_")
)
IN_PLACE = {"bias_activation": (0,), "dropout_mask": (0,), "sgd": (0, 2), "adam": (0, 2, 3)}
"""Arguments that a kernel writes to; all others stay as they are."""
EXACT = {"dropout", "dropout_mask", "sgd", "adam", "all_finite"}
"""Kernels that compute in the same order as their twins."""
SHAPES = [(0, 5), (1, 1), (3, 7), (65, 33), (130, 17), (5, 4, 3, 9)]
SIZES = [0, 1, 7, 63, 8193, 16391]
ODD = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 1e30, -1e30, 88.5, -90.0, 0.5]


def numbers(shape: tuple[int, ...], dtype: str, seed: int = 0, odd: bool = False) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    x = (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 2, shape)).astype(dtype)
    if odd:
        x.reshape(-1)[: len(ODD)] = ODD[: x.size]
    return x


def classes(rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(rows).integers(0, width, rows)


def on_activations(dtype: str, odd: bool) -> Iterator[tuple[str, np.ndarray]]:
    for name in ACTIVATIONS:
        for shape in SHAPES:
            yield name, numbers(shape, dtype, odd=odd)


def for_activate(dtype: str, odd: bool) -> Iterator[Arguments]:
    for name, x in on_activations(dtype, odd):
        yield [name, x, Pool()]


def for_bias_activation(dtype: str, odd: bool) -> Iterator[Arguments]:
    for name, z in on_activations(dtype, odd):
        yield [z, numbers(z.shape[-1:], dtype, 1), name, Pool()]
        yield [z, None, name, Pool()]
        yield [np.moveaxis(z.copy(), 0, -1), None, name, Pool()]


def for_activation_backward(dtype: str, odd: bool) -> Iterator[Arguments]:
    for name, x in on_activations(dtype, odd):
        with np.errstate(all="ignore"):
            kept = x if ACTIVATIONS[name].keeps_input else plain.activate(name, x, Pool())
        yield [name, kept, numbers(x.shape, dtype, 2, odd)[::-1], Pool()]


def for_column_sums(dtype: str, odd: bool) -> Iterator[Arguments]:
    for shape in SHAPES:
        yield [numbers(shape, dtype, odd=odd)]
    yield [numbers((6, 40), dtype)[:, ::2]]


def for_cross_entropy(dtype: str, odd: bool) -> Iterator[Arguments]:
    for smoothing in (0.0, 0.1):
        for shape in SHAPES[:-1]:
            yield [numbers(shape, dtype, odd=odd), classes(*shape), smoothing, Pool()]


def for_squared_error(dtype: str, odd: bool) -> Iterator[Arguments]:
    for shape in SHAPES[:-1]:
        yield [numbers(shape, dtype, odd=odd), classes(*shape), Pool()]
    for shape in SHAPES:
        yield [numbers(shape, dtype, odd=odd), numbers(shape, dtype, 1), Pool()]


def for_dropout(dtype: str, odd: bool) -> Iterator[Arguments]:
    for shape in SHAPES:
        yield [numbers(shape, dtype, odd=odd), numbers(shape, dtype, 3) > 0, 0.3, Pool()]


def for_dropout_mask(dtype: str, odd: bool) -> Iterator[Arguments]:
    for shape in [*SHAPES, (3, 20000)]:
        for rate, key, rows in ((0.3, (1, 2), (0, 1)), (0.99, (2**32 - 1, 2**31), (3, 4)), (0.0, (7, 0), (2**30, 3))):
            yield [np.zeros(shape, bool), rate, key, rows, Pool()]


def segments(size: int, decay: float) -> Segments:
    first, second = size // 3, size // 2
    return Segments.of([(0, first, decay, 1.0), (first, second, 0.0, 0.5), (second, size, 2 * decay, 2.0)])


def for_sgd(dtype: str, odd: bool) -> Iterator[Arguments]:
    for size in SIZES:
        for momentum, nesterov in ((0.9, False), (0.9, True), (0.0, False)):
            velocity = numbers((size,), dtype, 2) if momentum else None
            vectors = [numbers((size,), dtype), numbers((size,), dtype, 1, odd), velocity]
            yield [*vectors, segments(size, 0.01), 1 / 3, 0.1, momentum, nesterov, Pool()]


def for_adam(dtype: str, odd: bool) -> Iterator[Arguments]:
    for size in SIZES:
        for decoupled in (False, True):
            w, g, m, v = (numbers((size,), dtype, i, odd and i == 1) for i in range(4))
            yield [w, g, m, abs(v), segments(size, 0.01), 1 / 3, 0.1, (0.9, 0.999), 1e-8, 3, decoupled, Pool()]


def for_vectors(dtype: str, odd: bool) -> Iterator[Arguments]:
    for size in SIZES:
        yield [numbers((size,), dtype, odd=odd)]


def for_squares_of(dtype: str, odd: bool) -> Iterator[Arguments]:
    for size in SIZES:
        yield [numbers((size,), dtype, odd=odd), [slice(0, size // 3), slice(size // 3, size)]]


def for_all_finite(dtype: str, odd: bool) -> Iterator[Arguments]:
    yield from for_vectors(dtype, odd)
    for bad in (np.nan, -np.inf, np.finfo(dtype).max):
        vector = np.zeros(9000, dtype)
        vector[-1] = bad
        yield [vector]


CASES: dict[str, Callable[[str, bool], Iterator[Arguments]]] = {
    "activate": for_activate,
    "activation_backward": for_activation_backward,
    "adam": for_adam,
    "all_finite": for_all_finite,
    "bias_activation": for_bias_activation,
    "column_sums": for_column_sums,
    "cross_entropy": for_cross_entropy,
    "dropout": for_dropout,
    "dropout_mask": for_dropout_mask,
    "sgd": for_sgd,
    "squared_error": for_squared_error,
    "squares_of": for_squares_of,
    "sum_of_squares": for_vectors,
}


def results(function: Callable[..., Any], name: str, arguments: Arguments) -> tuple[list[np.ndarray], Arguments]:
    """What the function returns and writes, as arrays; and its arguments afterwards."""
    written = IN_PLACE.get(name, ())
    own = [given.copy("K") if i in written and given is not None else given for i, given in enumerate(arguments)]
    with np.errstate(all="ignore"):
        returned = function(*own)
    found = [*returned] if isinstance(returned, tuple | list) else [] if returned is None else [returned]
    found += [own[i] for i in written if own[i] is not None]
    return [np.asarray(array) for array in found], own


def same(name: str, arguments: Arguments, dtype: str) -> None:
    """Fails unless the compiled kernel gives what its twin does: bit for bit, or as exactly as rounding lets it."""
    before = [given.copy() if isinstance(given, np.ndarray) else given for given in arguments]
    expected, _ = results(getattr(plain, name), name, arguments)
    found, after = results(getattr(cpu, name), name, arguments)
    assert [(array.shape, array.dtype) for array in found] == [(array.shape, array.dtype) for array in expected]
    if name in EXACT or any(isinstance(given, str) and given not in cpu.ACTIVATIONS for given in arguments):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    else:
        rounded(name, arguments, found, expected, dtype)
    for i, (given, left) in enumerate(zip(before, after, strict=True)):
        if isinstance(given, np.ndarray) and i not in IN_PLACE.get(name, ()):
            np.testing.assert_array_equal(given, left)


def rounded(name: str, arguments: Arguments, found: list[np.ndarray], twins: list[np.ndarray], dtype: str) -> None:
    wide = widened(arguments, dtype)
    references, _ = results(getattr(plain, name), name, wide)
    terms = terms_of(name, wide, references)
    check_rounding(name, arguments, found, twins, references, terms, dtype)


def test_every_overridden_kernel_is_compared() -> None:
    assert sorted(CASES) == OVERRIDDEN


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OVERRIDDEN)
def test_agrees_with_the_plain_kernel(name: str, dtype: str) -> None:
    for arguments in CASES[name](dtype, False):
        same(name, arguments, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OVERRIDDEN)
def test_passes_on_what_is_not_finite_as_the_plain_kernel_does(name: str, dtype: str) -> None:
    for arguments in CASES[name](dtype, True):
        same(name, arguments, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(0, 3, 5), (1, 1, 1), (3, 0, 2), (300, 33, 17)])
@pytest.mark.parametrize("kernels", [plain, cpu])
def test_a_dense_layer_is_a_product_and_kernels(kernels: Any, shape: tuple[int, int, int], dtype: str) -> None:
    rows, inputs, outputs = shape
    x, weight, dz = numbers((rows, inputs), dtype), numbers((inputs, outputs), dtype), numbers((rows, outputs), dtype)
    for name in ACTIVATIONS:
        for bias in (numbers((outputs,), dtype), None):
            z = np.matmul(x, weight)
            expected = kernels.bias_activation(z, bias, name, Pool())
            for one, other in zip(kernels.affine(x, weight, bias, name, Pool()), expected, strict=True):
                np.testing.assert_array_equal(one, other)
    found, sums = np.full_like(weight, np.nan), np.full(outputs, np.nan, dtype)
    kernels.affine_gradients(x, dz, found, sums, Pool())
    np.testing.assert_array_equal(found, np.matmul(x.T, dz))
    np.testing.assert_array_equal(sums, kernels.column_sums(dz).astype(dtype))
    found.fill(np.nan)
    kernels.affine_gradients(x, dz, found, None, Pool())
    np.testing.assert_array_equal(found, np.matmul(x.T, dz))


@pytest.mark.parametrize("kernels", [plain, cpu])
def test_every_public_name_is_there(kernels: Any) -> None:
    assert all(callable(getattr(kernels, name)) for name in plain.__all__)
    public = {
        name for module in (plain, steps) for name, value in vars(module).items()
        if isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }  # fmt: skip
    assert public <= set(kernels.__all__)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_padding_stays_zero(name: str) -> None:
    for arguments in CASES[name]("float32", False):
        for vector in arguments[:4]:
            if isinstance(vector, np.ndarray):
                vector[len(vector) // 2 :] = 0
        _, after = results(getattr(cpu, name), name, arguments)
        assert not after[0][len(after[0]) // 2 :].any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_class_that_is_not_there_is_an_error(wrong: int, smoothing: float) -> None:
    with pytest.raises(IndexError):
        cpu.cross_entropy(np.zeros((2, 3)), np.array([0, wrong]), smoothing, Pool())
    with pytest.raises(IndexError):
        cpu.squared_error(np.zeros((2, 3)), np.array([0, wrong]), Pool())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "elu"])
def test_the_exponential_is_accurate_over_its_whole_range(name: str, dtype: str) -> None:
    x = np.concatenate([numbers((4000,), dtype), np.linspace(-800, 800, 4001).astype(dtype)])
    exact = {"sigmoid": lambda v: 1 / (1 + np.exp(-v)), "tanh": np.tanh, "elu": lambda v: np.expm1(np.minimum(v, 0))}
    wide = x.astype(np.longdouble)
    with np.errstate(over="ignore"):
        expected = exact[name](wide) + (np.maximum(wide, 0) if name == "elu" else 0)
    found = cpu.activate(name, x, Pool())
    error = np.abs(found - expected) / np.maximum(np.abs(expected), 1e-30)
    assert error.max() < 4 * np.finfo(dtype).eps


@kernel
def exponentials(x: np.ndarray, exps: np.ndarray, expm1s: np.ndarray) -> None:
    for i in range(x.size):
        exps[i] = cpu_math.exp(x[i])
        expm1s[i] = cpu_math.expm1(-abs(x[i]))


@pytest.mark.parametrize(("dtype", "lowest", "highest"), [("float32", -105, 90), ("float64", -750, 711)])
def test_the_exponential_is_as_accurate_where_it_is_subnormal(dtype: str, lowest: int, highest: int) -> None:
    x = np.concatenate([np.linspace(lowest, highest, 20001), np.linspace(-1, 1, 2001)]).astype(dtype)
    found, wide = np.empty((2, x.size), dtype), x.astype(np.longdouble)
    exponentials(x, *found)
    with np.errstate(over="ignore", under="ignore"):
        references = np.exp(wide), np.expm1(-abs(wide))
        for one, exact, most in zip(found, references, (1.0, 1.5), strict=True):
            nearest = exact.astype(dtype)
            np.testing.assert_array_equal(np.isinf(one), np.isinf(nearest))
            there = np.isfinite(nearest)
            assert (np.abs(one - exact)[there] < most * np.spacing(np.abs(nearest[there]))).all()


def test_auto_is_compiled_and_plain_is_plain() -> None:
    assert choose_kernels("auto")[0] is cpu
    assert choose_kernels("compiled")[0] is cpu
    assert choose_kernels("plain")[0] is plain


def test_without_numba_auto_goes_on_and_compiled_is_an_error() -> None:
    program = (
        "import sys; sys.modules['numba'] = None\n"
        "from mpinn.array import ops, device\n"
        "chosen, reason = device.choose_kernels('auto')\n"
        "assert chosen is ops and 'numba' in reason\n"
        "try: device.choose_kernels('compiled')\n"
        "except ImportError: print('refused')\n"
    )
    root = Path(plain.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
