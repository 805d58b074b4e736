"""A stand-in for CuPy, which is importable in child processes only: this package keeps its folder off the path."""
