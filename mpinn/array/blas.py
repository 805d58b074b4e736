"""Which of its kernels OpenBLAS takes: its own choice, but for one processor on which others are faster.

Zen 4 has the registers of AVX-512, and computes on one in two halves. OpenBLAS takes its kernels for AVX-512 there;
those for 256 bits, which it calls Haswell's, do the products of a training step in up to 15 % less time. OpenBLAS
0.3.34 crashes in products of float64 when it is asked for them on Zen 4, so it is asked only before that.

Imports nothing heavy: OpenBLAS chooses when NumPy is imported.
"""

import os
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "OPENBLAS_CORETYPE"
FASTER = "Haswell"
"""OpenBLAS's name for its kernels of 256 bits."""
BROKEN = (0, 3, 34)
"""The first version that cuts matrices for Zen 4 into blocks that these kernels have no room for (its issue 6021)."""
VERSION = r'"blas": \{\s*"name": "\S*openblas\S*",(?:\s*"found": .*,)?\s*"version": "(\d+)\.(\d+)\.(\d+)'
"""Where NumPy tells it."""
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
    if not environment.get(VARIABLE) and _is_zen_4(processors) and () < version_of_openblas() < BROKEN:
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


def version_of_openblas(numpy: Path | None = None) -> tuple[int, ...]:
    """That which NumPy was built with, such as (0, 3, 31), read before it is imported; () where it is not told.

    numpy: its folder, if not that of the installed one.
    """
    spec = find_spec("numpy") if numpy is None else None
    folder = Path(spec.origin).parent if spec and spec.origin else numpy
    try:
        text = (folder / "__config__.py").read_text() if folder else ""
    except OSError:
        return ()
    told = re.search(VERSION, text)
    return tuple(map(int, told.groups())) if told else ()


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
