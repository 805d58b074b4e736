"""Five ways to train neural networks in parallel, and their combinations, with NumPy/CuPy, MPI and HDF5."""

__version__ = "0.1.0"
