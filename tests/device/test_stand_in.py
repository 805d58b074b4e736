"""Which CuPy the tests of this folder see."""

import os

import cupy


def test_the_stand_in_is_used_when_it_should_be() -> None:
    assert hasattr(cupy, "EMULATED") == bool(os.environ.get("MPINN_EMULATED"))


def test_there_is_a_device() -> None:
    assert cupy.cuda.runtime.getDeviceCount() > 0
    assert float(cupy.arange(4.0).sum()) == 6.0
