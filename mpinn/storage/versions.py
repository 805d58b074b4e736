"""The libraries that read and write files."""

import h5py


def versions() -> dict[str, str]:
    """Versions of h5py and of the HDF5 library in it, and whether it can write from several ranks."""
    parallel = "parallel" if h5py.get_config().mpi else "one rank writes"
    return {"h5py": h5py.__version__, "HDF5": f"{h5py.version.hdf5_version}, {parallel}"}
