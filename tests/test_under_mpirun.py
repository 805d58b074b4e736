"""Runs tests/mpi on 1 to 4 ranks; a deadlock is a failure."""

import json
import subprocess
from pathlib import Path

import pytest
from launch import mpirun

TIME_LIMIT = 600


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_on_ranks(ranks: int, tmp_path: Path, under_mpirun: dict[int, int]) -> None:
    under_mpirun[ranks] = passed(ranks, tmp_path, "tests/mpi")


@pytest.mark.parametrize("ranks", [6, 8])
def test_three_and_four_stages_of_two_replicas(ranks: int, tmp_path: Path, under_mpirun: dict[int, int]) -> None:
    chosen = "equals_the_simulator and drained"
    under_mpirun[ranks] = passed(ranks, tmp_path, "tests/mpi/test_decoupled.py", "-k", chosen)


def passed(ranks: int, tmp_path: Path, *chosen: str) -> int:
    """How many of the chosen tests passed on all ranks; any other outcome is a failure."""
    report = tmp_path / "report.json"
    command = ["-m", "pytest", "--with-mpi", "-p", "no:cacheprovider", "-q", "--color=no", *chosen]
    try:
        job = mpirun(ranks, *command, timeout=TIME_LIMIT, env={"MPINN_TEST_REPORT": str(report)})
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"not finished after {TIME_LIMIT} s\n{error.output}\n{error.stderr}", pytrace=False)
    output = f"{job.stdout}\n{job.stderr}"
    if job.returncode != 0 or not report.exists():
        pytest.fail(f"mpirun -n {ranks} ended with {job.returncode}\n{output}", pytrace=False)
    outcomes: dict[str, int] = json.loads(report.read_text())
    assert outcomes == {"passed": outcomes.get("passed", 0)}, output
    assert outcomes["passed"] > 0, output
    return outcomes["passed"]
