"""What a user sees of a run: a bar on a terminal, also through a launcher, and plain lines anywhere else."""

import os
import pty
import re
import subprocess
import time
from pathlib import Path

import pytest
from launch import finish, kill, start
from train_jobs import arguments

from mpinn.training.reporter import Bar, Plain, Silent, open_reporter
from mpinn.words import loss_text


def plain(total: int, steps: range, lines: int = 20) -> list[str]:
    """What is printed when progress is told at ``steps``."""
    told: list[str] = []
    reporter = Plain(total, lines, told.append)
    for step in steps:
        reporter.progress(step, f"loss {step}")
    reporter.close()
    return told


def test_plain_lines_are_about_as_many_as_wanted() -> None:
    assert plain(1000, range(1, 1001), lines=4) == [
        "step    1/1000  loss 1",
        "step  250/1000  loss 250",
        "step  500/1000  loss 500",
        "step  750/1000  loss 750",
        "step 1000/1000  loss 1000",
    ]


@pytest.mark.parametrize(("total", "every"), [(3, 1), (600, 10), (7, 7), (10_000, 1), (100, 33)])
def test_plain_lines_begin_with_the_first_and_end_with_the_last(total: int, every: int) -> None:
    steps = range(every, total + 1, every)
    shown = [int(re.findall(r"\d+", line)[0]) for line in plain(total, steps)]
    assert (shown[0], shown[-1]) == (steps[0], steps[-1] if total % every else total)
    assert len(shown) <= 23
    assert shown == sorted(set(shown))


def test_a_run_without_steps_has_no_progress() -> None:
    assert plain(0, range(0)) == []


def test_only_rank_0_reports(capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (1, 7):
        reporter = open_reporter(rank, 10)
        assert isinstance(reporter, Silent)
        reporter.line("text")
        reporter.progress(3, "status")
        reporter.close()
    assert capsys.readouterr().out == ""
    assert isinstance(open_reporter(0, 10), Plain)


def test_a_line_goes_above_the_bar_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar(10, 4)
    bar.line("[not markup] step 3: 1.5")
    bar.progress(6, "loss 0.5")
    bar.close()
    out = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert "[not markup] step 3: 1.5" in out
    assert "6/10" in out
    assert "loss 0.5" in out


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)


def test_the_bar_moves_between_two_lines_of_the_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("mpinn.training.reporter.monotonic", lambda: now[0])
    bar = Bar(1000, 0)
    bar.progress(1, "loss 0.5")
    for step in range(2, 790):
        now[0] += 0.001
        bar.at(step)
    bar.close()
    # three times in 0.79 s
    assert re.findall(r"(\d+)/1000", shown(capsys))[-1] == "601"


def test_where_there_is_little_room_the_status_gives_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpinn.training.reporter.terminal_width", lambda: 44)
    bar = Bar(1000, 0)
    bar.progress(500, "epoch 3.0  98,737/s  loss 0.1255  validation 0.9876")
    bar.close()
    last = [line for line in shown(capsys).splitlines() if "500/1000" in line][-1]
    assert "epoch" in last
    assert "…" in last
    assert "validation" not in last
    assert re.search(r"\d:\d\d:\d\d|-:--:--", last)
    assert len(last.rstrip()) <= 44


def on_terminal(run: Path) -> tuple[int, str]:
    """The code of a job that prints on a terminal of 100 columns, and what was printed there."""
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "cols", "100", "rows", "30"], stdin=theirs, check=True)
    job = start(2, *arguments(run, "model.widths=[8]", "train.epochs=10"), stdout=theirs)
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # the last writer has closed the terminal
                break
    finally:
        kill(job)
        os.close(ours)
    return finish(job).returncode, seen.decode()


def test_a_bar_on_a_terminal_through_mpirun(tmp_path: Path) -> None:
    code, seen = on_terminal(tmp_path / "run")
    assert code == 0
    assert "\x1b[" in seen
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen).replace("\r", "\n").splitlines()
    bars = [line for line in shown if "━" in line or "╸" in line]
    assert any(re.search(r"━+ +100/100 ", line) for line in bars)
    assert all(len(line) <= 100 for line in bars)
    assert not [line for line in shown if line.startswith("step ")]
    assert sum(line.startswith("mpinn 0.1.0: 2 ranks") for line in shown) == 1
    assert sum(line.startswith("test          accuracy ") for line in shown) == 1


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (0.0, "0.0000"),
        (4.9321e-07, "4.932e-07"),
        (0.00049, "0.0005"),
        (999999.5, "999999.5000"),
        (4.753058545516968e33, "4.753e+33"),
        (float("nan"), "nan"),
    ],
)
def test_a_loss(loss: float, text: str) -> None:
    assert loss_text(loss) == text
