"""Which kernels a run computes with, and which accelerators there are."""

from types import ModuleType
from typing import Literal, TypeAlias

from mpinn.array import ops as plain

Setting: TypeAlias = Literal["auto", "plain", "compiled"]


def choose_kernels(setting: Setting) -> tuple[ModuleType, str]:
    """The module of kernels and the reason for it; never by timing, so that equal settings give equal numbers.

    Raises ImportError if they are to be compiled and numba can't be imported.
    """
    if setting == "plain":
        return plain, "plain NumPy: chosen"
    try:
        from mpinn.array import cpu
    except ImportError as error:
        if setting == "compiled":
            raise
        return plain, f"plain NumPy: numba can't be imported ({error})"
    return cpu, "compiled by numba" + (": chosen" if setting == "compiled" else "")


def describe_devices() -> list[str]:
    """One line for each GPU that CuPy finds: its name, memory and driver; none without CuPy or without a GPU."""
    try:
        from cupy.cuda import runtime
    except ImportError:
        return []
    try:
        count, driver = runtime.getDeviceCount(), runtime.driverGetVersion()
    except runtime.CUDARuntimeError:
        return []
    found = []
    for device in range(count):
        properties = runtime.getDeviceProperties(device)
        memory = properties["totalGlobalMem"] / 2**30
        driver_text = f"{driver // 1000}.{driver % 1000 // 10}"
        found.append(f"{properties['name'].decode()}, {memory:.0f} GiB, CUDA driver {driver_text}")
    return found
