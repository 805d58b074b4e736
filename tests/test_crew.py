"""Ranks that stay do what a job of their own does, and what goes wrong in them is no silence."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from crew import Crews
from launch import ranks_of
from train_jobs import SMALL, arguments, differences, train

REFUSED = "train.epochs=x"


def test_commands_end_as_in_a_job_of_their_own(tmp_path: Path, crews: Crews) -> None:
    """Refused, and stopped; after another run with other settings."""
    assert crews.train(2, tmp_path / "other", *SMALL, "run.seed=3").returncode == 0
    for line, code in (((REFUSED,), 2), (("--stop-after", "7"), 75)):
        own = train(2, tmp_path / "own", *SMALL, *line)
        staying = crews.train(2, tmp_path / "staying", *SMALL, *line)
        assert (own.returncode, staying.returncode) == (code, code)
        assert own.stderr == staying.stderr
        ends = [done.stdout.splitlines()[-1:] for done in (own, staying)]
        assert [end.replace(str(tmp_path / "own"), str(tmp_path / "staying")) for end in ends[0]] == ends[1]
    # which has the run directory in it
    assert differences(tmp_path / "own/latest", tmp_path / "staying/latest") == ["configuration"]


def test_a_rank_that_dies_is_a_failure_and_others_come(tmp_path: Path) -> None:
    with ExitStack() as stack:
        crews = Crews(stack)
        assert crews.train(2, tmp_path, REFUSED).returncode == 2
        os.kill(ranks_of(crews.found[2].job)[1], signal.SIGKILL)
        with pytest.raises(AssertionError, match="the ranks have not answered"):
            crews.train(2, tmp_path, REFUSED)
        assert crews.train(2, tmp_path, REFUSED).returncode == 2


def test_what_is_printed_past_the_answers_is_a_failure(tmp_path: Path) -> None:
    stack = ExitStack()
    crews = Crews(stack)
    assert crews.run(0, *arguments(tmp_path, REFUSED)).returncode == 2
    Path(f"/proc/{crews.found[0].job.pid}/fd/2").write_text("heard")
    with pytest.raises(AssertionError, match="heard"):
        stack.close()
