"""Runs tests/device on the stand-in for CuPy: at once, and as late and in as odd an order as a device may."""

import importlib.util
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from emulation.child import HERE, passed

ORDERS = {"at once": {}, "late": {"MPINN_EMULATED_LATE": "1", "MPINN_EMULATED_ORDER": "reverse"}}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="kernels are compiled by g++")


@pytest.fixture(scope="module")
def in_each_order(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, "Future[int]"]]:
    """Both orders at once, each in one process with one thread: how many tests passed."""
    with ThreadPoolExecutor() as pool:
        yield {
            order: pool.submit(passed, "tests/device", tmp_path_factory.mktemp("device") / "report.xml", env=env)
            for order, env in ORDERS.items()
        }


@pytest.mark.parametrize("order", ORDERS)
def test_on_emulated_device(order: str, in_each_order: dict[str, "Future[int]"]) -> None:
    assert in_each_order[order].result() > 0


@pytest.mark.parametrize("order", ORDERS)
def test_the_stand_in_itself(order: str, tmp_path: Path) -> None:
    passed("tests/emulation/inside", tmp_path / "report.xml", env=ORDERS[order])


def test_the_stand_in_is_nowhere_else() -> None:
    found = importlib.util.find_spec("cupy")
    assert found is None or HERE not in Path(found.origin or "").parents
