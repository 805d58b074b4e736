"""Products of matrices by cuBLAS, called directly: in a stream capture too, with a workspace that is kept."""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import cupy
import numpy as np

from mpinn.array.cuda_kernels import address
from mpinn.array.precision import BFLOAT16, wide
from mpinn.array.typing import Array

WORKSPACE = 32 << 20
"""Bytes, as many as cuBLAS asks for on Hopper: with less it would take slower ways, or allocate in a capture."""
NOT_TRANSPOSED, TRANSPOSED = 0, 1
TYPES = {"f": (0, 68, ctypes.c_float), "d": (1, 70, ctypes.c_double), BFLOAT16: (14, 68, ctypes.c_float)}
"""CUDA_R_32F, CUDA_R_64F and CUDA_R_16BF, CUBLAS_COMPUTE_32F and _64F, and what alpha and beta are."""
FAST_TF32 = 77
"""CUBLAS_COMPUTE_32F_FAST_TF32."""
WIDE_SUMS = 16
"""CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: partial sums are never added up in a narrow type."""
DEFAULT = -1
"""CUBLAS_GEMM_DEFAULT: the algorithm is chosen by the shapes."""


class ProductError(Exception):
    """cuBLAS has refused a product."""


class Operand(NamedTuple):
    """A matrix as cuBLAS sees it, whose matrices lie column by column."""

    array: Array
    transposed: int
    pitch: int
    stride: int
    """Between the matrices of a batch."""


class Blas:
    """A handle of cuBLAS on a stream, for good."""

    def __init__(self, library: Any, stream: int, tf32: bool):
        self._library = library
        self._tf32 = tf32
        self._handle = ctypes.c_void_p()
        self._check(library.cublasCreate_v2(ctypes.byref(self._handle)))
        self._check(library.cublasSetStream_v2(self._handle, ctypes.c_void_p(stream)))
        room = ctypes.c_void_p(address(workspace(stream)))
        self._check(library.cublasSetMathMode(self._handle, WIDE_SUMS))
        self._check(library.cublasSetWorkspace_v2(self._handle, room, ctypes.c_size_t(WORKSPACE)))
        self._scalars = {char: (kind(1), kind(0)) for char, (_, _, kind) in TYPES.items()}

    def _check(self, status: int) -> None:
        if status:
            raise ProductError(f"cuBLAS gives status {status}")

    def multiply(self, a: Operand, b: Operand, out: Array) -> None:
        """out = a b, of matrices (M, K) and (K, N), or of batches of them; a and b are of one type."""
        char = a.array.dtype.char
        number, compute, _ = TYPES[char]
        if self._tf32 and char == "f":
            compute = FAST_TF32
        one, zero = self._scalars[char]
        rows, columns = out.shape[-2:]
        inner = a.array.shape[-1]
        # column by column, out' = b' a'
        numbers: list[Any] = [self._handle, b.transposed, a.transposed, columns, rows, inner, ctypes.byref(one)]
        tail: list[Any] = [ctypes.c_int(compute), ctypes.c_int(DEFAULT)]
        left = [ctypes.c_void_p(address(b.array)), number, b.pitch]
        right = [ctypes.c_void_p(address(a.array)), number, a.pitch]
        result = [ctypes.c_void_p(address(out)), TYPES[out.dtype.char][0], columns]
        if out.ndim == 2:
            call = self._library.cublasGemmEx
            self._check(call(*numbers, *left, *right, ctypes.byref(zero), *result, *tail))
            return
        call, big = self._library.cublasGemmStridedBatchedEx, ctypes.c_longlong
        self._check(
            call(
                *numbers, *left, big(b.stride), *right, big(a.stride), ctypes.byref(zero), *result,
                big(rows * columns), len(out), *tail,
            )
        )  # fmt: skip


@cache
def workspace(stream: int) -> Array:
    """Scratch of all products on a stream, which come one after another."""
    room: Array = cupy.empty(WORKSPACE, np.uint8)
    return room


@cache
def _library() -> Any:
    """The shared library that CuPy uses; None where it cannot be found, so that CuPy's own product serves."""
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    try:
        from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
    except ImportError:
        return _loaded(f"libcublas.so.{major}")
    try:
        return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    except DynamicLibNotFoundError:
        return _loaded(f"libcublas.so.{major}")


def _loaded(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


@cache
def _blas(stream: int, tf32: bool) -> Blas | None:
    library = _library()
    return None if library is None else Blas(library, stream, tf32)


def matmul(a: Array, b: Array, out: Array, tf32: bool) -> None:
    """out = a b; a: (..., M, K), b: (..., K, N), out: (..., M, N) in C order, with one batch axis or none.

    Parameters b are rounded to the type of activations a. Numbers are summed up in float32 at least, and rounded once.
    """
    if not out.size:
        return
    if not a.shape[-1]:
        out.fill(0)
        return
    if b.dtype != a.dtype:
        # CuPy goes over memory in one line only if it is in C order
        b = b.astype(a.dtype) if b.flags.c_contiguous else b.T.astype(a.dtype).T
    blas = _blas(cupy.cuda.get_current_stream().ptr, tf32)
    if blas is None:
        _plainly(a, b, out)
    else:
        blas.multiply(_operand(a), _operand(b), out)


def _plainly(a: Array, b: Array, out: Array) -> None:
    """By CuPy, whose products are of the type of their factors."""
    real = wide(a.dtype)
    if real == a.dtype:
        np.matmul(a, b, out=out)
    else:
        np.copyto(out, np.matmul(a.astype(real), b.astype(real)))


def _operand(x: Array) -> Operand:
    rows, columns = x.shape[-2:]
    down, across = (stride // x.itemsize for stride in x.strides[-2:])
    stride = x.strides[0] // x.itemsize if x.ndim == 3 else 0
    if columns == 1 or (across == 1 and (rows == 1 or down >= columns)):
        return Operand(x, NOT_TRANSPOSED, columns if rows == 1 else max(down, columns), stride)
    if rows == 1 or (down == 1 and across >= rows):
        return Operand(x, TRANSPOSED, max(across, rows), stride)
    return _operand(cupy.ascontiguousarray(x))
