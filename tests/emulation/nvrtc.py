"""Compiles CUDA C by NVRTC itself, which needs no GPU, where a package like nvidia-cuda-nvrtc-cu12 is installed."""

import ctypes
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path


@cache
def _library() -> ctypes.CDLL | None:
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations or () if found else ():
        for path in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            return ctypes.CDLL(str(path))
    return None


def available() -> bool:
    """Whether there is an NVRTC."""
    return _library() is not None


def complaints(source: str, options: Sequence[str] = ("-std=c++17",), architecture: str = "sm_90") -> str:
    """What NVRTC says against a source; nothing if it compiles."""
    library = _library()
    assert library is not None
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    if library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None):
        return "no program"
    told = [option.encode() for option in (*options, f"--gpu-architecture={architecture}")]
    status = library.nvrtcCompileProgram(program, len(told), (ctypes.c_char_p * len(told))(*told))
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return f"{log.value.decode()} (status {status})" if status else ""
