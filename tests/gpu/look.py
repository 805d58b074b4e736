"""What there is on a machine with a GPU; the exit code is 2 where CuPy finds none.

Whatever else is missing or wrong is said in a line, and what does not need it is still checked.
"""

import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

NEEDED = ("numpy", "h5py", "mpi4py", "msgspec", "rich", "tomli_w", "typer", "pytest")
"""What programs or tests cannot do without."""
USED = ("ml_dtypes", "numba", "nvmath", "torch")
"""What is not done without: bfloat16, compiled kernels of the host, dense layers by cuBLASLt, and comparisons."""
PACKAGES = {"nvmath": "nvmath-python", "tomli_w": "tomli-w"}
"""What a module is called in an index, where that is something else."""


def devices() -> str:
    """One for each line."""
    from mpinn.array.device import describe_devices

    return "\n".join(describe_devices())


def versions() -> str:
    """Of all that is used of packages, and what is missing."""
    found = [f"Python {platform.python_version()}"]
    for name in (*NEEDED, *USED):
        with suppress(metadata.PackageNotFoundError):
            package = PACKAGES.get(name, name)
            found.append(f"{package} {metadata.version(package)}")
    if missing := [PACKAGES.get(name, name) for name in (*NEEDED, *USED) if find_spec(name) is None]:
        found.append(f"MISSING: {', '.join(missing)}")
    return ", ".join(found)


def cupy() -> str:
    """Its version, and that of CUDA."""
    from cupy.cuda import runtime

    return f"CuPy {import_module('cupy').__version__} with CUDA {runtime.runtimeGetVersion()}"


def cudnn() -> str:
    """Its version."""
    from mpinn.array.cuda_conv import frontend

    found = frontend()
    return "cuDNN is missing: convolutions will be slow" if found is None else f"cuDNN {found.backend_version()}"


def dense() -> str:
    """By what dense layers are computed."""
    from mpinn.array.cuda_epilogues import said

    return f"dense layers {said(tf32=False)}"


def nccl() -> str:
    """Its version."""
    from mpinn.array.cuda_nccl import library

    return f"NCCL {library().get_version()}"


def mpi() -> str:
    """The library that mpi4py finds."""
    from mpi4py import MPI

    return MPI.Get_library_version().splitlines()[0].strip("\0 ")


def tell(what: Callable[[], str]) -> bool:
    """Print it, or why it cannot be told."""
    try:
        print(what(), flush=True)
    except Exception as error:
        print(f"{what.__name__}: {type(error).__name__}: {error}", flush=True)
        return False
    return True


def main() -> int:
    """The exit code."""
    from mpinn.array.device import count_devices

    count, why = count_devices()
    if not count:
        print(why)
        return 2
    for what in (devices, versions, cupy, cudnn, dense, nccl, mpi):
        tell(what)
    return 0


if __name__ == "__main__":
    sys.exit(main())
