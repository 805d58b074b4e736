"""The best evaluation of a run, which may have been at a step that was not saved."""

from pathlib import Path

import pytest
from train_jobs import SMALL, here, records, summary

from mpinn.analysis.inspect import describe, inspect
from mpinn.evaluation import best_seen, unsaved_best, unsaved_text
from mpinn.storage.directory import RunDirectory
from mpinn.storage.index import best_of, read_index

LINES = [
    {"step": 4, "loss": 0.1},
    {"step": 5, "validation_loss": 0.3, "validation_accuracy": 0.75},
    {"step": 10, "validation_loss": 0.2, "validation_accuracy": 0.875},
    {"step": 15, "validation_loss": 0.1, "validation_accuracy": 0.875},
    {"step": 18, "validation_loss": None, "validation_accuracy": 0.5},
]


def test_the_earliest_of_the_best_counts() -> None:
    assert best_seen(LINES) == (0.875, {"step": 10, "accuracy": 0.875})
    regression = [{key: value for key, value in line.items() if key != "validation_accuracy"} for line in LINES]
    assert best_seen(regression) == (-0.1, {"step": 15, "loss": 0.1})
    assert best_seen(LINES[:1]) is None
    assert best_seen([{"step": 1, "validation_loss": float("nan")}]) is None


@pytest.mark.parametrize(("saved", "told"), [(None, 10), (0.75, 10), (0.875, None), (0.9, None)])
def test_it_is_unsaved_if_no_checkpoint_is_as_good(saved: float | None, told: int | None) -> None:
    found = unsaved_best(LINES, saved)
    assert (found and found["step"]) == told
    if found:
        assert unsaved_text(found) == "step 10, accuracy 0.8750, not saved: only saved steps can be --best"


@pytest.mark.parametrize(("loss", "text"), [(0.25, "0.2500"), (4.9321e-07, "4.932e-07"), (4.75306e33, "4.753e+33")])
def test_a_loss_is_told_as_everywhere(loss: float, text: str) -> None:
    assert (
        unsaved_text({"step": 10, "loss": loss}) == f"step 10, loss {text}, not saved: only saved steps can be --best"
    )


@pytest.mark.parametrize("every", ["1 steps", "100 epochs"])
def test_a_run_says_whether_its_best_evaluation_is_saved(
    every: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # a rate at which the validation gets worse in the end
    shape = ("optimizer.rate=2.0", "optimizer.decay=constant", "train.evaluate=1 steps", "run.seed=1")
    assert here(tmp_path, *SMALL, *shape, f"checkpoint.every={every}") == 0
    printed = capsys.readouterr().out
    measured = {line["step"]: line["validation_accuracy"] for line in records(tmp_path) if "validation_loss" in line}
    best = max(measured.values())
    assert best > measured[18], "this run cannot tell the last evaluation from the best"
    step = min(step for step, value in measured.items() if value == best)
    saved = best_of(read_index(RunDirectory(tmp_path)) or [])
    inspect(tmp_path)
    shown = capsys.readouterr().out
    told = f"step {step}, accuracy {best:.4f}, not saved: only saved steps can be --best"
    if every == "1 steps":
        assert saved is not None
        assert saved.score == best
        assert summary(tmp_path)["unsaved"] is None
        assert describe(tmp_path)["run"]["unsaved"] is None
        assert "best seen" not in printed + shown
        return
    assert summary(tmp_path)["unsaved"] == describe(tmp_path)["run"]["unsaved"] == {"step": step, "accuracy": best}
    assert f"\nbest seen     {told}\n" in printed
    assert f"\nbest seen  {told}\n" in shown
    assert here(tmp_path, *SMALL, *shape, f"checkpoint.every={every}") == 0
    assert f"\nbest seen     {told}\n" in capsys.readouterr().out
