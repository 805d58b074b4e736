"""Counts what the children under mpirun tested, so that the closing lines tell of all tests, and shares out the files.

With ``pytest -n auto`` each process takes whole files, those first that take minutes.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from crew import Crews
from launch import has_ulfm, kill_what_is_left, open_mpi

PASSED = pytest.StashKey[dict[int, int]]()
LEFT_OUT = pytest.StashKey[int]()
LONGEST = ("test_under_mpirun.py", "test_on_emulated_device.py", "test_messages_of_devices.py", "test_slurm.py")
"""Files of tests that take longest; many of the others wait more than they compute."""


def pytest_configure(config: pytest.Config) -> None:
    # that of the terminal in which the tests run
    os.environ.pop("COLUMNS", None)
    config.stash[PASSED] = {}
    config.stash[LEFT_OUT] = 0
    config.addinivalue_line("markers", "ulfm: runs under an Open MPI that lets ranks survive, version 5 or later")
    config.addinivalue_line("markers", "open_mpi: runs under Open MPI, where there is one beside MPICH")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without an Open MPI its tests are not there at all, and the closing lines say so."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    missing = [*(["open_mpi"] if open_mpi() is None else []), *([] if has_ulfm() else ["ulfm"])]
    if missing:
        left_out = [item for item in items if any(map(item.get_closest_marker, missing))]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
        config.stash[LEFT_OUT] = len(left_out)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No job outlives its test, however that ends."""
    yield
    kill_what_is_left()


@pytest.fixture
def under_mpirun(request: pytest.FixtureRequest) -> dict[int, int]:
    """Number of ranks -> number of tests that passed on all of them."""
    return request.config.stash[PASSED]


@pytest.fixture(scope="module")
def crews() -> Iterator[Crews]:
    """Ranks that do the commands of all tests of a module that ask them."""
    with ExitStack() as stack:
        yield Crews(stack)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process more than there are cores, and a file at a time for each."""
    config.option.dist, config.option.loadscopereorder = "loadfile", False
    return len(os.sched_getaffinity(0)) + 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that prints the closing lines."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["counted"] = (config.stash[PASSED], config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what one of several processes has counted; all of them leave out the same."""
    passed, left_out = getattr(node, "workeroutput", {}).get("counted", ({}, 0))
    node.config.stash[PASSED].update(passed)
    node.config.stash[LEFT_OUT] = max(left_out, node.config.stash[LEFT_OUT])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    passed = config.stash[PASSED]
    if passed:
        counts = ", ".join(
            f"{count} on {ranks} rank{'s' if ranks > 1 else ''}" for ranks, count in sorted(passed.items())
        )
        terminalreporter.write_sep("-", "under mpirun")
        terminalreporter.write_line(f"{sum(passed.values())} passed: {counts}")
    if config.stash[LEFT_OUT]:
        why = "no ompi_info on PATH, and MPINN_TEST_OPENMPI names no folder"
        if open_mpi() is not None:
            why = f"that of {open_mpi()} is older than version 5, which has ULFM"
        told = f"{config.stash[LEFT_OUT]} tests deselected: {why}"
        terminalreporter.write_sep("-", "without Open MPI")
        terminalreporter.write_line(told)
