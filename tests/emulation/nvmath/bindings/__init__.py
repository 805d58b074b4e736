"""Bindings to libraries of CUDA: here, to one that works on the stand-in for CuPy beside this package."""
