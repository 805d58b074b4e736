"""The compiler's error."""

from .._errors import CompileException

__all__ = ["CompileException"]
