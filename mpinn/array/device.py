"""Which device and which kernels a run computes with, and which accelerators there are."""

from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal, TypeAlias

from mpinn.array import ops as plain
from mpinn.array.blas import asked_of_blas
from mpinn.array.cupy_cache import settle_cache
from mpinn.errors import InputError

Setting: TypeAlias = Literal["auto", "plain", "compiled"]
Where: TypeAlias = Literal["auto", "cpu", "gpu"]
TF32_SAID = {True: "float32 is multiplied as TF32", False: "float32 is multiplied as float32"}
STREAMS: dict[int, Any] = {}
"""That on which each device computes, kept: CuPy forgets a stream that nobody has."""
BF16_SAID = "activations are stored and multiplied as bfloat16"


@dataclass(frozen=True, eq=False)
class Device:
    """What a rank computes with: ``kernels`` are `mpinn.array.ops`, or a module with twins of the same names.

    ``name``, ``bus`` and ``uuid`` of a GPU, empty on the host: two ranks of a machine with one bus share a GPU, and so
    do ranks with one uuid, which CuPy cuts at a zero, wherever they are. ``memory`` is what a transport
    must know, None for the host's. ``said``: the choice and the reason for it.
    """

    kernels: ModuleType
    said: str
    name: str = ""
    bus: str = ""
    uuid: str = ""
    memory: Any = None


def choose_device(where: Where, kernels: Setting, local_rank: int, tf32: bool = False, bf16: bool = False) -> Device:
    """The device of a rank, which is the ``local_rank``-th on its machine, made the current one of this thread.

    Never by timing, so that equal settings give equal numbers. Raises InputError if a GPU is wanted, or needed for
    ``bf16``, and there is none, or if kernels are to be compiled and cannot be.
    """
    why = "chosen"
    if where != "cpu":
        count, why = count_devices()
        if count:
            return _gpu(local_rank % count, count, tf32, bf16)
        if where == "gpu":
            raise InputError("run.device", f"gpu: {why}; choose cpu, or auto for a GPU where there is one")
    check_bf16(bf16, where, why)
    try:
        module, said = choose_kernels(kernels)
    except ImportError as error:
        raise InputError("run.kernels", f"compiled: {error}") from None
    return Device(module, "; ".join(filter(None, (f"cpu: {why}", f"kernels {said}", asked_of_blas()))))


def check_bf16(wanted: bool, where: Where, why: str) -> None:
    """Raise InputError if bfloat16 is wanted of the host; ``why`` it computes."""
    if wanted:
        said = "run.device is cpu" if where == "cpu" else why
        raise InputError("run.bf16", f"only a GPU computes in bfloat16: {said}")


def count_devices() -> tuple[int, str]:
    """How many GPUs CuPy finds; if none, why."""
    if why := _missing():
        return 0, why
    from cupy.cuda import runtime

    try:
        count = int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        return 0, f"no GPU ({error})"
    return count, "" if count else "no GPU is visible"


@cache
def _missing() -> str:
    """Why CuPy cannot be imported, if so: asked once, since a package that has failed may fail otherwise next time."""
    settle_cache()
    try:
        import cupy.cuda  # noqa: F401
    except ModuleNotFoundError:
        return "CuPy is not installed"
    except ImportError as error:
        return f"CuPy cannot be imported ({error})"
    except OSError as error:
        where = f" {str(error.filename)!r}" if error.filename else ""
        wrong = f"it cannot write{where}: {error.strerror or error}"
        return f"CuPy cannot be imported ({wrong}; let CUPY_CACHE_DIR name a folder that can be written)"
    return ""


def _gpu(index: int, count: int, tf32: bool, bf16: bool) -> Device:
    import cupy

    from mpinn.array import cuda, cuda_conv, cuda_epilogues
    from mpinn.array.cuda_kernels import counters
    from mpinn.array.cuda_memory import CudaMemory

    cupy.cuda.Device(index).use()
    # a stream of its own can be recorded, which the default one cannot, and no other stream waits for it
    stream = STREAMS.setdefault(index, cupy.cuda.Stream(non_blocking=True))
    stream.use()
    cuda.Choices.tf32 = tf32
    counters(index)
    properties = cupy.cuda.runtime.getDeviceProperties(index)
    name = properties["name"].decode()
    bus = f"{properties['pciDomainID']:x}:{properties['pciBusID']:x}:{properties['pciDeviceID']:x}"
    convolutions = "by cuDNN" if cuda_conv.frontend() else "by kernels of our own, which are slow: cuDNN is missing"
    # none of bfloat16 is by cuBLASLt
    said = BF16_SAID if bf16 else f"{TF32_SAID[tf32]}; dense layers {cuda_epilogues.said(tf32)}"
    said = f"gpu {index} of {count}, {name}; {said}; convolutions {convolutions}"
    said = "; ".join(filter(None, (said, settle_cache())))
    return Device(cuda, said, name, bus, properties["uuid"].hex(), CudaMemory())


def open_nccl(device: Device, machine: int) -> tuple[Any, str]:
    """NCCL on a device, see `mpinn.comm.group.Nccl`, and its version; raises InputError where there is none.

    machine: a number that is the same for the ranks of one machine.
    """
    if device.memory is None:
        raise InputError("run.collectives", f"nccl: only GPUs have it, and the device is {device.said}; choose mpi")
    from mpinn.array.cuda_nccl import CudaNccl

    try:
        nccl = CudaNccl(device.memory, machine)
    except ImportError as error:
        raise InputError("run.collectives", f"nccl: {error}; choose mpi") from None
    return nccl, nccl.version


def choose_kernels(setting: Setting) -> tuple[ModuleType, str]:
    """The module of kernels for the host and the reason for it; never by timing.

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
    count, _ = count_devices()
    if not count:
        return []
    from cupy.cuda import runtime

    driver, found = runtime.driverGetVersion(), []
    for device in range(count):
        properties = runtime.getDeviceProperties(device)
        memory = properties["totalGlobalMem"] / 2**30
        driver_text = f"{driver // 1000}.{driver % 1000 // 10}"
        found.append(f"{properties['name'].decode()}, {memory:.0f} GiB, CUDA driver {driver_text}")
    return found
