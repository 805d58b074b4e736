"""The checks of a machine with a GPU, rehearsed on the stand-in for one, and what they compare."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from launch import ROOT, gone

from gpu import run as whole_run
from gpu.cases import BASE, CASES, EXACT, SMALL, settings_of
from gpu.look import tell, versions
from gpu.run import LOG, SHOWN, TO_END, Ended, Stage, run, stages
from gpu.whole_program import Result, cause, distance, line_of
from mpinn.bench import gpu as steps
from mpinn.bench import gpu_kernels
from mpinn.bench.gpu_roofline import Ceilings
from mpinn.bench.timing import Spread
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
    assert gone([int(ended.output.split()[0])])
    assert "not done after 6 s" in capsys.readouterr().out
    assert run(Stage("wrong", ("-c", "raise SystemExit(3)"), 9), tmp_path, {}).verdict == "FAILED (3)"
    # few files come back from such a machine
    assert [path.name for path in tmp_path.iterdir()] == [LOG]
    log = (tmp_path / LOG).read_text()
    assert "slow one: not done after 6 s" in log
    assert "wrong: FAILED (3)" in log


@pytest.mark.parametrize("here", [signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def test_a_stage_that_is_cut_off_says_what_it_has_found(
    here: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = tmp_path / "test_some.py"
    test.write_text(
        "import time\n\ndef test_wrong():\n    assert 6 * 7 == 41\n\ndef test_slow():\n    time.sleep(60)\n"
    )
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(tmp_path), str(test))
    before = signal.signal(signal.SIGINT, here)
    try:
        ended = run(Stage("tests", tests, 6), tmp_path, {})
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.code is None
    assert ended.seconds < 6 + TO_END
    assert "assert (6 * 7) == 41" in capsys.readouterr().out
    assert Stage("tests", tests, 6).within(2).limit == 2


def test_a_run_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def some(quick: bool, folder: Path, stand_in: bool) -> tuple[list[Stage], list[Stage]]:
        return [Stage("slow", ("-c", "import time; time.sleep(60)"), 50)], [Stage("late", ("-c", ""), 50)]

    monkeypatch.setattr(whole_run, "stages", some)
    monkeypatch.setattr(whole_run, "QUICK", 30.0)
    monkeypatch.setattr(whole_run, "run", lambda stage, *_: Ended(stage, 0 if stage.name == "look" else None, 1.0, ""))
    monkeypatch.setattr(whole_run, "time", SimpleNamespace(monotonic=iter([0.0, 5.0, 18.0, 20.0]).__next__))
    assert whole_run.main(["--quick", "--out", str(tmp_path)]) == 1
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["look", "slow", "late", "all"]
    assert "not done after 20 s" in rows[1]
    assert "not begun: no time" in rows[2]
    assert (tmp_path / "summary.txt").read_text().splitlines() == rows


def test_what_is_printed_of_a_failure_is_its_beginning_and_its_end() -> None:
    said = "".join(f"line {i}\n" for i in range(10_000))
    told = Ended(Stage("many", (), 1), 1, 0.0, said).told
    assert told.startswith("line 0\nline 1\n")
    assert told.endswith("line 9998\nline 9999")
    assert len(told) < SHOWN + 60
    assert Ended(Stage("many", (), 1), 1, 0.0, "short\n").told == "short"


def test_rows_that_count_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benches = {stage.name: stage for stage in stages(True, tmp_path, False)[1]}
    spread = Spread(1e-3, 1e-3, 1e-3)
    for program in ("mpinn", "PyTorch", "PyTorch, tuned"):
        steps.print_rows([steps.Row("ResNet-20", 128, "TF32", program, spread, spread, spread, 0.5, 1 << 20, 1e-3)])
    told = Ended(benches["training steps"], 0, 1.0, capsys.readouterr().out).told
    assert "  mpinn " in told
    assert "PyTorch" not in told
    assert "(2 more rows" in told
    gpu_kernels.print_head("a device", Ceilings(3e12, {"float32": 5e13}))
    for name, least in (("fast", 9e-4), ("slow", 4e-4), ("tiny", 1e-6)):
        gpu_kernels.print_rows([gpu_kernels.Row(name, "1x2", "TF32", spread, 1e6, 1e9, least)])
    told = Ended(benches["kernels"], 0, 1.0, capsys.readouterr().out).told
    assert told.splitlines()[:2] == [
        "a device",
        "ceilings: a large copy 3,000 GB/s, a large product 50.0 TFLOP/s in float32",
    ]
    assert [line.split()[0] for line in told.splitlines()[2:]] == ["kernel", "slow", "(2"]


def test_cases_that_passed_are_not_printed_with_those_that_failed(tmp_path: Path) -> None:
    (programs, *_) = stages(True, tmp_path, False)[0]
    good, bad = Result(CASES[0], 1.0, 4e-16, ("direct",)), Result(CASES[1], 1.0, failure="ended with 1")
    told = Ended(programs, 1, 1.0, f"{line_of(good)}\n{line_of(bad)}\n    {cause(bad.failure)}\n").told
    assert CASES[0].name not in told
    assert told.startswith(CASES[1].name)
    assert "    ended with 1\n" in told


def test_all_tests_of_the_device_are_run_each_file_apart(tmp_path: Path) -> None:
    given = [stage.arguments[-1] for stage in stages(True, tmp_path, False)[0][1:]]
    files = {str(path) for path in (ROOT / "tests" / "device").glob("test_*.py")}
    assert len(files) > 5
    assert {*given} == files


def test_what_is_wrong_with_one_thing_hides_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> str:
        raise AttributeError("no such name")

    assert not tell(broken)
    assert tell(versions)
    assert capsys.readouterr().out.startswith("broken: AttributeError: no such name\nPython 3.")


def test_a_failure_has_its_cause_in_one_line() -> None:
    said = "staged ended with 1, not 0\nTraceback:\n  File x\nValueError: first\nKeyError: 'second'\nmpirun has ended"
    assert cause(said) == "staged ended with 1, not 0: KeyError: 'second'"
    assert cause("staged and cpu are 1e-3 apart") == "staged and cpu are 1e-3 apart"


@pytest.mark.skipif(shutil.which("g++") is None, reason="kernels are compiled by g++")
def test_whole_programs_on_the_stand_in() -> None:
    command = [sys.executable, "tests/gpu/whole_program.py", "--stand-in", "--small"]
    job = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert job.returncode == 0, f"{job.stdout}\n{job.stderr}"
    assert f"{len(SMALL)} of {len(SMALL)} cases passed" in job.stdout
