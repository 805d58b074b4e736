import pytest

from mpinn.bench import mlp
from mpinn.bench.timing import Spread, alternate, error_text, ratio_text, seconds_text


def test_operations_take_turns() -> None:
    order: list[str] = []
    samples = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=4, sample=0.0)
    assert order[-8:] == ["a", "b"] * 4
    assert samples["a"].shape == samples["b"].shape == (4,)


def test_seconds_are_those_of_one_call() -> None:
    now = 0.0

    def work() -> None:
        nonlocal now
        now += 0.25

    samples = alternate({"work": work}, clock=lambda: now, rounds=3, sample=1e-3)
    assert samples["work"].tolist() == [0.25] * 3


def test_texts() -> None:
    assert seconds_text(Spread(0.00525, 0.00519, 0.0054)) == "5.25 ms (5.19-5.4)"
    assert seconds_text(Spread(8.9e-5, 8e-5, 9e-5)) == "89 us (80-90)"
    assert error_text(Spread(9.9e-4, 4.1e-4, 2e-3)) == "9.9e-04 (4.1e-04-2.0e-03)"
    assert ratio_text(Spread(1.318, 1.3, 1.35)) == "1.32 (1.30-1.35)"


def test_measures_every_program(capsys: pytest.CaptureFixture[str]) -> None:
    work = mlp.Work((5, 4, 3), 6)
    rows = mlp.run((work,), rounds=2, sample=0.0)
    timed = [row for row in rows if isinstance(row, mlp.Row)]
    assert {row.work for row in timed} == {
        f"5-4-3, batch 6: {name}" for name in ("forward and backward", "SGD step", "Adam step")
    }
    for name in ("forward and backward", "SGD step", "Adam step"):
        programs = [row.program for row in timed if row.work.endswith(name)]
        assert {"mpinn", "mpinn, plain NumPy"} <= set(programs)
    assert all(row.seconds.median > 0 for row in timed)
    errors = [row.error for row in rows if isinstance(row, mlp.Errors)]
    assert len(errors) >= 2
    assert all(1e-9 < error < 1e-5 for error in errors)
    mlp.print_rows(rows)
    assert capsys.readouterr().out.count("mpinn, plain NumPy") == 4


def test_without_a_peer_there_is_no_column_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    seconds, ratio = Spread(0.25, 0.25, 0.25), Spread(2.0, 2.0, 2.0)
    rows = [mlp.Row("work", "mpinn", seconds, None), mlp.Errors("work: gradient", "mpinn", 1e-7)]
    mlp.print_rows(rows)
    told = capsys.readouterr().out
    assert "PyTorch / this" not in told
    assert told.count("PyTorch is not installed here: nothing is compared with it") == 1
    mlp.print_rows([mlp.Row("work", "mpinn", seconds, ratio), *rows])
    told = capsys.readouterr().out
    assert "PyTorch / this" in told
    assert "2.00 (2.00-2.00)" in told
    assert "not installed" not in told
    assert not [line for line in told.splitlines() if line.endswith(" ")]
