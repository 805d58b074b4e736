"""The loop: what it logs, and what becomes of a loss or a replica that is not finite."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pytest
from train_jobs import SMALL, datasets, records, summary

from mpinn.comm.grid import World
from mpinn.commands.train import train
from mpinn.consensus.consensus import Qualities, Quality
from mpinn.errors import FatalError
from mpinn.run.checks import Request
from mpinn.schedules.decoupled import Decoupled
from mpinn.schedules.serial import Serial
from mpinn.storage.history import Metrics
from mpinn.storage.restore import newest
from mpinn.training import agreement
from mpinn.training.boundary import Boundaries, Standing
from mpinn.training.choices import read_config
from mpinn.training.measure import ReplicaMeasure, RunMeasure
from mpinn.training.trainer import DivergedError, Outcome, Trainer

pytestmark = pytest.mark.mpi
Run = Callable[..., int]


@pytest.fixture
def run(world: World, mpi_tmp_path: Path) -> Run:
    """Train in this process, in the run directory ``run``; returns when the files are there for all ranks."""

    def start(*settings: str, **request: Any) -> int:
        overrides = (f"run.directory={mpi_tmp_path / 'run'}", *SMALL, *settings)
        try:
            return train(world, Request(overrides=overrides, **request))
        finally:
            world.control.barrier()

    return start


def poison(monkeypatch: pytest.MonkeyPatch, at: int, here: bool, schedule: Any = Serial) -> None:
    """Make the weights of the last layer NaN before batch ``at`` is handed in, if ``here``."""
    step = schedule.step

    def poisoned(self: Any, batch: Any, update: Any) -> Any:
        if here and batch.index == at:
            (part,) = self.parts.values()
            part.weight_views["output"]["weight"][...] = np.nan
        return step(self, batch, update)

    monkeypatch.setattr(schedule, "step", poisoned)


def test_the_loss_in_the_log_is_the_mean_over_all_samples_of_all_ranks(
    world: World, run: Run, mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, losses = Serial.step, []

    def noted(self: Serial, batch: Any, update: Any) -> Any:
        measured = step(self, batch, update)
        if "network" in self.parts:  # not the rehearsal that compiles kernels
            losses.append((sum(float(one.loss) for one in measured), float(batch.count)))
        return measured

    monkeypatch.setattr(Serial, "step", noted)
    assert run() == 0
    sums = np.array(losses)
    world.control.all_sum(sums).wait()
    logged = [line for line in records(mpi_tmp_path / "run") if "loss" in line]
    begin, rate = 0, read_config(None, SMALL).optimizer.course(6, 18)
    for line in logged:
        loss, samples = sums[begin : line["step"]].sum(axis=0)
        assert line["loss"] == pytest.approx(loss / samples, rel=1e-9)
        begin = line["step"]
        # so far, and of the last step
        assert (line["samples"], line["rate"]) == (sums[:begin, 1].sum(), rate(begin - 1))
    assert begin == 18


@pytest.mark.parametrize("consensus", ["gradients", "none"])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(
    consensus: str, world: World, run: Run, mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = world.size - 1
    poison(monkeypatch, 9, world.rank == where)
    with pytest.raises(DivergedError) as caught:
        run(f"consensus.name={consensus}", "checkpoint.every=3 steps")
    told = str(caught.value)
    # the replica whose weights were poisoned is the first whose loss is not finite
    assert told.startswith(f"step 10, rank {where}: the loss is not finite; ")
    assert "; noticed at step 12, when the first layer that is not finite is " in told
    file = Path(told.rpartition("The state is in ")[2])
    assert file.is_file()
    assert any(np.isnan(values).any() for path, values in datasets(file).items() if "output/weight" in path)
    if world.rank == 0:
        assert newest(mpi_tmp_path / "run", pytest.fail) == mpi_tmp_path / "run" / "checkpoint-00000009.h5"


def test_a_state_that_is_not_finite_is_never_a_checkpoint(world: World, run: Run, mpi_tmp_path: Path) -> None:
    """With a rate far too large the weights overflow before any loss is logged: saving at each step must notice."""
    settings = ("optimizer.rate=1e38", "optimizer.warmup=0 steps", "consensus.name=gradients", "train.log=1 epoch")
    with pytest.raises(DivergedError, match=r"(is|are) not finite; "):
        run(*settings, "checkpoint.every=1 step", "checkpoint.keep=20")
    for file in (mpi_tmp_path / "run").glob("checkpoint-*.h5"):
        for path, values in datasets(file).items():
            assert not path.startswith("model/") or np.isfinite(values).all(), path


def test_weights_that_are_not_finite_are_not_saved_though_all_losses_were(
    world: World, run: Run, mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Serial.step

    def spoilt(self: Serial, batch: Any, update: Any) -> Any:
        measured = step(self, batch, update)
        if batch.index == 8:
            self.parts["network"].weights[0] = np.nan
        return measured

    monkeypatch.setattr(Serial, "step", spoilt)
    with pytest.raises(DivergedError, match="step 9, rank 0: the weights are not finite"):
        run("consensus.name=gradients", "checkpoint.every=3 steps")
    if world.rank == 0:
        assert newest(mpi_tmp_path / "run", pytest.fail) == mpi_tmp_path / "run" / "checkpoint-00000006.h5"


def test_the_model_is_measured_after_a_meeting(world: World, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, quality = [], RunMeasure.quality

    def noted(self: RunMeasure, split: str, step: int = 0) -> Quality:
        asked.append((step, self._consensus.agreed))
        return quality(self, split, step)

    monkeypatch.setattr(RunMeasure, "quality", noted)
    assert run("consensus.period=10 steps") == 0
    alone = world.size == 1
    assert asked[:4] == [(5, alone), (10, True), (15, alone), (18, True)]


def test_a_score_is_of_the_epoch_that_ends(world: World, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, shard = [], ReplicaMeasure.shard

    def noted(self: ReplicaMeasure) -> Qualities:
        asked.append(self._epoch())
        return shard(self)

    monkeypatch.setattr(ReplicaMeasure, "shard", noted)
    assert run("consensus.score=accuracy_shard") == 0
    assert asked == [range(first, first + 6) for first in (0, 6, 12) if world.size > 1]


def test_one_poisoned_replica_is_left_out_and_starts_again_from_the_others(
    world: World, run: Run, mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    where = world.size - 1
    poison(monkeypatch, 9, world.rank == where)
    if world.size == 1:
        with pytest.raises(DivergedError, match="step 10, rank 0: the loss is not finite"):
            run()
        return
    # a save falls between the step that is poisoned and the meeting after it
    assert run("checkpoint.every=10 steps", "checkpoint.keep=9") == 0
    lines = records(mpi_tmp_path / "run")
    meeting = next(line for line in lines if line["step"] == 12 and "meeting_weights" in line)
    assert meeting["meeting_weights"][where] == 0
    assert meeting["meeting_scores"][where] is None
    assert sum(meeting["meeting_weights"]) == pytest.approx(1)
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    last = next(line for line in reversed(lines) if "meeting_weights" in line)
    assert min(last["meeting_weights"]) > 0
    assert np.isfinite(summary(mpi_tmp_path / "run")["test"]["loss"])
    between = datasets(mpi_tmp_path / "run" / "checkpoint-00000010.h5")
    assert np.isnan(between[f"replica/{where}/model/network/output/weight"]).all()
    assert np.isfinite(between["model/network/output/weight"]).all()
    if world.rank == 0:
        told = f"step 12: replica {where} is not finite; it goes on from the mean of the others"
        assert capfd.readouterr().out.count(told) == 1


def test_replicas_without_a_finite_score_do_not_meet_and_that_is_said(
    world: World, run: Run, mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked, validation = [], ReplicaMeasure.validation

    def unknown(self: ReplicaMeasure) -> Qualities:
        asked.append(self)
        found = validation(self)
        return replace(found, loss=np.full_like(found.loss, np.nan)) if len(asked) == 2 else found

    monkeypatch.setattr(ReplicaMeasure, "validation", unknown)
    assert run("consensus.score=inverse_loss") == 0
    met = [line["step"] for line in records(mpi_tmp_path / "run") if "meeting_weights" in line]
    assert met == ([] if world.size == 1 else [6, 18])
    if world.rank == 0:
        told = "step 12: no replica has a score that is finite: none moves to a mean"
        assert capfd.readouterr().out.count(told) == (world.size > 1)


def test_a_poisoned_replica_starts_again_from_the_others_whatever_was_in_flight(
    world: World, run: Run, mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = 2 if world.size == 4 else 1
    poison(monkeypatch, 9, world.rank == world.size - 1, Decoupled)
    settings = ("schedule.name=fdg", f"grid.stages={stages}", "schedule.cut=estimated", "consensus.period=4 steps")
    if world.size == 1:
        with pytest.raises(DivergedError, match="step 10, rank 0: the loss is not finite"):
            run(*settings)
        return
    # at a save all stages of the replica are poisoned
    assert run(*settings, "consensus.in_flight=keep", "checkpoint.every=11 steps") == 0
    met = {
        line["step"]: line["meeting_weights"][-1] for line in records(mpi_tmp_path / "run") if "meeting_weights" in line
    }
    assert met[8] > 0
    assert met[12] == 0
    assert met[16] > 0
    assert met[18] > 0


@pytest.mark.parametrize("every", ["10 steps", "10 epochs"])
def test_when_no_replica_is_finite_the_run_stops(
    every: str, run: Run, mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 9, True)
    with pytest.raises(
        DivergedError, match=r"^step \d+, rank 0: (no replica is finite|the loss is not finite); "
    ) as it:
        run(f"checkpoint.every={every}")
    assert Path(str(it.value).rpartition("The state is in ")[2]).is_file()
    assert list((mpi_tmp_path / "run").glob("checkpoint-*.h5")) == []


def test_metrics_that_cannot_be_written_end_the_run_on_all_ranks_at_the_next_save(
    run: Run, mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Metrics.append

    def full(self: Metrics, record: Any) -> None:
        if record["step"] > 8:
            raise OSError(28, "No space left on device")
        append(self, record)

    monkeypatch.setattr(Metrics, "append", full)
    with pytest.raises(FatalError, match="the metrics were not written"):
        run("checkpoint.every=5 steps")
    monkeypatch.undo()
    assert [path.name for path in (mpi_tmp_path / "run").glob("checkpoint-*.h5")] == ["checkpoint-00000005.h5"]
    assert run() == 0
    assert [line["step"] for line in records(mpi_tmp_path / "run") if "loss" in line] == [4, 8, 12, 16, 18]


def test_the_summary_counts_what_this_rank_sent(world: World, run: Run, mpi_tmp_path: Path) -> None:
    """Under averaging a meeting is one gather of a number and one sum of the vector, and nothing else is sent."""
    assert run("consensus.score=uniform", "consensus.period=6 steps") == 0
    found = json.loads((mpi_tmp_path / "run" / "summary.json").read_text())
    meetings = 3 if world.size > 1 else 0
    # two layers of 64 x 12 and 12 x 10 weights and their biases in float32, each padded to 256 bytes
    vector = 64 * 12 * 4 + 256 + 512 + 256
    assert [rank["bytes"] for rank in found["ranks"]] == [meetings * (vector + 8)] * world.size


def test_no_copy_is_made_at_a_save_before_all_have_the_one_before(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies are kept: of a rank that waits to save, one must be where the last of the others was."""
    keep, step, times = Boundaries.keep, Serial.step, dict[int, float]()

    def begun(self: Trainer) -> Outcome:
        self.boundaries = Boundaries(self.keeper.vectors, tuple(range(world.size)))
        return train_all(self)

    def timed(self: Boundaries, standing: Standing) -> None:
        times.setdefault(standing.step, perf_counter())
        keep(self, standing)

    def late(self: Serial, batch: Any, update: Any) -> Any:
        if (world.rank, batch.index) == (world.size - 1, 20):
            sleep(0.5)
        return step(self, batch, update)

    train_all = Trainer.run
    for kind, name, other in ((Trainer, "run", begun), (Boundaries, "keep", timed), (Serial, "step", late)):
        monkeypatch.setattr(kind, name, other)
    monkeypatch.setattr(agreement, "HORIZON", 1e9)  # boundaries after 1, 2, 4, 8, 16 and 32 steps
    alone = ("consensus.name=none", "train.epochs=7", "train.log=7 epochs", "train.evaluate=7 epochs")
    assert run(*alone, "checkpoint.every=33 steps") == 0
    assert 33 in times
    assert (32 in times) == (world.size > 1)
    order = np.array([times.get(32, -np.inf), -times[33]])
    world.control.all_max(order).wait()
    assert order[0] < -order[1]
