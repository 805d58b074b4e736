"""A run that goes on on other grids, again and again, ends as one that was never stopped on one rank."""

from pathlib import Path

import numpy as np
import pytest
from train_jobs import datasets, records, train

from mpinn.errors import InputError
from mpinn.run.checks import Request, check

SETTINGS = (
    "model.widths=[16,12]", "train.epochs=4", "train.log=1 step", "consensus.name=gradients", "run.dtype=float64",
    "run.kernels=plain",
)  # fmt: skip
STAGED = ("grid.stages=2", "schedule.name=1f1b", "schedule.cut=estimated")
STOPPED = 75
WAYS = {
    "4 to 2 to 3 ranks, to 1": [(4, 9, ()), (2, 17, ()), (3, 26, ()), (0, 40, ())],
    "2 stages of 2 replicas, to 4 replicas": [(4, 11, STAGED), (4, 40, ())],
    "serial, to a pipeline": [(0, 13, ()), (2, 40, STAGED)],
}
"""(ranks, the step after which they stop, more settings), one after the other; the last ones come to the end."""


@pytest.mark.parametrize("way", WAYS)
def test_the_end_is_the_same_on_any_grids(way: str, tmp_path: Path) -> None:
    run, never, before = tmp_path / "run", tmp_path / "never", 0
    for ranks, stop, more in WAYS[way]:
        last = stop == 40
        job = train(ranks, run, *SETTINGS, *more, *(() if last else ("--stop-after", str(stop))))
        assert job.returncode == (0 if last else STOPPED), job.stderr
        assert f"at step {before}\n" in job.stdout if before else "resumed" not in job.stdout
        assert not before or "the grid was " in job.stdout
        before = stop
    assert train(0, never, *SETTINGS).returncode == 0
    assert [line["step"] for line in records(run) if "loss" in line] == [*range(1, 41)]
    found, known = datasets(run / "latest"), datasets(never / "latest")
    names = [name for name in known if name.startswith(("model/", "optimizer/"))]
    assert len(names) > 8
    for name in names:
        np.testing.assert_allclose(found[name], known[name], rtol=1e-9, atol=1e-12)


def test_steps_that_would_mean_another_number_of_epochs_are_refused(tmp_path: Path) -> None:
    """Where all replicas see the same samples, an epoch has as many steps more as there are replicas."""
    run = tmp_path / "run"
    settings = (
        f"run.directory={run}",
        "run.kernels=plain",
        "model.widths=[4]",
        "data.deal=same",
        "data.batch=100",
        "train.epochs=1",
    )
    assert train(2, run, *settings, "--stop-after", "15").returncode == STOPPED
    only = r"^grid\.replicas: this run can go on with 2 replicas only, got 1: "
    with pytest.raises(InputError, match=rf"{only}with data\.deal = same an epoch has 24 steps on 2 and 12 on 1$"):
        check(Request(overrides=settings), 1)
    assert check(Request(overrides=settings), 2).checkpoint == run / "checkpoint-00000015.h5"
    assert train(2, run, *settings).returncode == 0
    # nothing is left to do, on whatever ranks that is said again
    assert check(Request(overrides=settings), 1).summary is not None


@pytest.mark.parametrize("ranks", [1, 6])
def test_weights_of_other_replicas_than_there_are_now_are_not_shown(ranks: int, tmp_path: Path) -> None:
    """A job that is killed before it has summed up may be started again on other ranks, with nothing left to train."""
    run, settings = tmp_path / "run", ("run.kernels=plain", "model.widths=[4]", "data.batch=500", "train.epochs=1")
    first = train(2, run, *settings)
    assert first.returncode == 0
    assert "weight at the last meeting" in first.stdout
    (run / "summary.json").unlink()
    again = train(ranks, run, *settings, *(STAGED if ranks == 6 else ()))
    assert again.returncode == 0, again.stderr
    assert "weight at the last meeting" not in again.stdout
    assert "\nmeetings      1, weights from " in again.stdout
