"""Streams, memory and devices."""

from .._memory import Memory, MemoryPointer, PinnedMemoryPool, alloc_pinned_memory
from .._pools import MemoryPool, alloc, get_allocator, set_allocator, using_allocator
from .._streams import Device, Event, Graph, Stream, get_current_stream, get_elapsed_time
from . import compiler, driver, memory, runtime, stream


def is_available() -> bool:
    return runtime.device_count() > 0


def get_device_id() -> int:
    return runtime.getDevice()


__all__ = [
    "Device", "Event", "Graph", "Memory", "MemoryPointer", "MemoryPool", "PinnedMemoryPool", "Stream", "alloc",
    "alloc_pinned_memory", "compiler", "driver", "get_allocator", "get_current_stream", "get_device_id",
    "get_elapsed_time", "is_available", "memory", "runtime", "set_allocator", "stream", "using_allocator",
]  # fmt: skip
