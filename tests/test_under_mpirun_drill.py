"""What a test that goes wrong on one rank does to the job: it must not hang, and must show what went wrong."""

import os
import subprocess
from pathlib import Path

import pytest
from launch import ROOT, mpirun

DRILLS = {
    "assert": "assert world.rank != 1, 'only here'",
    "assert while others wait": "assert world.rank != 1, 'only here'\n    world.control.barrier()",
    "skip": "import pytest\n    if world.rank == 1: pytest.skip('only here')",
    "deadlock": "if world.rank == 1: world.channel('only here')",
}


def drill(folder: Path, body: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a test with ``body`` on 3 ranks, as tests/mpi is run."""
    test = folder / "test_drill.py"
    test.write_text(f"def test_drill(world):\n    {body}\n\n\ndef test_after(world):\n    pass\n")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "mpi"), os.environ.get("PYTHONPATH", "")])
    command = [
        "-m",
        "pytest",
        "--with-mpi",
        "-q",
        "--color=no",
        "-p",
        "no:cacheprovider",
        "-p",
        "conftest",
        f"--rootdir={folder}",
    ]
    report = {"MPINN_TEST_PATIENCE": "1", "PYTHONPATH": path, "MPINN_TEST_REPORT": str(folder / "report.json")}
    return mpirun(3, *command, str(test), timeout=timeout, env=report, cwd=folder)


@pytest.mark.parametrize("name", DRILLS)
def test_a_rank_that_differs_ends_the_job(tmp_path: Path, name: str) -> None:
    job = drill(tmp_path, DRILLS[name])
    assert job.returncode not in (0, 75)
    assert "test_drill.py::test_drill: " in job.stderr
    assert "1 passed" not in job.stdout
    assert not (tmp_path / "report.json").exists()
    if name.startswith("assert"):
        assert job.stderr.count("E       AssertionError: only here") == 1
        assert "rank 1 of 3: " in job.stderr


def test_a_failure_on_all_ranks_is_shown_once_and_the_next_test_runs(tmp_path: Path) -> None:
    job = drill(tmp_path, "assert world.rank < 0, 'everywhere'")
    assert job.returncode == 1
    assert job.stdout.count("E       AssertionError: everywhere") == 1
    assert "1 failed, 1 passed" in job.stdout
    assert (tmp_path / "report.json").read_text() == '{"failed": 1, "passed": 1}'
