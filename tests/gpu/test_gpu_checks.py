"""The checks of a machine with a GPU, rehearsed on the stand-in for one, and what they compare."""

import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from launch import ROOT, gone

from gpu.cases import BASE, CASES, EXACT, SMALL, settings_of
from gpu.run import Stage, run
from gpu.whole_program import Result, distance, line_of
from mpinn.training.choices import CONSENSUSES, SCHEDULES, read_config


def test_every_schedule_and_consensus_is_compared() -> None:
    configs = [(case.ranks, read_config(None, settings_of(case))) for case in CASES]
    assert {config.names["schedule"] for _, config in configs} == {*SCHEDULES}
    for ranks in (2, 4):
        assert {config.names["consensus"] for own, config in configs if own == ranks} == {*CONSENSUSES}
    assert {ranks for ranks, _ in configs} == {1, 2, 3, 4}
    assert all(case.apart == EXACT for case in CASES if read_config(None, settings_of(case)).run.dtype == "float64")
    names = [case.name for case in CASES]
    assert len({*names}) == len(names)
    assert {*SMALL} < {*names}
    assert all(any(own.startswith(key) for own in BASE) for key in ("run.deterministic=true", "run.dtype=float64"))


def save(path: Path, **values: float) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file[f"{name}/network/a/weight"] = np.array([value, 0.0])
            file[f"{name}/network/b/weight"] = np.array([0.0, 1.0])
    return path


def test_distances_are_shares_of_a_norm(tmp_path: Path) -> None:
    one, other = save(tmp_path / "1", model=1.0, state=1.0), save(tmp_path / "2", model=1.0 + 1e-6, state=1.0)
    assert distance(one, one) == 0
    assert distance(other, one) == pytest.approx(1e-6 / 2**0.5, rel=1e-3)
    # a check that compares nothing is no check
    assert distance(one, save(tmp_path / "3", model=1.0, state=1.0, other=1.0)) == 0
    assert distance(save(tmp_path / "4", state=1.0), one) == float("inf")
    assert distance(one, save(tmp_path / "5", state=1.0)) == float("inf")
    assert distance(save(tmp_path / "6", model=float("nan"), state=1.0), one) != 0


def test_a_failed_case_is_no_number() -> None:
    assert "FAILED" in line_of(Result(CASES[0], 1.0, failure="ended with 1"))


def test_a_stage_ends_at_its_limit_with_all_below_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import subprocess, sys; print(subprocess.Popen({}, start_new_session=True).pid, flush=True); {}"
    sleep = "import time; time.sleep(60)"
    ended = run(Stage("slow one", ("-c", code.format(f"[sys.executable, '-c', {sleep!r}]", sleep)), 6), tmp_path, {})
    assert ended.code is None
    assert ended.seconds < 20
    assert gone([int((tmp_path / "slow-one.log").read_text())])
    assert "not done after 6 s" in capsys.readouterr().out
    assert run(Stage("wrong", ("-c", "raise SystemExit(3)"), 9), tmp_path, {}).verdict == "FAILED (3)"


@pytest.mark.skipif(shutil.which("g++") is None, reason="kernels are compiled by g++")
def test_whole_programs_on_the_stand_in() -> None:
    command = [sys.executable, "tests/gpu/whole_program.py", "--stand-in", "--small"]
    job = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert job.returncode == 0, f"{job.stdout}\n{job.stderr}"
    assert f"{len(SMALL)} of {len(SMALL)} cases passed" in job.stdout
