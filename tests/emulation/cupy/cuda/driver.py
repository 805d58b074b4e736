"""The driver's error."""

from .._errors import CUDADriverError

__all__ = ["CUDADriverError"]
