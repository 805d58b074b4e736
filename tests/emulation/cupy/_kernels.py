"""CUDA C at run time: compiled for the host, with arguments as CuPy passes them, checked where a device would not."""

import struct
from functools import cached_property
from typing import Any

import numpy as np
from cuda_emulator import (
    FIRST_SHARED,
    MOST_SHARED,
    MOST_THREADS,
    CompileError,
    Kernel,
    LaunchError,
    compiled,
)

from ._array import ndarray
from ._errors import CompileException, CUDADriverError, CUDARuntimeError
from ._memory import Guards, Memory, block_at, pinned_at
from ._streams import current_device, get_current_stream

MOST_BLOCKS = ((1 << 31) - 1, 65535, 65535)


class RawKernel:
    def __init__(self, code: str, name: str, options: tuple[str, ...] = (), backend: str = "nvrtc", **_: Any):
        self.name = name
        self._code, self._options = code, tuple(options)
        self.max_dynamic_shared_size_bytes = FIRST_SHARED

    @cached_property
    def kernel(self) -> Kernel:
        try:
            return compiled(self._code, self._options).kernel(self.name)
        except CompileError as error:
            raise CompileException(str(error)) from None
        except KeyError:
            raise CUDADriverError("CUDA_ERROR_NOT_FOUND: named symbol not found") from None

    def compile(self, log_stream: Any = None) -> None:
        _ = self.kernel

    @property
    def max_threads_per_block(self) -> int:
        return MOST_THREADS

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        """Launch it on the current stream."""
        self._check_launch(grid, block, shared_mem)
        kernel = self.kernel
        if len(args) != len(kernel.parameters):
            raise TypeError(f"kernel {self.name} has {len(kernel.parameters)} parameters, got {len(args)} arguments")
        words, places, blocks = [], [], []
        for place, (value, kind) in enumerate(zip(args, kernel.parameters, strict=True)):
            where = f"argument {place} of kernel {self.name}"
            words.append(packed(value, kind, where))
            memory = value.data.mem if isinstance(value, ndarray) else None
            memory = memory or (_block_of(value, where) if kind[0] == "*" else None)
            if memory is not None:
                places.append(f"argument {place}, a block of {memory.size} bytes")
                blocks.append(memory)
        guards = Guards(blocks)

        def run() -> None:
            for which in guards.run(lambda: kernel.launch(grid, block, words, shared_mem)):
                raise LaunchError(f"kernel {self.name} wrote out of bounds of {places[which]}")

        get_current_stream().submit(run, blocks)

    def _check_launch(self, grid: Any, block: Any, shared_mem: int) -> None:
        sizes = (*grid, *block)
        three = 1 <= len(grid) <= 3 and 1 <= len(block) <= 3
        few = np.prod(block) <= MOST_THREADS and all(n <= most for n, most in zip(grid, MOST_BLOCKS, strict=False))
        limit = min(self.max_dynamic_shared_size_bytes, MOST_SHARED)
        if not three or min(sizes) < 1 or not few or shared_mem > limit or (len(block) == 3 and block[2] > 64):
            raise CUDADriverError(
                f"CUDA_ERROR_INVALID_VALUE: invalid argument (kernel {self.name}, grid {grid}, block {block}, "
                f"{shared_mem} bytes of shared memory, {limit} allowed)"
            )


def packed(value: Any, kind: str, where: str) -> bytes:
    """The bytes of an argument as CuPy passes it; TypeError if the kernel would read them as something else."""
    if isinstance(value, ndarray):
        if value.data.device_id != current_device():
            raise ValueError(f"{where} is an array of device {value.data.device_id}, not {current_device()}")
        _check_pointer(value, kind, where)
        return struct.pack("Q", value.data.ptr)
    if isinstance(value, (bool, np.bool_)):
        given, word = "b1", struct.pack("?", bool(value))
    elif isinstance(value, int):
        given, word = "i8", struct.pack("q", value) if value < 1 << 63 else struct.pack("Q", value)
    elif isinstance(value, float) and not isinstance(value, np.generic):
        given, word = "f8", struct.pack("d", value)
    elif isinstance(value, np.generic):
        given, word = f"{value.dtype.kind}{value.dtype.itemsize}", value.tobytes()
    else:
        raise TypeError(f"{where}: unsupported type {type(value)}")
    if not _fits(given, "u8" if kind[0] == "*" else kind):
        raise TypeError(f"{where} is passed as {given}, but declared as {kind}")
    return word


def _fits(given: str, declared: str) -> bool:
    integers = "iu"
    return given == declared or (given[0] in integers and declared[0] in integers and given[1:] == declared[1:])


def _check_pointer(array: ndarray, kind: str, where: str) -> None:
    if kind[0] != "*":
        raise TypeError(f"{where} is an array, but declared as {kind}")
    target, own = kind[1:], f"{array.dtype.kind}{array.dtype.itemsize}"
    bytes_both = target[1:] == own[1:] == "1"
    if target != "?" and not _fits(own, target) and not bytes_both:
        raise TypeError(f"{where} is an array of {array.dtype}, but declared as a pointer to {target}")


def _block_of(value: Any, where: str) -> Memory | None:
    """The block of an address; null and pinned memory of the host have none."""
    address = int(value)
    if not address or pinned_at(address):
        return None
    memory = block_at(address)
    if memory is None:
        raise CUDARuntimeError("cudaErrorIllegalAddress", f"{where}: {address:#x}")
    return memory


class RawModule:
    def __init__(
        self, code: str | None = None, *, path: str | None = None, options: tuple[str, ...] = (),
        backend: str = "nvrtc", name_expressions: Any = None, **_: Any,
    ):  # fmt: skip
        if code is None or path is not None or name_expressions:
            raise NotImplementedError("the stand-in compiles CUDA C with names of C only")
        self._code, self._options = code, tuple(options)
        self._kernels: dict[str, RawKernel] = {}

    def compile(self, log_stream: Any = None) -> None:
        try:
            compiled(self._code, self._options)
        except CompileError as error:
            raise CompileException(str(error)) from None

    def get_function(self, name: str) -> RawKernel:
        kernel = self._kernels.get(name)
        if kernel is None:
            kernel = self._kernels[name] = RawKernel(self._code, name, self._options)
            kernel.compile()
        return kernel
