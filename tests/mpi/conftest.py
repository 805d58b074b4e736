"""Keeps the ranks of a test job together: each test ends on all of them with the same outcome, or the job ends."""

import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpinn.comm.abort import install_abort_hook
from mpinn.comm.channel import Pending
from mpinn.comm.grid import World, connect
from mpinn.comm.mpi import JOB, MPI, MpiChannel, abort

PATIENCE = float(os.environ.get("MPINN_TEST_PATIENCE", "20"))
"""Seconds that a rank waits at the end of a test for the others."""
MADE: list[MPI.Intracomm] = []
"""The communicators of all channels, in the order in which they were made, the same on all ranks."""
OUTCOMES = ("passed", "skipped", "failed")


class Together:
    """Compares the outcome of every test over the ranks, and writes the report of rank 0."""

    def __init__(self, world: World):
        self.world = world
        self.channel = world.channel("tests")
        self.reports: list[pytest.TestReport] = []
        self.total: Counter[str] = Counter()
        self.kept = len(MADE)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.reports.clear()
        result = yield
        worst = max((OUTCOMES.index(report.outcome) for report in self.reports), default=2)
        outcome = np.array([worst], np.int64)
        everywhere = np.empty((self.channel.size, 1), np.int64)
        self._await(self.channel.all_gather(outcome, everywhere), item)
        if (everywhere != worst).any():
            self._stop(item, "ranks disagree: " + ", ".join(OUTCOMES[o] for o in everywhere[:, 0]))
        self.total[OUTCOMES[worst]] += 1
        self._free()
        return result

    def pytest_sessionfinish(self) -> None:
        path = os.environ.get("MPINN_TEST_REPORT")
        if path and self.world.rank == 0:
            Path(path).write_text(json.dumps(self.total))

    def _free(self) -> None:
        """Give back the communicators that the test has made: an MPI library has a few thousand of them."""
        JOB.part()
        for communicator in MADE[self.kept :]:
            if communicator != MPI.COMM_NULL:
                communicator.Free()
        del MADE[self.kept :]

    def _await(self, pending: Pending, item: pytest.Item) -> None:
        deadline = time.monotonic() + PATIENCE
        while not pending.test():
            if time.monotonic() > deadline:
                self._stop(item, f"the other ranks have not ended this test {PATIENCE:g} s later")
            time.sleep(1e-4)

    def _stop(self, item: pytest.Item, why: str) -> None:
        failures = [report.longreprtext for report in self.reports if report.failed]
        if failures or self.world.rank == 0:
            lines = [f"rank {self.world.rank} of {self.world.size}: {item.nodeid}: {why}", *failures]
            os.write(2, ("\n".join(lines) + "\n").encode())
        time.sleep(0.5)  # so that the failing ranks can print, whichever is first to abort
        abort(1)


def remember_communicators() -> None:
    """Keep a list of the communicators of all channels."""
    begin = MpiChannel.__init__

    def noted(self: MpiChannel, communicator: MPI.Intracomm, *rest: Any, **options: Any) -> None:
        begin(self, communicator, *rest, **options)
        MADE.append(communicator)

    MpiChannel.__init__ = noted  # type: ignore[method-assign]


def own_folder(config: pytest.Config) -> None:
    """Files of each rank where no other rank tidies up: Pytest warns where two remove the same old folder."""
    folder = Path(tempfile.mkdtemp(prefix="mpinn-rank-"))
    config.option.basetemp = folder / "tests"
    config.add_cleanup(lambda: shutil.rmtree(folder))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    remember_communicators()
    install_abort_hook()
    world = connect()
    config.stash[WORLD] = world
    own_folder(config)
    config.pluginmanager.register(Together(world), "together")
    if world.rank != 0:
        # Pytest's reporter, made after this, writes to nowhere: the others report through rank 0, or by disagreeing.
        nowhere = open(os.devnull, "w")  # noqa: SIM115
        config.add_cleanup(nowhere.close)
        sys.stdout = nowhere


WORLD = pytest.StashKey[World]()


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest) -> World:
    """All ranks of the test job."""
    return request.config.stash[WORLD]
