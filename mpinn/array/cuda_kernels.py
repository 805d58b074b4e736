"""CUDA kernels: compiled by NVRTC at their first use, kept by CuPy on disk, and launched on the current stream.

Products and sums are not contracted, so that they round as NumPy's do. CuPy lets float32 numbers below 1.2e-38 be zero.
"""

import re
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

import cupy
import numpy as np

from mpinn.array.pool import Pool
from mpinn.array.precision import BFLOAT16
from mpinn.array.typing import Array, Dtype

THREADS = 256
LOADED = 16
"""Bytes that a thread of an element-wise kernel handles at once."""
ALIGNMENT = 16
"""Bytes on a multiple of which arrays begin that libraries are given, as their plans assume."""
CROWD = 8
"""Blocks for each multiprocessor: more would only wait."""
PIECES = 132
"""Partial sums of a column, at most: a block for each multiprocessor of a large GPU."""
NULL = 0
"""In place of an array that a kernel can do without."""
TYPES = {
    "f": ("-DREAL=float", "-DWIDE=float"),
    "d": ("-DREAL=double", "-DWIDE=double"),
    BFLOAT16: ("-DREAL=bfloat16", "-DWIDE=float"),
}
"""Those of activations, and of parameters and arithmetic, by the letter of the former."""
SOURCES = ("elementwise", "columns", "norms", "pooling", "conv", "vectors", "ragged", "packed")
SUMMED = 512
"""Threads of a block that sums columns up."""
ACROSS = 128
"""Columns of such a block, at most: its partial sums stand in 35 KiB of shared memory."""
TILES = 1 << 20
"""Tiles of columns, at most, that are summed up at once: 32 million columns."""

Number: TypeAlias = int | float | bool
Grid: TypeAlias = tuple[int, ...]
Arguments: TypeAlias = tuple[Array | int, ...]


@cache
def _texts() -> dict[str, str]:
    folder = files("mpinn.array") / "cuda_source"
    head = "".join((folder / name).read_text() for name in ("common.cuh", "activations.cuh"))
    return {name: head + (folder / f"{name}.cu").read_text() for name in SOURCES}


@cache
def _homes() -> dict[str, str]:
    """The source in which each kernel stands."""
    named = re.compile(r"__global__ void (?:__launch_bounds__\(\w+\) |BOUNDS )?(\w+)\(")
    return {name: home for home, text in _texts().items() for name in named.findall(text)}


@cache
def _module(home: str, char: str) -> Any:
    return cupy.RawModule(code=_texts()[home], options=("-std=c++17", "--fmad=false", *TYPES[char]))


@cache
def kernel(name: str, dtype: Dtype) -> Any:
    """The kernel for activations of ``dtype``: called with grid, block, arguments and bytes of shared memory."""
    return _module(_homes()[name], dtype.char).get_function(name)


@cache
def multiprocessors() -> int:
    """Of the current device."""
    return int(cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["multiProcessorCount"])


def spread_over(name: str, dtype: Dtype, count: int, *arguments: Array | Number, one: bool = False) -> None:
    """Launch an element-wise kernel over ``count`` elements, of which a thread handles ``one`` at once, or several."""
    if count:
        blocks = min(-(-count // (THREADS * (1 if one else LOADED // dtype.itemsize))), CROWD * multiprocessors())
        kernel(name, dtype)((blocks,), (THREADS,), arguments)


def launch(name: str, dtype: Dtype, grid: Grid, block: Grid, *arguments: Array | Number, doubles: int = 0) -> None:
    """Launch a kernel with ``doubles`` numbers of scratch in each block."""
    kernel(name, dtype)(grid, block, arguments, shared_mem=8 * doubles)


def address(array: Array) -> int:
    """Where an array of the device begins."""
    owner: Any = array
    return int(owner.data.ptr)


def placed(x: Array, pool: Pool) -> Array:
    """The array, or a copy that begins where a plan expects it: a micro-batch may begin anywhere in a batch."""
    if address(x) % ALIGNMENT == 0:
        return x
    copy = pool.empty(x.shape, x.dtype)
    np.copyto(copy, x)
    return copy


def power_of_two(count: int, least: int, most: int) -> int:
    """The smallest power of two that is not below ``count``, between two others."""
    return min(most, max(least, 1 << max(0, count - 1).bit_length()))


def rows_at_once(rows: int) -> int:
    """How many blocks work on rows, each on one of them at a time."""
    return min(rows, 2 * CROWD * multiprocessors())


@cache
def counters(device: int) -> Array:
    """Zeros, which every kernel that counts its blocks leaves behind; kernels of one stream may share them."""
    zeros: Array = cupy.zeros(TILES, np.uint32)
    return zeros


def sum_columns(name: str, matrix: Array, inputs: Arguments, outputs: Arguments, pool: Pool, *numbers: Number) -> None:
    """Launch a kernel that sums the rows of a matrix (rows, columns) up, each column by itself.

    Its arguments are the ``inputs``, the partial sums, the counters, the ``outputs``, rows, columns, lanes and the
    ``numbers``. All arrays of the shape of the matrix are among the inputs.
    """
    columns = matrix.shape[-1]
    rows = matrix.size // columns
    wide = LOADED // matrix.itemsize
    loose = columns % wide or any(address(x) % LOADED for x in inputs if not isinstance(x, int))
    lanes = 1 if loose else wide
    width = power_of_two(columns // lanes, 1, min(32, ACROSS // lanes))
    tiles, deep = -(-columns // (width * lanes)), SUMMED // width
    if tiles > TILES:
        raise OverflowError(f"{columns:,} columns are too many to be summed up")
    pieces = max(1, min(PIECES, -(-rows // (4 * deep))))
    partial = pool.empty((2, pieces, columns), np.dtype(np.float64))
    launch(
        name, matrix.dtype, (tiles, pieces), (width, deep), *inputs, partial, counters(cupy.cuda.Device().id), *outputs,
        rows, columns, lanes, *numbers, doubles=2 * lanes * width * (SUMMED // 32 + 1),
    )  # fmt: skip
