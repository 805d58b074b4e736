"""Choices that are each right but do not fit each other: what is refused, and what must not be."""

from pathlib import Path

import pytest

from mpinn.errors import InputError
from mpinn.run.checks import Request, check
from mpinn.run.resumption import network_of

KEEP = ("consensus.in_flight=keep",)


@pytest.mark.parametrize("consensus", ["averaging", "outer"])
@pytest.mark.parametrize(
    ("score", "schedule", "lost"),
    [
        ("fisher", ("serial", 1), ""),
        ("accuracy_shard", ("gpipe", 2), ""),
        ("fisher", ("parareal", 2), ""),
        ("fisher", ("fdg", 1), ""),
        ("accuracy", ("fdg", 2), ""),
        ("fisher", ("fdg", 2), "those in flight"),
        ("accuracy_shard", ("ddg", 2), "those in flight"),
        ("accuracy_shard", ("local", 2), "those in flight"),
        ("fisher", ("fdg", 1, "schedule.accumulate=2"), "gradients that are added up"),
        ("accuracy_shard", ("fdg", 1, "schedule.accumulate=2"), ""),
    ],
    ids=str,
)
def test_keep_is_refused_only_where_a_score_would_overwrite(
    tmp_path: Path, consensus: str, score: str, schedule: tuple, lost: str
) -> None:
    name, stages, *more = schedule
    places = (f"schedule.name={name}", f"grid.stages={stages}", f"run.directory={tmp_path / 'run'}")
    request = Request(None, (*places, *more, *KEEP, f"consensus.name={consensus}", f"consensus.score={score}"))
    if not lost:
        assert check(request, 2 * stages).config.consensus.in_flight == "keep"
        return
    said = f"keep does not go with the score {score}, which measures on the batches of training, and would overwrite"
    with pytest.raises(InputError, match=rf"^consensus\.in_flight: {said} {lost}$"):
        check(request, 2 * stages)


def test_a_parareal_network_of_one_block_is_the_model_as_it_is() -> None:
    one = {"name": "parareal", "blocks": 1, "form": "residual", "iterations": 1}
    assert network_of(one) == network_of({"name": "fdg"}) != network_of({**one, "blocks": 2})
