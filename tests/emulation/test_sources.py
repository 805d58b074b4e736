"""The kernels are compiled by NVRTC itself, which is stricter than what compiles them for the stand-in."""

import platform

import pytest

from emulation.child import emulated

COMPILE = """
from mpinn.array.cuda_kernels import SOURCES, TYPES, _texts
import sys
sys.path.insert(0, "tests/emulation")
import nvrtc
assert nvrtc.available()
for name in SOURCES:
    for char, types in TYPES.items():
        if char == "E" and name in ("ragged", "packed"):
            continue  # populations are not trained in bfloat16
        options = ("-std=c++17", "--fmad=false", "-ftz=true", *types)
        if said := nvrtc.complaints(_texts()[name], options, "sm_80"):
            print(name, types, said)
broken = _texts()["vectors"].replace("w - g * pace", "w - g * pacee")
print("end", bool(nvrtc.complaints(broken, options, "sm_80")))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the package of NVRTC is for x86-64")
def test_nvrtc_takes_every_kernel() -> None:
    done = emulated(["-c", COMPILE], 300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["end", "True"]
