"""What a product with an epilogue is, and how the host computes it."""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from cupy._memory import POISON, block_at
from cupy._streams import Stream

from .cublasLt import Epilogue, Layout, MatmulDescAttribute, MisuseError, Operation, unsupported

REALS = {0: np.dtype(np.float32), 1: np.dtype(np.float64)}
"""CUDA_R_32F and _64F."""
COMPUTED = {68: 0, 77: 0, 70: 1}
"""CUBLAS_COMPUTE_32F, _32F_FAST_TF32 and _64F -> the type of all matrices, of scalars and of the bias."""
TF32 = 77
BIASED = {Epilogue.BIAS, Epilogue.RELU_BIAS, Epilogue.BGRADA}
BIAS_ALIGNMENT = 16


@dataclass(frozen=True)
class Problem:
    """All but the addresses: D = op(A) op(B), m x n, over k."""

    compute: int
    scale: int
    turned: tuple[int, int]
    epilogue: int
    layouts: tuple[Layout, ...]

    @classmethod
    def of(cls, operation: Operation, *layouts: Layout) -> "Problem":
        """An error unless the matrices fit each other."""
        turned = operation[MatmulDescAttribute.TRANSA], operation[MatmulDescAttribute.TRANSB]
        a, b, c, d = layouts
        (m, k), (inner, n) = (
            (own.columns, own.rows) if turn else (own.rows, own.columns)
            for own, turn in zip((a, b), turned, strict=True)
        )
        if k != inner or {(own.rows, own.columns) for own in (c, d)} != {(m, n)}:
            raise MisuseError(f"matrices do not fit: {m} x {k}, {inner} x {n}, {c}, {d}")
        epilogue = operation[MatmulDescAttribute.EPILOGUE]
        if epilogue in BIASED and not operation[MatmulDescAttribute.BIAS_POINTER]:
            raise MisuseError(f"{Epilogue(epilogue).name} without a bias")
        return cls(operation.compute, operation.scale, turned, epilogue, layouts)

    def supported(self) -> bool:
        """Whether the heuristics have something."""
        same = {own.type for own in self.layouts} | {self.scale} == {COMPUTED.get(self.compute)}
        return same and self.epilogue not in unsupported and not (self.epilogue == Epilogue.BGRADA and self.turned[0])


def run(
    problem: Problem, scalars: tuple[int, int], places: tuple[int, ...], bias: int, workspace: tuple[int, int],
    stream: int,
) -> None:  # fmt: skip
    """Let the stream compute it."""
    real = REALS[problem.scale]
    factors = [np.frombuffer(ctypes.string_at(place, real.itemsize), real)[0] for place in scalars]
    if factors != [1, 0] or places[2] != places[3] or problem.layouts[2] != problem.layouts[3]:
        raise NotImplementedError("the stand-in computes D = A B alone, and takes D for C")
    a, b, _, d = (_matrix(place, layout) for place, layout in zip(places, problem.layouts, strict=True))
    used = [a, b, d]
    biased, written = problem.epilogue in BIASED, [d]
    if biased:
        if bias % BIAS_ALIGNMENT:
            raise MisuseError(f"the bias begins at {bias:#x}, no multiple of {BIAS_ALIGNMENT}")
        used.append(_matrix(bias, Layout(problem.scale, problem.layouts[3].rows, 1, problem.layouts[3].rows)))
        if problem.epilogue == Epilogue.BGRADA:
            written.append(used[-1])
    room = _bytes(*workspace)
    used.append(room)
    for one in written:
        if any(one is not other and np.may_share_memory(one, other) for other in used):
            raise MisuseError("what is written lies over what is read, or over the workspace")
    found = Stream.known.get(stream)
    if found is None:
        raise MisuseError(f"{stream:#x} is no stream")

    def work() -> None:
        room.fill(POISON)
        _compute(problem, a, b, used[3][:, 0] if biased else None, d)

    blocks = [block_at(place) for place in (*places[:2], places[3], workspace[0], *([bias] if biased else []))]
    found.submit(work, blocks)


def _compute(problem: Problem, a: Any, b: Any, bias: Any, d: Any) -> None:
    left, right = (x.T if turn else x for x, turn in zip((a, b), problem.turned, strict=True))
    if problem.compute == TF32:
        left, right = _rounded(left), _rounded(right)
    result = left @ right
    if problem.epilogue in (Epilogue.BIAS, Epilogue.RELU_BIAS):
        result += bias[:, None]
    if problem.epilogue in (Epilogue.RELU, Epilogue.RELU_BIAS):
        result = rectified(result)
    if problem.epilogue == Epilogue.BGRADA:
        bias[:] = left.sum(axis=1)
    d[...] = result


def rectified(x: Any) -> Any:
    """max(x, 0); of what is no number nothing is documented."""
    return np.maximum(x, 0)


def _rounded(x: Any) -> Any:
    """To the ten bits that TF32 has after the first."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    near = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), near.view(np.float32), x)


def _matrix(place: int, layout: Layout) -> Any:
    """A view of memory of the device, (rows, columns)."""
    real = REALS[layout.type]
    count = (layout.columns - 1) * layout.pitch + layout.rows
    numbers = _bytes(place, count * real.itemsize).view(real)
    strides = real.itemsize, layout.pitch * real.itemsize
    return np.lib.stride_tricks.as_strided(numbers, (layout.rows, layout.columns), strides)


def _bytes(place: int, size: int) -> Any:
    memory = block_at(place)
    if memory is None or place + size > memory.ptr + memory.size:
        raise MisuseError(f"{size} bytes at {place:#x} are not all of one block of the device's")
    start = memory.start + place - memory.ptr
    return memory.raw[start : start + size]
