"""Which of its kernels OpenBLAS takes: its own choice, but for one processor on which others are faster.

Zen 4 has the registers of AVX-512, and computes on one in two halves. OpenBLAS takes its kernels for AVX-512 there;
those for 256 bits, which it calls Haswell's, do the products of a training step in up to 15 % less time.

Imports nothing heavy: OpenBLAS chooses when NumPy is imported.
"""

import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

VARIABLE = "OPENBLAS_CORETYPE"
WIDE = "Haswell"
PROCESSORS = Path("/proc/cpuinfo")


def settle_blas(environment: MutableMapping[str, str] = os.environ, processors: Path = PROCESSORS) -> None:
    """Ask for the faster kernels before NumPy is imported, unless the user has asked for some."""
    if not environment.get(VARIABLE) and _is_zen_4(processors):
        environment[VARIABLE] = WIDE


def asked_of_blas(environment: Mapping[str, str] = os.environ, processors: Path = PROCESSORS) -> str:
    """Which kernels OpenBLAS was asked for, and why; nothing where they are its own choice."""
    asked = environment.get(VARIABLE, "")
    if not asked:
        return ""
    why = "Zen 4 computes on 512 bits in two halves" if (asked, _is_zen_4(processors)) == (WIDE, True) else VARIABLE
    return f"OpenBLAS's for {asked}: {why}"


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
