"""cuBLASLt on the stand-in for a device: what the program uses of it, as nvmath-python 1.0 offers it.

It refuses what the documentation forbids, and what the library itself would answer with a status that a program might
take for "not supported", by `MisuseError`, which nobody catches.
"""

# ruff: noqa: N999

import ctypes
import enum
import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cupy._errors import refuse_in_capture
from cupy._streams import current_device, get_current_stream

NOT_SUPPORTED = 15
"""CUBLAS_STATUS_NOT_SUPPORTED."""
DEFAULT_ALIGNMENT = 256

matmul_algo_dtype = np.dtype([("data_", "<u8", (8,))])
matmul_heuristic_result_dtype = np.dtype(
    [("algo", matmul_algo_dtype), ("workspace_size", "<u8"), ("state", "<i4"), ("waves_count", "<f4"),
     ("reserved", "<i4", (4,))]
)  # fmt: skip


class Epilogue(enum.IntEnum):
    DEFAULT = 1
    RELU = 2
    BIAS = 4
    RELU_BIAS = 6
    BGRADA = 256


class ReductionScheme(enum.IntEnum):
    NONE = 0
    INPLACE = 1
    COMPUTE_TYPE = 2
    OUTPUT_TYPE = 4
    MASK = 7


class MatmulDescAttribute(enum.IntEnum):
    TRANSA = 3
    TRANSB = 4
    EPILOGUE = 7
    BIAS_POINTER = 8


class MatmulPreferenceAttribute(enum.IntEnum):
    MAX_WORKSPACE_BYTES = 1
    REDUCTION_SCHEME_MASK = 3
    MIN_ALIGNMENT_A_BYTES = 5
    MIN_ALIGNMENT_B_BYTES = 6
    MIN_ALIGNMENT_C_BYTES = 7
    MIN_ALIGNMENT_D_BYTES = 8


DESCRIBED: dict[int, Any] = {
    MatmulDescAttribute.TRANSA: np.int32,
    MatmulDescAttribute.TRANSB: np.int32,
    MatmulDescAttribute.EPILOGUE: np.uint32,
    MatmulDescAttribute.BIAS_POINTER: np.int64,
}
PREFERRED: dict[int, Any] = {
    name: np.uint64 if name == MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES else np.uint32
    for name in MatmulPreferenceAttribute
}
unsupported: set[Epilogue] = set()
"""Those for which the heuristics have nothing: tests put some in."""


class cuBLASLtError(Exception):  # noqa: N801
    """A status other than success."""

    def __init__(self, status: int):
        self.status = status
        super().__init__(f"cuBLASLt gives status {status}")


class MisuseError(Exception):
    """What the documentation forbids. The real package has no such error."""


@dataclass(eq=False)
class Handle:
    device: int


@dataclass(eq=False)
class Operation:
    compute: int
    scale: int
    attributes: dict[int, int] = field(default_factory=lambda: {MatmulDescAttribute.EPILOGUE: int(Epilogue.DEFAULT)})

    def __getitem__(self, name: int) -> int:
        return self.attributes.get(name, 0)


@dataclass(frozen=True)
class Layout:
    """Column by column."""

    type: int
    rows: int
    columns: int
    pitch: int


@dataclass(eq=False)
class Preference:
    attributes: dict[int, int] = field(default_factory=dict)


_numbers = itertools.count(0x7F00_0000_1000, 0x40)
_live: dict[int, Any] = {}


def _keep(made: Any) -> int:
    number = next(_numbers)
    _live[number] = made
    return number


def live(number: int, kind: Any) -> Any:
    """What a number stands for, if it is of a kind and has not been destroyed."""
    found = _live.get(int(number))
    if not isinstance(found, kind):
        raise MisuseError(f"{number:#x} is no {kind.__name__}, or one that has been destroyed")
    return found


def _drop(number: int, kind: Any) -> None:
    live(number, kind)
    del _live[int(number)]


def create() -> int:
    return _keep(Handle(current_device()))


def destroy(light_handle: int) -> None:
    _drop(light_handle, Handle)


def matmul_desc_create(compute_type: int, scale_type: int) -> int:
    return _keep(Operation(compute_type, scale_type))


def matmul_desc_destroy(matmul_desc: int) -> None:
    _drop(matmul_desc, Operation)


def get_matmul_desc_attribute_dtype(attr: int) -> Any:
    return DESCRIBED[attr]


def matmul_desc_set_attribute(matmul_desc: int, attr: int, buf: int, size_in_bytes: int) -> None:
    owner = live(matmul_desc, Operation)
    owner.attributes[attr] = _read(DESCRIBED, attr, buf, size_in_bytes)
    if attr == MatmulDescAttribute.EPILOGUE and owner[attr] not in [*Epilogue]:
        raise MisuseError(f"{owner[attr]} is no epilogue that the stand-in knows")


def matmul_preference_create() -> int:
    return _keep(Preference())


def matmul_preference_destroy(pref: int) -> None:
    _drop(pref, Preference)


def get_matmul_preference_attribute_dtype(attr: int) -> Any:
    return PREFERRED[attr]


def matmul_preference_set_attribute(pref: int, attr: int, buf: int, size_in_bytes: int) -> None:
    live(pref, Preference).attributes[attr] = _read(PREFERRED, attr, buf, size_in_bytes)


def _read(known: dict[int, Any], attr: int, buf: int, size: int) -> int:
    if attr not in known:
        raise MisuseError(f"{attr} is no attribute that the stand-in knows")
    dtype = np.dtype(known[attr])
    if not buf or size != dtype.itemsize:
        raise MisuseError(f"attribute {attr} has {dtype.itemsize} bytes, not {size}")
    return int(np.frombuffer(ctypes.string_at(buf, size), dtype)[0])


def matrix_layout_create(type: int, rows: int, cols: int, ld: int) -> int:
    if rows < 1 or cols < 1 or ld < rows:
        raise MisuseError(f"a matrix of {rows} rows and {cols} columns cannot have {ld} numbers from one to the next")
    return _keep(Layout(type, rows, cols, ld))


def matrix_layout_destroy(mat_layout: int) -> None:
    _drop(mat_layout, Layout)


class MatmulHeuristicResult:
    """Room for some results, whose values are arbitrary."""

    def __init__(self, size: int = 1):
        self._results = np.full(size * matmul_heuristic_result_dtype.itemsize, 0xA5, np.uint8).view(
            matmul_heuristic_result_dtype
        )
        self.ptr = self._results.ctypes.data

    def __len__(self) -> int:
        return len(self._results)

    @property
    def state(self) -> Any:
        return self._results["state"] if len(self) > 1 else int(self._results["state"][0])

    @property
    def workspace_size(self) -> Any:
        return self._results["workspace_size"] if len(self) > 1 else int(self._results["workspace_size"][0])


def matmul_algo_get_heuristic(
    light_handle: int, operation_desc: int, adesc: int, bdesc: int, cdesc: int, ddesc: int, preference: int,
    requested_algo_count: int, heuristic_results_array: int, return_algo_count: int,
) -> None:  # fmt: skip
    """Of the results the first cannot be run, as may be."""
    from ._products import Problem

    # "may load kernels"
    refuse_in_capture(get_current_stream())
    _on_device(light_handle)
    problem = Problem.of(live(operation_desc, Operation), *(live(d, Layout) for d in (adesc, bdesc, cdesc, ddesc)))
    preferred = live(preference, Preference).attributes
    if not problem.supported():
        raise cuBLASLtError(NOT_SUPPORTED)
    count = min(requested_algo_count, 3)
    room = (ctypes.c_ubyte * (count * matmul_heuristic_result_dtype.itemsize)).from_address(heuristic_results_array)
    results = np.frombuffer(room, matmul_heuristic_result_dtype)
    for place in range(count):
        results["state"][place] = 0 if place else NOT_SUPPORTED
        if place:
            needed = preferred.get(MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES, 0) // 2
            results["workspace_size"][place] = needed
            results["algo"]["data_"][place, 0] = _keep(Algorithm(problem, needed, _alignments(preferred)))
    ctypes.c_int.from_address(return_algo_count).value = count


@dataclass(frozen=True)
class Algorithm:
    """For a problem; ``alignments``: where A, B, C and D begin."""

    problem: Any
    workspace: int
    alignments: tuple[int, ...]


def _alignments(preferred: dict[int, int]) -> tuple[int, ...]:
    names = (MatmulPreferenceAttribute[f"MIN_ALIGNMENT_{matrix}_BYTES"] for matrix in "ABCD")
    return tuple(preferred.get(name, DEFAULT_ALIGNMENT) for name in names)


def _on_device(light_handle: int) -> None:
    device = live(light_handle, Handle).device
    if device != current_device():
        raise MisuseError(f"the handle is of device {device}, the current one is {current_device()}")


def matmul(
    light_handle: int, compute_desc: int, alpha: int, a: int, adesc: int, b: int, bdesc: int, beta: int, c: int,
    cdesc: int, d: int, ddesc: int, algo: int, workspace: int, workspace_size_in_bytes: int, stream: int,
) -> None:  # fmt: skip
    from ._products import Problem, run

    _on_device(light_handle)
    operation = live(compute_desc, Operation)
    problem = Problem.of(operation, *(live(desc, Layout) for desc in (adesc, bdesc, cdesc, ddesc)))
    chosen = live(int(np.frombuffer(ctypes.string_at(algo, 8), np.uint64)[0]), Algorithm)
    if chosen.problem != problem:
        raise MisuseError("the algorithm is one for another product")
    if workspace % DEFAULT_ALIGNMENT or workspace_size_in_bytes < chosen.workspace:
        raise MisuseError("the workspace is too small, or begins at an odd place")
    for name, place, alignment in zip("ABCD", (a, b, c, d), chosen.alignments, strict=True):
        if not place or place % alignment:
            raise MisuseError(f"{name} begins at {place:#x}, no multiple of {alignment}")
    bias = operation[MatmulDescAttribute.BIAS_POINTER]
    run(problem, (alpha, beta), (a, b, c, d), bias, (workspace, chosen.workspace), stream)
