"""The summary as it is printed."""

import json
from pathlib import Path

import numpy as np
import pytest
from train_jobs import here

from mpinn.run import summary
from mpinn.run.summary import bytes_text, lines

RANKS = [
    {"computing": 0.7, "communicating": 0.2, "waiting": 0.1, "bytes": 2_200_000.0},
    {"computing": 0.5, "communicating": 0.25, "waiting": 0.25, "bytes": 0.0},
]
SUMMARY = {
    "model": "mlp",
    "data": "digits",
    "consensus": "averaging",
    "score": "accuracy",
    "grid": [2, 1, 1],
    "epochs": 60,
    "start": 0,
    "steps": 600,
    "samples": 71820,
    "seconds": 1.5,
    "samples_per_second": 47880.0,
    "test": {"accuracy": 0.97, "loss": 0.125},
    "validation": {"accuracy": 0.98, "loss": 0.0625},
    "ranks": RANKS,
    "weights": [0.25, 0.75],
    "meetings": {"count": 60, "lowest": 0.2, "highest": 0.8},
    "checkpoint": "runs/digits/checkpoint-00000600.h5",
    "directory": "runs/digits",
}
PRINTED = """
run           mlp on digits, consensus averaging, score accuracy, 2 x 1 x 1 ranks (replicas x stages x shards)
test          accuracy 0.9700, loss 0.1250
validation    accuracy 0.9800, loss 0.0625
trained       60 epochs, 600 steps, 71,820 samples in 1.50 s of training: 47,880 samples/s
meetings      60, weights from 0.2000 to 0.8000

rank  computing  communicating  waiting      sent  weight at the last meeting
   0      70.0%          20.0%    10.0%    2.2 MB  0.250000
   1      50.0%          25.0%    25.0%       0 B  0.750000

checkpoint    runs/digits/checkpoint-00000600.h5
look at it    python -m mpinn inspect runs/digits
use it        python -m mpinn evaluate runs/digits"""


def test_a_run_of_classes_with_meetings() -> None:
    assert "\n".join(lines(SUMMARY)) == PRINTED


def test_one_of_a_thing_is_not_many() -> None:
    [told] = [line for line in lines({**SUMMARY, "epochs": 1, "steps": 1, "samples": 1}) if line[:7] == "trained"]
    assert told == "trained       1 epoch, 1 step, 1 sample in 1.50 s of training: 47,880 samples/s"
    [told] = [line for line in lines({**SUMMARY, "epochs": 0, "steps": 12345}) if line[:7] == "trained"]
    assert told.startswith("trained       0 epochs, 12,345 steps, 71,820 samples in ")


def test_of_a_loss_that_is_huge_four_digits_are_printed() -> None:
    assert "test          loss 2.442e+75" in lines({**SUMMARY, "test": {"loss": 2.442231582560380162e75}})


def test_a_regression_without_meetings() -> None:
    values = {"test": {"loss": 0.5}, "validation": {"loss": 0.75}, "consensus": "none", "score": None}
    values |= {"weights": None, "meetings": None, "start": 300}
    printed = lines({**SUMMARY, **values})
    assert "test          loss 0.5000" in printed
    assert "validation    loss 0.7500" in printed
    assert printed[1].startswith("run           mlp on digits, consensus none, 2 x 1 x 1 ranks")
    assert "model         replica 0: nothing joins the replicas" in printed
    assert "since step 300:" in printed
    assert not [line for line in printed if "weight" in line or "accuracy" in line]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_150_000, "2.1 MB"), (3.2e9, "3.2 GB"), (5e12, "5.0 TB")],
)
def test_a_number_of_bytes(count: float, text: str) -> None:
    assert bytes_text(count) == text


def test_of_one_replica_of_a_population_no_consensus_is_told() -> None:
    members = {"members": 2, "there": 2, "best": 1, "ranking": []}
    alone = {**SUMMARY, "model": "population", "population": members, "grid": [1, 1, 2], "weights": None}
    assert lines(alone)[1] == "run           population on digits, 1 x 1 x 2 ranks (replicas x stages x shards)"
    shared = {**alone, "grid": [2, 1, 1], "consensus": "gradients", "score": None}
    assert lines(shared)[1].startswith("run           population on digits, consensus gradients, 2 x 1 x 1 ranks")


def test_its_file_is_json_also_where_numbers_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss of test samples that overflow when they are normalised, and a system that does not tell of its memory."""
    rng = np.random.default_rng(0)
    x, values = rng.normal(0, 1e-3, (200, 64)).astype(np.float32), rng.normal(size=(200, 2)).astype(np.float32)
    huge = np.full_like(x[:5], 3e38)
    np.savez(tmp_path / "huge.npz", x_train=x, y_train=values, x_test=huge, y_test=values[:5])
    monkeypatch.setattr(summary, "_peak", lambda: float("nan"))
    settings = ("data.name=npz", f"data.path={tmp_path / 'huge.npz'}", "data.batch=20", "train.epochs=1")
    settings += ("loss.name=squared_error", "consensus.score=inverse_loss", "model.widths=[3]")
    with np.errstate(over="ignore", invalid="ignore"):
        assert here(tmp_path / "run", *settings) == 0
        first = capsys.readouterr().out
        assert here(tmp_path / "run", *settings) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    told = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_constant=refuse)
    assert (told["test"], told["ranks"][0]["memory"]) == ({"loss": None}, None)
    again = capsys.readouterr().out
    for printed in (first, again):
        assert "test          loss nan\n" in printed or "test          loss inf\n" in printed
