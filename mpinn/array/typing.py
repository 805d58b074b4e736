"""Types that the whole program shares: arrays of the device in use, shapes, and trees of named arrays."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""A NumPy array, or a CuPy array, which obeys the same functions through NumPy's dispatch protocols."""
Shape: TypeAlias = tuple[int, ...]
"""The shape of one sample or of one parameter; never with a batch axis unless a docstring says so."""
Dtype: TypeAlias = np.dtype[Any]

Shapes: TypeAlias = "Mapping[str, Shape | Shapes]"
"""A tree of named shapes: what a layer declares."""
Views: TypeAlias = "Mapping[str, Array | Views]"
"""The same tree with a view into a flat vector at every leaf. Typed loosely at the point of use: see `leaf`."""
