"""Lengths of the learning rate's course that a run does not reach, which the log warns of."""

from pathlib import Path
from typing import Any

import pytest
from crew import Crews
from train_jobs import SMALL, here

from mpinn.consensus.averaging import AveragingOptions
from mpinn.consensus.gossip import GossipOptions
from mpinn.consensus.gradients import GradientsOptions
from mpinn.length import Length, Period
from mpinn.nn.optimizer import SGD
from mpinn.training.course import rare, unreached


def lengths(*texts: str) -> tuple[Length, ...]:
    return tuple(map(Length, texts))


@pytest.mark.parametrize(
    ("options", "total", "said"),
    [
        ({"decay": "step", "milestones": lengths("2 epochs", "59 steps")}, 60, []),
        (
            {"decay": "step", "milestones": lengths("2 epochs", "60 steps")},
            60,
            ['optimizer.milestones: "60 steps" is not before the end of this run, which is step 60'],
        ),
        (
            {"decay": "step", "milestones": lengths("10 epochs", "15 epochs")},
            100,
            ['optimizer.milestones: "10 epochs", "15 epochs" are not before the end of this run, which is step 100'],
        ),
        (
            {"milestones": lengths("2 epochs", "100 epochs")},
            60,
            ["optimizer.milestones: they play no part, since optimizer.decay is cosine, not step"],
        ),
        ({}, 11, []),
        (
            {"decay": "constant"},
            10,
            [
                'optimizer.warmup: "1 epoch" does not end before the end of this run, which is step 10: '
                "the rate rises all the time"
            ],
        ),
        ({"warmup": Length("0 steps")}, 1, []),
        ({"decay": "step", "milestones": lengths("1 epoch")}, 0, []),
    ],
)
def test_what_a_run_does_not_reach(options: dict[str, Any], total: int, said: list[str]) -> None:
    """With 10 steps an epoch."""
    assert unreached(SGD(**options), 10, total) == [f"warning: {text}" for text in said]


@pytest.mark.parametrize("total", [20, 21])
def test_a_warning_says_the_truth_about_the_rates_of_the_run(total: int) -> None:
    optimizer = SGD(decay="step", milestones=lengths("2 epochs"))
    rate = optimizer.course(10, total)
    lowered = rate(total - 1) < optimizer.rate
    assert lowered != bool(unreached(optimizer, 10, total))


def test_the_log_says_so_also_of_a_run_that_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = ("optimizer.decay=step", 'optimizer.milestones=["4 epochs"]')
    told = 'warning: optimizer.milestones: "4 epochs" is not before the end of this run, which is step '
    for epochs, expected in ((2, True), (3, True), (5, False)):
        assert here(tmp_path / "run", *SMALL, *late, f"train.epochs={epochs}") == 0
        assert (told in capsys.readouterr().out) == expected


LONG = "is longer than this run of 30 steps: replicas"


@pytest.mark.parametrize(
    ("consensus", "said"),
    [
        (AveragingOptions(period=Period("3 epochs")), ""),
        (AveragingOptions(period=Period("31 steps")), f'"31 steps" {LONG} meet once, at its end'),
        (GossipOptions(period=Period("4 epochs")), f'"4 epochs" {LONG} never mix'),
        (GradientsOptions(), ""),
    ],
)
def test_replicas_that_would_not_meet(consensus: Any, said: str) -> None:
    """With 10 steps an epoch."""
    assert rare(consensus, 2, 10, 30) == ([f"warning: consensus.period: {said}"] if said else [])
    assert rare(consensus, 1, 10, 30) == rare(consensus, 2, 10, 0) == []


def test_the_log_says_so_of_replicas(tmp_path: Path, crews: Crews) -> None:
    done = crews.train(2, tmp_path / "run", *SMALL, "consensus.period=5 epochs")
    assert 'warning: consensus.period: "5 epochs" is longer than this run of 18 steps' in done.stdout
    assert "meetings      1," in done.stdout
