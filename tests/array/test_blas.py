"""Which kernels OpenBLAS is asked for: on Zen 4 others than its own choice, unless the user has chosen."""

import platform
import re
from pathlib import Path

import pytest
from launch import alone

from mpinn.array import blas
from mpinn.array.blas import VARIABLE, asked_of_blas, settle_blas, version_of_openblas

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
from mpinn.array import blas
blas.version_of_openblas = lambda: (0, 3, 31)
blas.settle_blas(processors=Path(sys.argv[1]))
import numpy
path = re.search(r"(/\\S*openblas\\S*)", Path("/proc/self/maps").read_text())[1]
core = ctypes.CDLL(path).scipy_openblas_get_corename64_
core.restype = ctypes.c_char_p
print(core().decode())
"""
STARTED = f"""
import os, subprocess, sys
from pathlib import Path
from mpinn.array import blas
blas.version_of_openblas = lambda: (0, 3, 31)
blas.settle_blas(processors=Path(sys.argv[1]))
print("asked" if blas.asked_of_blas() else "", flush=True)
subprocess.run(["printenv", "{VARIABLE}"], env=os.environ)
"""


def processors(folder: Path, vendor: str, family: int, flags: str) -> Path:
    """A /proc/cpuinfo of two processors."""
    one = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nflags\t\t: {flags}\nbugs\t\t:\n\n"
    (folder / "cpuinfo").write_text(one * 2)
    return folder / "cpuinfo"


@pytest.fixture(autouse=True)
def _nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "ASKED", [])
    monkeypatch.setattr(blas, "version_of_openblas", lambda: (0, 3, 31))


def settled(environment: dict[str, str], place: Path) -> tuple[dict[str, str], str]:
    """What is put into the process, and what is said of it."""
    given: dict[str, str] = {}
    settle_blas(environment, place, given.__setitem__)
    return given, asked_of_blas(environment)


def test_zen_4_takes_the_kernels_for_256_bits_and_says_why(tmp_path: Path) -> None:
    told = "OpenBLAS's for Haswell asked for: on Zen 4 faster than AVX-512"
    assert settled({}, processors(tmp_path, *ZEN_4)) == ({VARIABLE: "Haswell"}, told)


@pytest.mark.parametrize("kind", OTHERS)
def test_all_others_are_left_to_openblas(kind: str, tmp_path: Path) -> None:
    assert settled({}, processors(tmp_path, *OTHERS[kind])) == ({}, "")


def test_nothing_is_said_of_another_blas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "blas_of_numpy", lambda: "mkl 2026.1")
    assert settled({}, processors(tmp_path, *ZEN_4)) == ({VARIABLE: "Haswell"}, "")


def test_a_machine_that_does_not_tell_is_left_alone(tmp_path: Path) -> None:
    assert settled({}, tmp_path / "none") == ({}, "")


@pytest.mark.parametrize("version", [(), (0, 3, 34), (0, 3, 35), (0, 4, 0)], ids=str)
def test_a_version_that_crashes_or_is_not_known_is_asked_for_nothing(
    version: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas, "version_of_openblas", lambda: version)
    assert settled({}, processors(tmp_path, *ZEN_4)) == ({}, "")


def test_the_version_is_read_without_numpy(tmp_path: Path) -> None:
    named = re.search(r"openblas (\d+\.\d+\.\d+)", blas.blas_of_numpy())
    assert version_of_openblas() == (tuple(map(int, named[1].split("."))) if named else ())
    program = (
        "import sys; from mpinn.array.blas import version_of_openblas as f; print(bool(f()), 'numpy' in sys.modules)"
    )
    assert alone("-c", program).stdout == f"{bool(version_of_openblas())} False\n"
    assert version_of_openblas(tmp_path) == ()
    (tmp_path / "__config__.py").write_text('"lapack": {"version": "0.3.31"}')
    assert version_of_openblas(tmp_path) == ()


def test_products_of_all_lengths_are_right_with_what_was_asked_for() -> None:
    """Some versions write beyond their stack where a sum is of 384 numbers or more."""
    program = (
        "import numpy as np\n"
        "for real in (np.float32, np.float64):\n"
        "    for k in (256, 384, 512, 1440, 4096):\n"
        "        assert (np.ones((64, k), real) @ np.ones((k, 8), real) == k).all()\n"
        "print('right')"
    )
    settle = "from mpinn.array.blas import settle_blas; settle_blas()\n"
    done = alone("-c", settle + program)
    assert (done.returncode, done.stdout) == (0, "right\n")


def test_what_the_user_has_chosen_stays(tmp_path: Path) -> None:
    told = "OpenBLAS's for SkylakeX asked for: OPENBLAS_CORETYPE"
    assert settled({VARIABLE: "SkylakeX"}, processors(tmp_path, *ZEN_4)) == ({}, told)


def test_programs_that_are_started_are_not_asked(tmp_path: Path) -> None:
    told = alone("-c", STARTED, str(processors(tmp_path, *ZEN_4)), env={VARIABLE: ""})
    assert (told.stdout, told.stderr) == ("asked\n\n", "")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="there are no such kernels")
@pytest.mark.skipif(not blas.blas_of_numpy().startswith("scipy-openblas"), reason="NumPy is not that of PyPI")
def test_openblas_takes_what_it_is_asked_for(tmp_path: Path) -> None:
    told = alone("-c", CORE, str(processors(tmp_path, *ZEN_4)), env={VARIABLE: ""})
    assert (told.stdout, told.stderr) == ("Haswell\n", "")
