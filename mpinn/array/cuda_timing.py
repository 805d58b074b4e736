"""Time and memory of a CUDA device, as benches need them; all on the current stream."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

import cupy

from mpinn.array.cuda_memory import synchronize
from mpinn.array.typing import Array

Operation: TypeAlias = Callable[[], object]


def seconds(operation: Operation, calls: int) -> float:
    """Seconds of the device for one call, by two events around ``calls`` of them that follow each other."""
    begun, ended = cupy.cuda.Event(), cupy.cuda.Event()
    begun.record()
    for _ in range(calls):
        operation()
    ended.record()
    ended.synchronize()
    return float(cupy.cuda.get_elapsed_time(begun, ended)) * 1e-3 / calls


def launch_seconds(operation: Operation, calls: int) -> float:
    """Seconds of the host for one call, begun on an idle device, whose work is not waited for."""
    synchronize()
    begun = perf_counter()
    for _ in range(calls):
        operation()
    taken = perf_counter() - begun
    synchronize()
    return taken / calls


@dataclass(frozen=True, eq=False)
class Recording:
    """Calls in one launch, and the memory that they work in."""

    graph: Any
    memory: Any

    def close(self) -> None:
        """Give the memory back, which a pool that dies with free blocks would not."""
        self.memory.free_all_blocks()

    def __call__(self) -> None:
        """Ask for all of them."""
        self.graph.launch(cupy.cuda.get_current_stream())


def recorded(operation: Operation, calls: int) -> Recording:
    """``calls`` calls, with no time of the host between them; the operation was called before."""
    memory, stream = cupy.cuda.MemoryPool(), cupy.cuda.get_current_stream()
    with cupy.cuda.using_allocator(memory.malloc):
        stream.begin_capture()
        try:
            for _ in range(calls):
                operation()
        finally:
            graph = stream.end_capture()
    return Recording(graph, memory)


def free_bytes() -> int:
    """Bytes of the device that no program holds, after this one has given back what no array uses."""
    synchronize()
    cupy.get_default_memory_pool().free_all_blocks()
    free: int = cupy.cuda.runtime.memGetInfo()[0]
    return free


def cache_bytes() -> int:
    """Of the device's second-level cache."""
    properties: dict[str, Any] = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return int(properties["l2CacheSize"])


def copy(into: Array, source: Array) -> None:
    """Copy an array of the device to another one without a kernel."""
    target: Any = into
    target.data.copy_from_device_async(source.data, source.nbytes, cupy.cuda.get_current_stream())
