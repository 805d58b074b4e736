"""What work is given by whatever records it, and by whatever does not; see `mpinn.array.cuda_graph`."""

from collections.abc import Callable
from typing import Any, TypeAlias

from mpinn.array.pool import Pool
from mpinn.array.typing import Array

Path: TypeAlias = tuple[int, ...]
"""Of a layer."""
Keys: TypeAlias = Callable[[Path], Array]
"""Where the layer at a path finds its numbers."""
Numbers: TypeAlias = Callable[[Path], tuple[int, ...]]
"""What they are this time."""
Between: TypeAlias = Callable[[], None]
"""What the host does while the device is at the next graph."""
Cut: TypeAlias = Callable[[Callable[[], Between]], None]
"""Ends a graph; what it is given is called between the graphs, in their order, and says what the host then does."""
Work: TypeAlias = Callable[[tuple[Array, ...], Pool, Keys | None, Cut], Any]
"""From inputs, a pool, where layers find their numbers, and how to let the host do something, to what it leaves behind.

Where it is not recorded, the host's own numbers serve.
"""
