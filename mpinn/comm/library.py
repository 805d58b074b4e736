"""The MPI library, loaded as this program needs it."""

import warnings

import mpi4py

mpi4py.rc.thread_level = "serialized"
mpi4py.rc.finalize = False  # done by `mpi.end_together`: finalizing waits for others, for ever if one is gone
with warnings.catch_warnings():
    # It suspects a launcher of another MPI; `grid.connect` knows, and says so once.
    warnings.simplefilter("ignore", RuntimeWarning)
    from mpi4py import MPI

__all__ = ["MPI"]
