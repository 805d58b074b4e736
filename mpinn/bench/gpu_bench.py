"""What is measured of a kernel on a GPU: a call, the arrays that it works on, and what it must do at least."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from mpinn.array.pool import Pool
from mpinn.array.typing import Array, Dtype
from mpinn.bench.gpu_roofline import Demand, random

SINGLE = np.dtype(np.float32)

Call: TypeAlias = Callable[[], object]


@dataclass(frozen=True, eq=False)
class Maker:
    """Makes arrays on the device, and lends the kernels its buffers; activations are of a type of their own."""

    ops: Any
    pool: Pool
    dtype: Dtype

    def activations(self, *shape: int) -> Array:
        """Normal numbers."""
        return random(shape, self.ops, self.dtype)

    def parameters(self, *shape: int) -> Array:
        """Normal numbers."""
        return random(shape, self.ops, SINGLE)

    def zeros(self, *shape: int) -> Array:
        """Zeros in the place of parameters."""
        found: Array = self.ops.LIBRARY.zeros(shape, SINGLE)
        return found


@dataclass(frozen=True, eq=False)
class Bench:
    """A kernel at a size: ``make`` makes arrays and gives what works with them."""

    kernel: str
    size: str
    demand: Demand
    make: Callable[[Maker], Call]
    precision: str = "float32"
