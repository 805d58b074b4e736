"""Which kernels OpenBLAS is asked for: on Zen 4 others than its own choice, unless the user has chosen."""

import platform
from pathlib import Path

import pytest
from launch import alone

from mpinn.array.blas import VARIABLE, asked_of_blas, settle_blas

ZEN_4 = ("AuthenticAMD", 25, "fpu sse2 avx2 avx512f avx512_bf16")
OTHERS = {
    "Zen 3": ("AuthenticAMD", 25, "fpu sse2 avx2 vaes"),
    "Zen 5": ("AuthenticAMD", 26, "fpu sse2 avx2 avx512f avx512_vp2intersect"),
    "Sapphire Rapids": ("GenuineIntel", 6, "fpu sse2 avx2 avx512f avx512_bf16"),
    "another of family 25": ("HygonGenuine", 25, "fpu sse2 avx2 avx512f"),
}
CORE = """
import ctypes, re, sys
from pathlib import Path
from mpinn.array.blas import settle_blas
settle_blas(processors=Path(sys.argv[1]))
import numpy
path = re.search(r"(/\\S*openblas\\S*)", Path("/proc/self/maps").read_text())[1]
core = ctypes.CDLL(path).scipy_openblas_get_corename64_
core.restype = ctypes.c_char_p
print(core().decode())
"""


def processors(folder: Path, vendor: str, family: int, flags: str) -> Path:
    """A /proc/cpuinfo of two processors."""
    one = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nflags\t\t: {flags}\nbugs\t\t:\n\n"
    (folder / "cpuinfo").write_text(one * 2)
    return folder / "cpuinfo"


def test_zen_4_takes_the_kernels_for_256_bits_and_says_why(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    settle_blas(environment, processors(tmp_path, *ZEN_4))
    assert environment == {VARIABLE: "Haswell"}
    told = asked_of_blas(environment, tmp_path / "cpuinfo")
    assert told == "OpenBLAS's for Haswell: Zen 4 computes on 512 bits in two halves"


@pytest.mark.parametrize("kind", OTHERS)
def test_all_others_are_left_to_openblas(kind: str, tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    settle_blas(environment, processors(tmp_path, *OTHERS[kind]))
    assert environment == {}
    assert asked_of_blas(environment, tmp_path / "cpuinfo") == ""


def test_a_machine_that_does_not_tell_is_left_alone(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    settle_blas(environment, tmp_path / "none")
    assert environment == {}


def test_what_the_user_has_chosen_stays(tmp_path: Path) -> None:
    environment = {VARIABLE: "SkylakeX"}
    settle_blas(environment, processors(tmp_path, *ZEN_4))
    assert environment == {VARIABLE: "SkylakeX"}
    assert asked_of_blas(environment, tmp_path / "cpuinfo") == "OpenBLAS's for SkylakeX: OPENBLAS_CORETYPE"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="there are no such kernels")
def test_openblas_takes_what_it_is_asked_for(tmp_path: Path) -> None:
    told = alone("-c", CORE, str(processors(tmp_path, *ZEN_4)), env={VARIABLE: ""})
    assert (told.stdout, told.stderr) == ("Haswell\n", "")
