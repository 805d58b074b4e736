"""The errors of CUDA's runtime and of CuPy's compiler."""

from typing import Any

CODES = {
    "cudaErrorInvalidValue": (1, "invalid argument"),
    "cudaErrorMemoryAllocation": (2, "out of memory"),
    "cudaErrorInvalidDevice": (101, "invalid device ordinal"),
    "cudaErrorNoDevice": (100, "no CUDA-capable device is detected"),
    "cudaErrorIllegalAddress": (700, "an illegal memory access was encountered"),
    "cudaErrorStreamCaptureUnsupported": (900, "operation not permitted when stream is capturing"),
    "cudaErrorStreamCaptureUnmatched": (903, "capture was not initiated in this stream"),
    "cudaErrorStreamCaptureUnjoined": (904, "capturing stream has unjoined work"),
    "cudaErrorStreamCaptureImplicit": (906, "operation would make the legacy stream depend on a capturing stream"),
}  # fmt: skip


class CUDARuntimeError(RuntimeError):
    def __init__(self, name: str, more: str = ""):
        self.status, text = CODES[name]
        super().__init__(f"{name}: {text}{more and f' ({more})'}")


class OutOfMemoryError(MemoryError):
    pass


class CompileException(Exception):  # noqa: N818
    pass


class CUDADriverError(RuntimeError):
    pass


def refuse_in_capture(stream: Any) -> None:
    if stream.is_capturing():
        raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported")
