"""The allocator's error, and pools."""

from .._errors import OutOfMemoryError
from .._memory import Memory, MemoryPointer
from .._pools import MemoryPool, alloc, set_allocator, using_allocator

__all__ = ["Memory", "MemoryPointer", "MemoryPool", "OutOfMemoryError", "alloc", "set_allocator", "using_allocator"]
