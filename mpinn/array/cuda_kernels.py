"""CUDA kernels: compiled by NVRTC at their first use, kept by CuPy on disk, and launched on the current stream."""

import re
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

import cupy

from mpinn.array.typing import Array, Dtype

THREADS = 256
WIDE = 4
"""Elements that a thread of an element-wise kernel handles at once."""
CROWD = 8
"""Blocks for each multiprocessor: more would only wait."""
PIECES = 132
"""Partial sums of a column, at most: a block for each multiprocessor of a large GPU."""
NULL = 0
"""In place of an array that a kernel can do without."""
SOURCES = ("elementwise", "columns", "pooling", "conv", "vectors", "ragged", "packed")

Number: TypeAlias = int | float | bool
Grid: TypeAlias = tuple[int, ...]


@cache
def _texts() -> dict[str, str]:
    folder = files("mpinn.array") / "cuda_source"
    head = "".join((folder / name).read_text() for name in ("common.cuh", "activations.cuh"))
    return {name: head + (folder / f"{name}.cu").read_text() for name in SOURCES}


@cache
def _homes() -> dict[str, str]:
    """The source in which each kernel stands."""
    return {
        name: home
        for home, text in _texts().items()
        for name in re.findall(r"__global__ void (?:BOUNDS )?(\w+)\(", text)
    }


@cache
def _module(home: str, real: str) -> Any:
    return cupy.RawModule(code=_texts()[home], options=("-std=c++17", "--fmad=false", f"-DREAL={real}"))


@cache
def kernel(name: str, dtype: Dtype) -> Any:
    """The kernel for arrays of ``dtype``: called with grid, block, arguments and bytes of shared memory."""
    return _module(_homes()[name], {"f": "float", "d": "double"}[dtype.char]).get_function(name)


@cache
def multiprocessors() -> int:
    """Of the current device."""
    return int(cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["multiProcessorCount"])


def spread_over(name: str, dtype: Dtype, count: int, *arguments: Array | Number, wide: int = WIDE) -> None:
    """Launch an element-wise kernel over ``count`` elements, of which a thread handles about ``wide`` at once."""
    if count:
        blocks = min(-(-count // (THREADS * wide)), CROWD * multiprocessors())
        kernel(name, dtype)((blocks,), (THREADS,), arguments)


def launch(name: str, dtype: Dtype, grid: Grid, block: Grid, *arguments: Array | Number, doubles: int = 0) -> None:
    """Launch a kernel with ``doubles`` numbers of scratch in each block."""
    kernel(name, dtype)(grid, block, arguments, shared_mem=8 * doubles)


def address(array: Array) -> int:
    """Where an array of the device begins."""
    owner: Any = array
    return int(owner.data.ptr)


def power_of_two(count: int, least: int, most: int) -> int:
    """The smallest power of two that is not below ``count``, between two others."""
    return min(most, max(least, 1 << max(0, count - 1).bit_length()))


def rows_at_once(rows: int) -> int:
    """How many blocks work on rows, each on one of them at a time."""
    return min(rows, 2 * CROWD * multiprocessors())


class Columns:
    """How a matrix (rows, columns) is dealt to blocks that sum its rows up."""

    def __init__(self, rows: int, columns: int):
        self.rows, self.columns = rows, columns
        width = power_of_two(columns, 8, 32)
        self.block = (width, 512 // width)
        self.tiles = -(-columns // width)
        self.pieces = max(1, min(PIECES, -(-rows // (4 * self.block[1]))))

    def leave(self, name: str, dtype: Dtype, *arguments: Array | Number) -> None:
        """Launch the kernel that leaves partial sums."""
        launch(name, dtype, (self.tiles, self.pieces), self.block, *arguments, doubles=1024)

    def gather(self, name: str, dtype: Dtype, *arguments: Array | Number) -> None:
        """Launch the one that adds them up."""
        launch(name, dtype, (self.tiles,), self.block, *arguments, doubles=1024)
