"""Counts what the children under mpirun tested, so that the closing lines tell of all tests."""

import pytest

PASSED = pytest.StashKey[dict[int, int]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[PASSED] = {}


@pytest.fixture
def under_mpirun(request: pytest.FixtureRequest) -> dict[int, int]:
    """Number of ranks -> number of tests that passed on all of them."""
    return request.config.stash[PASSED]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    passed = config.stash[PASSED]
    if passed:
        counts = ", ".join(f"{count} on {ranks} rank{'s' if ranks > 1 else ''}" for ranks, count in passed.items())
        terminalreporter.write_sep("-", "under mpirun")
        terminalreporter.write_line(f"{sum(passed.values())} passed: {counts}")
