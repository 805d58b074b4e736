"""Dense layers by cuBLASLt, as nvmath-python offers it: a product and what follows it are one kernel.

Forward, the bias and relu are the epilogue of the product; backward, the product that gives the gradient of the weight
sums up that of the bias as well. An algorithm is chosen by cuBLASLt's heuristics once for each shape, never by timing;
all of them repeat bit for bit on one stream. Matrices are taken as they lie, in one piece, on multiples of 16 bytes.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, Literal, TypeAlias

import cupy
import numpy as np

from mpinn.array.cuda_kernels import ALIGNMENT, address, placed
from mpinn.array.cuda_products import FAST_TF32, NOT_TRANSPOSED, TRANSPOSED, TYPES, WORKSPACE, workspace
from mpinn.array.pool import Pool
from mpinn.array.typing import Array

Kind: TypeAlias = Literal["identity", "relu", "gradient"]
EPILOGUES: dict[Kind, str] = {"identity": "BIAS", "relu": "RELU_BIAS", "gradient": "BGRADA"}
ACTIVATIONS: dict[str, Kind] = {"identity": "identity", "relu": "relu"}
"""Of whose slope the output tells all."""
REALS = {"f": "float32", "d": "float64"}
"""A bias must be of the type of what it is added to, which those of layers in bfloat16 are not."""
ASKED = 8
"""Algorithms that the heuristics are asked for, of which the first that can be run is taken."""


@cache
def library() -> Any:
    """The module of cuBLASLt's functions, or None where it cannot be imported."""
    try:
        from nvmath.bindings import cublasLt
    except (ImportError, OSError, RuntimeError):
        return None
    return cublasLt


@cache
def _handle(stream: int) -> int:
    """Of the current device; 0 where the shared library cannot be loaded or refuses the device."""
    lt = library()
    try:
        return int(lt.create())
    except (RuntimeError, lt.cuBLASLtError):
        return 0


@dataclass(eq=False)
class Plan:
    """A product with its epilogue that is ready to run; ``kept``: host memory that its addresses lead to."""

    handle: int
    operation: int
    layouts: tuple[int, int, int]
    algorithm: int
    stream: int
    one: int
    zero: int
    bias: Any
    kept: tuple[Any, ...]
    refused: bool = False

    def run(self, left: Array, right: Array, bias: Array, out: Array) -> bool:
        """out = left right, with the bias on the way in or out; False if cuBLASLt cannot do it after all."""
        lt = library()
        if self.refused:
            return False
        # the descriptor is read when the product is asked for, so one plan serves any weights
        self.bias[0] = address(bias)
        lt.matmul_desc_set_attribute(
            self.operation, lt.MatmulDescAttribute.BIAS_POINTER, self.bias.ctypes.data, self.bias.nbytes
        )
        first, second, result = self.layouts
        into = address(out)
        try:
            # column by column, out' = right' left'
            lt.matmul(
                self.handle, self.operation, self.one, address(right), first, address(left), second, self.zero, into,
                result, into, result, self.algorithm, address(workspace(self.stream)), WORKSPACE, self.stream,
            )  # fmt: skip
        except lt.cuBLASLtError:
            self.refused = True
        return not self.refused


@cache
def plan(kind: Kind, rows: int, inner: int, outputs: int, char: str, tf32: bool, stream: int) -> Plan | None:
    """The plan for (rows, outputs) as a product over ``inner``; None where cuBLASLt has none.

    For a gradient the left factor, (rows, inner), lies as (inner, rows). Not to be asked for in a capture, since the
    heuristics may load kernels.
    """
    lt = library()
    number, compute, _ = TYPES[char]
    operation = lt.matmul_desc_create(FAST_TF32 if tf32 and char == "f" else compute, number)
    turned = kind == "gradient"
    left = (rows, inner) if turned else (inner, rows)
    shapes = (outputs, inner), left, (outputs, rows)
    first, second, third = (lt.matrix_layout_create(number, *shape, shape[0]) for shape in shapes)
    layouts = first, second, third
    attribute, width = lt.MatmulDescAttribute, lt.get_matmul_desc_attribute_dtype
    # any bias will do for the heuristics, if it begins where all do
    for name, value in (
        (attribute.TRANSA, NOT_TRANSPOSED), (attribute.TRANSB, TRANSPOSED if turned else NOT_TRANSPOSED),
        (attribute.EPILOGUE, lt.Epilogue[EPILOGUES[kind]]), (attribute.BIAS_POINTER, address(workspace(stream))),
    ):  # fmt: skip
        _set(lt.matmul_desc_set_attribute, operation, name, width(name), value)
    results = _algorithms(lt, stream, operation, layouts)
    if results is None:
        for layout in layouts:
            lt.matrix_layout_destroy(layout)
        lt.matmul_desc_destroy(operation)
        return None
    found, algorithm = results
    scalars = np.array([1, 0], REALS[char])
    one, bias = scalars.ctypes.data, np.zeros(1, width(attribute.BIAS_POINTER))
    zero = one + scalars.itemsize
    return Plan(_handle(stream), operation, layouts, algorithm, stream, one, zero, bias, (scalars, found))


def _set(setter: Any, owner: int, name: Any, dtype: Any, value: int) -> None:
    held = np.array([value], dtype)
    setter(owner, name, held.ctypes.data, held.nbytes)


def _algorithms(lt: Any, stream: int, operation: int, layouts: tuple[int, ...]) -> tuple[Any, int] | None:
    """What the heuristics found, and the address of the algorithm to take among it."""
    names, width = lt.MatmulPreferenceAttribute, lt.get_matmul_preference_attribute_dtype
    scheme = lt.ReductionScheme
    wanted = {
        names.MAX_WORKSPACE_BYTES: WORKSPACE,
        # partial sums in the type of arithmetic only, as in all products
        names.REDUCTION_SCHEME_MASK: scheme.NONE | scheme.COMPUTE_TYPE,
        **{names[f"MIN_ALIGNMENT_{matrix}_BYTES"]: ALIGNMENT for matrix in "ABCD"},
    }
    results, count = lt.MatmulHeuristicResult(ASKED), np.zeros(1, np.int32)
    preference = lt.matmul_preference_create()
    for name, value in wanted.items():
        _set(lt.matmul_preference_set_attribute, preference, name, width(name), value)
    first, second, result = layouts
    try:
        lt.matmul_algo_get_heuristic(
            _handle(stream), operation, first, second, result, result, preference, ASKED, results.ptr, count.ctypes.data
        )
    except lt.cuBLASLtError:
        return None
    finally:
        lt.matmul_preference_destroy(preference)
    good = [place for place in range(count[0]) if results.state[place] == 0]
    return (results, results.ptr + good[0] * lt.matmul_heuristic_result_dtype.itemsize) if good else None


@cache
def usable(kind: Kind, char: str, tf32: bool, stream: int) -> bool:
    """Whether cuBLASLt has this epilogue, and a small product with it is right.

    It is one of whole numbers, which must be exact, times what TF32 would lose where that is not to be used; and what
    is not a number stays so. It is not documented which digits of TF32 a bias gradient loses, so it is summed apart.
    """
    if not wanted(kind, char, tf32) or library() is None or not _handle(stream):
        return False
    rows, inner, outputs = 16, 32, 8
    found = plan(kind, rows, inner, outputs, char, tf32, stream)
    if found is None:
        return False
    left, right = _whole(rows, inner, 7), _whole(inner, outputs, 5) * (1 if tf32 and char == "f" else 1 + 2.0**-13)
    bias, turned = _whole(1, outputs, 3)[0], kind == "gradient"
    if not turned:
        left[0, 0] = np.nan
    expected, sums = (left @ right, right.sum(axis=0)) if turned else (left @ right + bias, bias)
    if kind == "relu":
        expected = np.maximum(expected, 0)
    real = np.dtype(REALS[char])
    given = [
        cupy.asarray(np.ascontiguousarray(part.astype(real))) for part in (left.T if turned else left, right, bias)
    ]
    out = cupy.empty((rows, outputs), real)
    if not found.run(given[0], given[1], given[2], out):
        return False
    return np.array_equal(out.get(), expected, equal_nan=True) and np.array_equal(given[2].get(), sums)


def _whole(rows: int, columns: int, step: int) -> Any:
    """Whole numbers from -4 to 4, as float64."""
    return (np.arange(rows * columns) * step % 9 - 4.0).reshape(rows, columns)


def wanted(kind: Kind, char: str, tf32: bool) -> bool:
    """Whether an epilogue is tried at all; see `usable`."""
    return char in REALS and not (kind == "gradient" and tf32 and char == "f")


def said(tf32: bool) -> str:
    """What computes dense layers on the current stream, and what of it cuBLASLt does not do, or why nothing is."""
    otherwise, stream = "by cuBLAS and kernels of our own", cupy.cuda.get_current_stream().ptr
    if library() is None:
        return f"{otherwise}: nvmath-python is missing"
    if not _handle(stream):
        return f"{otherwise}: cuBLASLt cannot be loaded"
    missing = [
        f"{EPILOGUES[kind]} of {REALS[char]}"
        for kind, char in product(EPILOGUES, REALS)
        if wanted(kind, char, tf32) and not usable(kind, char, tf32, stream)
    ]
    return "by cuBLASLt" + (f" without {', '.join(missing)}" if missing else "")


def _found(
    kind: Kind, rows: int, inner: int, outputs: int, tf32: bool, passing: tuple[Array, ...], lasting: tuple[Array, ...]
) -> Plan | None:
    """The plan for arrays of one type, each in one piece; those that last begin where they should, others are moved."""
    char, arrays = passing[0].dtype.char, (*passing, *lasting)
    same = all(array.dtype.char == char and array.flags.c_contiguous for array in arrays)
    if not (same and rows * inner * outputs) or any(address(array) % ALIGNMENT for array in lasting):
        return None
    stream = cupy.cuda.get_current_stream().ptr
    return plan(kind, rows, inner, outputs, char, tf32, stream) if usable(kind, char, tf32, stream) else None


def affine(x: Array, weight: Array, bias: Array, name: str, y: Array, pool: Pool, tf32: bool) -> bool:
    """Write f(x W + b) to y: (B, O); False if nothing was done, since it is no epilogue."""
    if name not in ACTIVATIONS:
        return False
    found = _found(ACTIVATIONS[name], len(x), x.shape[1], y.shape[1], tf32, (x,), (weight, bias, y))
    return found is not None and found.run(placed(x, pool), weight, bias, y)


def gradients(x: Array, dz: Array, weight: Array, bias: Array, pool: Pool, tf32: bool) -> bool:
    """Write the gradients by W: (I, O) and b: (O,) for x: (B, I); False if nothing was done.

    cuBLASLt before 12.3.4 does not support a batch of one.
    """
    if len(x) < 2:
        return False
    found = _found("gradient", x.shape[1], len(x), dz.shape[1], tf32, (x, dz), (weight, bias))
    return found is not None and found.run(placed(x, pool), placed(dz, pool), bias, weight)
