"""The libraries that read and write files."""

import h5py


def versions() -> dict[str, str]:
    """Versions of h5py and of the HDF5 library in it. One rank writes, whether or not that library has MPI."""
    parallel = "built with MPI, of which no use is made: " if h5py.get_config().mpi else ""
    return {"h5py": h5py.__version__, "HDF5": f"{h5py.version.hdf5_version}, {parallel}one rank writes"}
