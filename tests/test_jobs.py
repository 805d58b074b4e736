"""The example jobs: every one is listed and runs; and the code is as clean as it claims."""

import subprocess
import sys
from pathlib import Path

import pytest
from launch import mpirun
from train_jobs import arguments, summary

from mpinn.training.choices import read_config

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "jobs").glob("*.toml"))
LIST = (ROOT / "jobs/README.md").read_text()


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_a_job_is_read_and_listed(job: Path) -> None:
    config = read_config(str(job), ())
    assert config.run.directory == f"runs/{job.stem}"
    assert f"[{job.name}]({job.name})" in LIST


@pytest.mark.parametrize("job", [job for job in JOBS if job.stem not in ("cifar10", "mnist")], ids=lambda job: job.stem)
def test_a_job_trains(job: Path, tmp_path: Path) -> None:
    digits = ("data.name=digits",) if job.stem == "population" else ()
    done = mpirun(2, "-m", "mpinn", str(job), *arguments(tmp_path / "run", "train.epochs=1", *digits)[2:], timeout=120)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "run")["test"]["loss"] > 0


@pytest.mark.parametrize("tool", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join)
def test_the_code_is_clean(tool: list[str]) -> None:
    folders = [] if tool[0] == "mypy" else ["mpinn", "tests", "data"]
    done = subprocess.run(
        [sys.executable, "-m", *tool, *folders], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
