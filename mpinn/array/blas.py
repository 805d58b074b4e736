"""Which of its kernels OpenBLAS takes: its own choice, but for one processor on which others are faster.

Zen 4 has the registers of AVX-512, and computes on one in two halves. OpenBLAS takes its kernels for AVX-512 there;
those for 256 bits, which it calls Haswell's, do the products of a training step in up to 15 % less time.

Imports nothing heavy: OpenBLAS chooses when NumPy is imported.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

VARIABLE = "OPENBLAS_CORETYPE"
FASTER = "Haswell"
"""OpenBLAS's name for its kernels of 256 bits."""
PROCESSORS = Path("/proc/cpuinfo")
ASKED: list[str] = []
"""What `settle_blas` has asked for."""


def settle_blas(
    environment: Mapping[str, str] = os.environ,
    processors: Path = PROCESSORS,
    put: Callable[[str, str], None] = os.putenv,
) -> None:
    """Ask for the faster kernels before NumPy is imported, unless the user has asked for some.

    Only of this process: `os.environ`, which other programs are given, maybe on other machines, stays as it is.
    """
    if not environment.get(VARIABLE) and _is_zen_4(processors):
        put(VARIABLE, FASTER)
        ASKED[:] = [FASTER]


def asked_of_blas(environment: Mapping[str, str] = os.environ) -> str:
    """Which kernels OpenBLAS was asked for, and why; nothing where they are its own or NumPy has another BLAS."""
    if "openblas" not in blas_of_numpy():
        return ""
    if named := environment.get(VARIABLE):
        return f"OpenBLAS's for {named} asked for: {VARIABLE}"
    return f"OpenBLAS's for {FASTER} asked for: on Zen 4 faster than AVX-512" if ASKED else ""


def blas_of_numpy() -> str:
    """Its name and version."""
    import numpy as np

    found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{found.get('name')} {found.get('version', '')}".strip()


def _is_zen_4(processors: Path) -> bool:
    """Whether the first processor is of AMD's family 19h with AVX-512, which Zen 3, of the same family, has not."""
    try:
        with processors.open() as file:
            text = file.read(1 << 14).partition("\n\n")[0]
    except OSError:
        return False
    told = dict(re.findall(r"^(.*?)\s*: (.*)$", text, re.MULTILINE))
    family, flags = told.get("cpu family"), told.get("flags", "").split()
    return told.get("vendor_id") == "AuthenticAMD" and family == "25" and "avx512f" in flags
