"""Tests of what runs on a GPU: with CuPy and one, ``pytest tests/device``; else on the stand-in in tests/emulation."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave them out of a run that was not asked for them: there may be no CuPy, or no GPU."""
    asked = [(config.invocation_params.dir / argument.split("::")[0]).resolve() for argument in config.args]
    return None if any(HERE in (path, *path.parents) for path in asked) else True


@pytest.fixture(scope="session", autouse=True)
def device() -> None:
    """The device as a run chooses it, on a stream of its own."""
    from mpinn.array.device import choose_device

    choose_device("gpu", "auto", 0)
