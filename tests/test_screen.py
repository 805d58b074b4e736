"""Tables as they are printed: as wide as is asked for, without blanks at the ends of lines in a pipe."""

import pytest
from launch import alone

from mpinn.screen import Screen
from mpinn.words import size_text

NAMES = ("checkpoint", "score", "step", "MiB")
ROWS = [["checkpoint-00000200.h5", "0.983333", "200", "0.64"], ["checkpoint-00000400.h5", "0.99", "400", "0.64"]]


def drawn(capsys: pytest.CaptureFixture[str], whole: bool) -> str:
    screen = Screen()
    screen.rows(NAMES, ROWS, whole=whole)
    screen.close()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("columns", "head"), [(60, NAMES), (46, NAMES), (45, NAMES[:3]), (40, NAMES[:3]), (36, NAMES[:2]), (25, NAMES[:1])]
)
def test_names_stay_whole_and_the_last_columns_are_left_out(
    columns: int, head: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    told = drawn(capsys, whole=True)
    lines = told.splitlines()
    assert lines[1].split() == list(head)
    assert [line.split() for line in lines[3:5]] == [row[: len(head)] for row in ROWS]
    assert max(map(len, lines)) <= columns
    assert (f"columns that {columns} letters have no room" in " ".join(told.split())) == (len(head) < len(NAMES))


def test_names_are_folded_before_columns_are_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "36")
    told = drawn(capsys, whole=False)
    lines = told.splitlines()
    assert lines[1].split() == list(NAMES)
    assert "".join(line.split()[0] for line in lines[3:5]) == ROWS[0][0]
    assert "left out" not in told


@pytest.mark.parametrize(("told", "width"), [(None, 160), ("", 160), ("wide", 160), ("0", 160), ("70", 70)])
def test_a_pipe_is_as_wide_as_columns_say(
    told: str | None, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if told is not None:
        monkeypatch.setenv("COLUMNS", told)
    Screen().print("word " * 100)
    lines = capsys.readouterr().out.splitlines()
    assert width - 5 <= max(map(len, lines)) <= width
    assert not [line for line in lines if line.endswith(" ")]


@pytest.mark.parametrize("line", [("plan", "--stages", "2", "--estimated"), ("doctor",)])
def test_no_line_ends_in_blanks_in_a_pipe(line: tuple[str, ...]) -> None:
    for columns in ("", "100"):
        job = alone("-m", "mpinn", *line, env={"COLUMNS": columns})
        assert (job.returncode, job.stderr) == (0, "")
        lines = job.stdout.splitlines()
        assert "─────" in job.stdout
        assert not [line for line in lines if line.endswith(" ")]
        assert max(map(len, lines)) <= int(columns or 160)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (902 * 1024, "902 KiB"),
        (0.995 * 2**20, "1019 KiB"),
        (1023.9 * 1024, "1 MiB"),
        (1.04 * 2**20, "1.04 MiB"),
        (26.94 * 2**20, "26.9 MiB"),
        (5 * 2**50, "5120 TiB"),
    ],
)
def test_sizes_are_at_least_one_of_their_unit(count: float, text: str) -> None:
    assert size_text(count) == text
