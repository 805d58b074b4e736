"""Runs Python where ``import cupy`` gives the stand-in."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TIME_LIMIT = 1800
"""Seconds after which tests are taken to hang: several times what they take on a slow machine that others use too."""


def emulated(
    arguments: Sequence[str], timeout: float = TIME_LIMIT, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """``python arguments`` on emulated devices, in the root of the repository."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    merged = os.environ | {"PYTHONPATH": path, "MPINN_EMULATED": "1"} | dict(env or {})
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=merged, timeout=timeout, capture_output=True, text=True
    )


def passed(folder: str, report: Path, *chosen: str, env: Mapping[str, str] | None = None) -> int:
    """How many tests of a folder passed on emulated devices; any other outcome is a failure."""
    command = ["-m", "pytest", "-p", "no:cacheprovider", "-q", "--color=no", f"--junitxml={report}", folder, *chosen]
    try:
        job = emulated(command, env=env)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"not finished after {TIME_LIMIT} s\n{error.output}\n{error.stderr}", pytrace=False)
    output = f"{job.stdout}\n{job.stderr}"
    if job.returncode or not report.exists():
        pytest.fail(f"pytest {folder} ended with {job.returncode}\n{output}", pytrace=False)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None, output
    counts = {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": counts["tests"], "failures": 0, "errors": 0, "skipped": 0}, output
    assert counts["tests"] > 0, output
    return counts["tests"]
