"""Arrays of the CPU and of GPUs, and the kernels on them. Only here are CuPy and numba imported."""
