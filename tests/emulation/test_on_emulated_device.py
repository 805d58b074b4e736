"""Runs tests/device on the stand-in for CuPy: at once, and as late and in as odd an order as a device may.

One after the other, each in one process with one thread: other tests keep the other cores busy.
"""

import importlib.util
import shutil
from pathlib import Path

import pytest

from emulation.child import HERE, passed

ORDERS = {"at once": {}, "late": {"MPINN_EMULATED_LATE": "1", "MPINN_EMULATED_ORDER": "reverse"}}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="kernels are compiled by g++")


@pytest.mark.parametrize("order", ORDERS)
def test_on_emulated_device(order: str, tmp_path: Path) -> None:
    assert passed("tests/device", tmp_path / "report.xml", env=ORDERS[order]) > 0


@pytest.mark.parametrize("order", ORDERS)
def test_the_stand_in_itself(order: str, tmp_path: Path) -> None:
    passed("tests/emulation/inside", tmp_path / "report.xml", env=ORDERS[order])


def test_the_stand_in_is_nowhere_else() -> None:
    found = importlib.util.find_spec("cupy")
    assert found is None or HERE not in Path(found.origin or "").parents
