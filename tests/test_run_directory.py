"""A run directory: the same command again, another setting, a longer run, a new start, and what lies in it."""

import json
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from launch import alone
from train_jobs import SMALL, contents, datasets, differences, here, records, summary, train

from mpinn.config import ORDER
from mpinn.errors import InputError
from mpinn.run.checks import Request, check
from mpinn.run.resumption import given, told_changes
from mpinn.schedules.serial import Serial
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import newest
from mpinn.training import trainer

STOPPED = 75


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that no test changes."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert here(directory, *SMALL) == 0
    return directory


def test_typed_again_a_finished_run_tells_its_summary_and_writes_nothing(finished: Path) -> None:
    before = contents(finished.parent)
    job = train(2, finished, *SMALL)
    assert (job.returncode, job.stderr) == (0, "")
    assert job.stdout.startswith(f"{finished} is a finished run")
    assert job.stdout.count(f"accuracy {summary(finished)['test']['accuracy']:.4f}") == 1
    assert contents(finished.parent) == before


def test_a_finished_run_that_was_moved_tells_commands_that_can_be_typed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "it's moved"
    shutil.copytree(finished, there, symlinks=True)
    assert here(there, *SMALL) == 0
    told = capsys.readouterr().out
    assert f"\ncheckpoint    {there / (finished / 'latest').readlink()}\n" in told
    assert f"\nuse it        python -m mpinn evaluate {shlex.quote(str(there))}\n" in told
    assert str(finished) not in told


def test_another_cadence_changes_nothing_about_a_finished_run(finished: Path) -> None:
    before = contents(finished.parent)
    assert here(finished, *SMALL, "train.log=1 step", "checkpoint.keep=9") == 0
    assert contents(finished.parent) == before


def test_another_setting_is_refused_with_the_keys_that_differ(finished: Path) -> None:
    before = contents(finished.parent)
    job = train(0, finished, *SMALL, "data.batch=100", "optimizer.momentum=0.5", "train.log=1 step")
    assert (job.returncode, job.stdout) == (2, "")
    told = "this run was started with other values: data.batch (200 -> 100), optimizer.momentum (0.9 -> 0.5); go back"
    assert job.stderr.startswith(f"mpinn: {finished}: {told}")
    assert "train.log" not in job.stderr
    with pytest.raises(InputError, match=r"other values: consensus.name \(averaging -> gossip\); go back"):
        here(finished, *SMALL, "consensus.name=gossip")
    assert contents(finished.parent) == before


def test_what_has_changed_is_told_by_the_name_of_a_table_and_without_words_of_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert here(run, *SMALL, stop_after=7) == STOPPED
    capsys.readouterr()
    assert here(run, *SMALL, "schedule.name=layerwise", stop_after=8) == STOPPED
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("schedule.")]
    assert said == ["schedule.name was serial and is layerwise"]
    old, new = ({"run": {"seed": 1, **more}, "model": {"name": "mlp"}} for more in ({}, {"device": "cpu"}))
    assert told_changes(old, new) == [("run.device", None, "cpu")]
    assert given(None) == "not set"


def test_a_run_of_before_there_was_a_key_goes_on_with_its_default(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert here(directory, *SMALL, stop_after=9) == STOPPED
    path = newest(directory, lambda line: None)
    assert path is not None
    with h5py.File(path, "a") as file:
        stored = json.loads(file["configuration"][()])
        assert stored["run"].pop("collectives") == "mpi"
        assert stored["train"].pop("clip") == 0.0
        del file["configuration"]
        file["configuration"] = np.bytes_(json.dumps(stored))
    (directory / "checkpoints.json").unlink()
    with pytest.raises(InputError, match=r"other values: train.clip \(0.0 -> 0.5\); go back"):
        here(directory, *SMALL, "train.clip=0.5")
    assert here(directory, *SMALL) == 0
    assert differences(directory / "latest", finished / "latest") == ["configuration"]


def test_a_shorter_run_is_refused(finished: Path) -> None:
    before = contents(finished.parent)
    with pytest.raises(InputError, match=r"^train.epochs: the run has been trained for 3 epochs"):
        here(finished, *SMALL, "train.epochs=2")
    assert contents(finished.parent) == before


def test_a_longer_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert here(run, *SMALL) == 0
    capsys.readouterr()
    assert here(run, *SMALL, "train.epochs=4") == 0
    said = capsys.readouterr().out
    assert "train.epochs was 3 and is 4" in said
    assert "the course of the cosine rate has changed" in said
    assert f"resumed from {run / 'checkpoint-00000018.h5'} at step 18" in said
    assert summary(run)["steps"] == 24
    assert tomllib.loads((run / "config.toml").read_text())["train"]["epochs"] == 4
    assert summary(run)["samples"] == 4 * 1197


def test_a_new_start_moves_the_old_run_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    for _ in range(3):
        assert here(run, *SMALL, fresh=True) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1", "run.2"]
    assert f"the run that was in {run} is now in {run}.2" in capsys.readouterr().out
    assert differences(run / "latest", tmp_path / "run.1" / "latest") == []


@pytest.mark.parametrize(("inside", "typed"), [("", "."), ("deeper", "..")])
def test_a_run_is_not_moved_away_from_where_one_is(
    inside: str, typed: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    (run / inside).mkdir(exist_ok=True)
    monkeypatch.chdir(run / inside)
    before = contents(tmp_path)
    for place in (typed, str(run)):
        with pytest.raises(InputError, match=r"^--fresh: .* is not moved aside while this is typed in it"):
            here(Path(place), *SMALL, fresh=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("period", "said"), [("4 steps", True), ("6 steps", False)])
def test_a_longer_run_tells_of_a_meeting_that_it_would_not_have_had(period: str, said: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = (*SMALL, f"consensus.period={period}")
    assert train(2, run, *settings).returncode == 0
    longer = (f"run.directory={run}", *settings, "train.epochs=4")
    told = " ".join(check(Request(overrides=longer), 2).notes)
    assert ("the replicas have met after step 18, where the run ended before, though it is no multiple" in told) == said


def table(path: Path, size: int = 60, features: int = 5, classes: int = 3) -> tuple[str, ...]:
    """Settings that train on a new file of that many samples, features and classes."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for split in ("train", "validation", "test"):
            file[f"{split}/x"] = rng.normal(size=(size, features))
            file[f"{split}/target"] = np.arange(size) % classes
    return *SMALL, "data.name=hdf5", "data.batch=20", f"data.path={path}"


def test_data_that_has_moved_is_the_same_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, whole, scratch = tmp_path / "run", tmp_path / "whole", tmp_path / "scratch"
    settings = table(tmp_path / "data.h5")
    assert here(whole, *settings) == 0
    assert here(run, *settings, stop_after=5) == STOPPED
    scratch.mkdir()
    (tmp_path / "data.h5").rename(scratch / "data.h5")
    capsys.readouterr()
    assert here(run, *settings, f"data.path={scratch / 'data.h5'}") == 0
    assert f"data.path was {tmp_path / 'data.h5'} and is {scratch / 'data.h5'}" in capsys.readouterr().out
    assert differences(run / "latest", whole / "latest") == ["configuration"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"size": 61}, r"train_samples \(60 -> 61\), validation_samples \(60 -> 61\), test_samples \(60 -> 61\)"),
        ({"features": 4}, r"sample_shape \(5 -> 4\)"),
        ({"classes": 4}, r"classes \(3 -> 4\)"),
    ],
)
def test_other_data_at_another_place_is_refused(other: dict[str, int], message: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert here(run, *table(tmp_path / "data.h5"), stop_after=5) == STOPPED
    settings = table(tmp_path / "other.h5", **other)
    before = contents(tmp_path)
    told = rf"^data.path: '.*/other.h5' holds other data than this run was started with: {message}$"
    with pytest.raises(InputError, match=told):
        here(run, *settings)
    assert contents(tmp_path) == before


def test_evaluating_elsewhere_says_how_to_name_the_data(tmp_path: Path) -> None:
    settings = [setting for setting in table(tmp_path / "data.h5") if not setting.startswith("data.path")]
    line = ["-m", "mpinn", *(part for setting in settings for part in ("--set", setting))]
    trained = alone(*line, "--set", "data.path=data.h5", "--set", "run.directory=run", cwd=tmp_path)
    assert (trained.returncode, trained.stderr) == (0, "")
    (tmp_path / "elsewhere").mkdir()
    evaluate = ("-m", "mpinn", "evaluate", "../run")
    job = alone(*evaluate, cwd=tmp_path / "elsewhere")
    told = "data.path: there is no file 'data.h5'; where it is here, say with --set data.path=..."
    assert (job.returncode, job.stderr) == (2, f"mpinn: {told}\n")
    assert alone(*evaluate, "--set", "data.path=../data.h5", cwd=tmp_path / "elsewhere").returncode == 0


def test_stopping_after_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert here(run, *SMALL, stop_after=7) == STOPPED
    assert (run / "requeue").exists()
    assert f"the same command goes on from {run / 'latest'}" in capsys.readouterr().out
    with Checkpoint(run / "latest") as checkpoint:
        assert (checkpoint.step, checkpoint.epoch) == (7, 1)
    before = contents(run)
    for step in (1, 7):
        with pytest.raises(InputError, match=f"^--stop-after: {step} lies behind: the run is at step 7$"):
            here(run, *SMALL, stop_after=step)
    assert contents(run) == before
    assert here(run, *SMALL, stop_after=8) == STOPPED
    assert here(run, *SMALL) == 0
    assert not (run / "requeue").exists()
    assert summary(run)["steps"] == 18


def test_stopping_after_the_last_step_is_to_finish(tmp_path: Path) -> None:
    assert here(tmp_path / "run", *SMALL, stop_after=18) == 0
    assert not (tmp_path / "run" / "requeue").exists()


def test_the_configuration_is_complete_and_makes_the_same_run(finished: Path, tmp_path: Path) -> None:
    tables = tomllib.loads((finished / "config.toml").read_text())
    assert list(tables) == list(ORDER)
    assert json.loads(bytes(datasets(finished / "latest")["configuration"][()])) == tables
    run = tmp_path / "run"
    assert here(run, file=str(finished / "config.toml")) == 0
    assert differences(run / "latest", finished / "latest") == ["configuration"]


def test_a_file_gives_what_the_overrides_leave(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("[model]\nwidths = [12]\n[train]\nepochs = 9\n[data]\nbatch = 400\n")
    assert here(tmp_path / "run", "train.epochs=1", file=str(tmp_path / "job.toml")) == 0
    tables = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (tables["model"]["widths"], tables["train"]["epochs"], tables["data"]["batch"]) == ([12], 1, 400)


def test_the_metrics_have_a_line_for_all_that_was_measured(finished: Path) -> None:
    lines = records(finished)
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [4, 8, 12, 16, 18]
    assert [line["step"] for line in lines if "validation_loss" in line] == [5, 10, 15, 18]
    for line in logged:
        epochs, steps = divmod(line["step"], 6)
        assert line["samples"] == 1197 * epochs + 200 * steps
        assert line["epoch"] == pytest.approx(line["step"] / 6)
    assert logged[-1]["loss"] < logged[0]["loss"]


def test_checkpoints_are_saved_kept_and_ranked(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert here(run, *SMALL, "checkpoint.every=2 steps", "checkpoint.keep=2", "train.evaluate=1 step") == 0
    index = json.loads((run / "checkpoints.json").read_text())["checkpoints"]
    scores = {line["step"]: line["validation_accuracy"] for line in records(run) if "validation_accuracy" in line}
    saved = range(2, 19, 2)
    best = max(saved, key=lambda step: (scores[step], -step))
    assert [entry["step"] for entry in index] == sorted({best, 16, 18})
    assert all(entry["score"] == scores[entry["step"]] for entry in index)
    assert sorted(path.name for path in run.glob("*.h5")) == [entry["file"] for entry in index]
    assert (run / "latest").resolve() == (run / "checkpoint-00000018.h5").resolve()


def test_checkpoints_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, steps = Serial.step, [0]

    def counted(self: Serial, batch: Any, update: Any) -> Any:
        steps[0] += 1
        return step(self, batch, update)

    monkeypatch.setattr(Serial, "step", counted)
    monkeypatch.setattr(trainer, "monotonic", lambda: 25.0 * steps[0])
    run = tmp_path / "run"
    assert here(run, *SMALL, "checkpoint.every=1 minute", "checkpoint.keep=100") == 0
    saved = [entry["step"] for entry in json.loads((run / "checkpoints.json").read_text())["checkpoints"]]
    assert saved == [3, 6, 9, 12, 15, 18]


def test_a_run_of_no_steps_saves_the_initial_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert here(run, *SMALL, "train.epochs=0") == 0
    assert summary(run)["steps"] == 0
    with Checkpoint(run / "latest") as checkpoint:
        assert checkpoint.step == 0
    assert here(run, *SMALL, "train.epochs=1") == 0
    assert summary(run)["steps"] == 6


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_taken(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    every = ("checkpoint.every=3 steps", "run.seed=3")
    assert here(run, *SMALL, *every, stop_after=10) == STOPPED
    newest_file = run / "checkpoint-00000010.h5"
    held = newest_file.read_bytes()
    if damage == "truncated":
        newest_file.write_bytes(held[: len(held) // 2])
    elif damage == "flipped":
        newest_file.write_bytes(held[:9999] + bytes([held[9999] ^ 16]) + held[10000:])
    else:
        newest_file.unlink()
    capsys.readouterr()
    assert here(run, *SMALL, *every) == 0
    said = capsys.readouterr().out
    assert f"{newest_file}: " in said
    assert "trying the checkpoint before it" in said
    assert f"resumed from {run / 'checkpoint-00000009.h5'} at step 9" in said
    assert here(whole, *SMALL, *every) == 0
    assert differences(run / "latest", whole / "latest") == ["configuration"]
    assert [line["step"] for line in records(run)] == [line["step"] for line in records(whole)]


def test_without_a_good_checkpoint_the_run_is_refused_not_begun_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert here(run, *SMALL, stop_after=5) == STOPPED
    (run / "checkpoint-00000005.h5").write_bytes(b"")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="none of its 1 checkpoints can be used"):
        here(run, *SMALL)
    assert contents(tmp_path) == before


def test_metrics_that_are_not_json_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert here(run, *SMALL, stop_after=9) == STOPPED
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "#", *lines[1:], ""]))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"metrics.jsonl: line 2 is not JSON"):
        here(run, *SMALL)
    assert contents(tmp_path) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert here(run, *SMALL, stop_after=5) == STOPPED
    for left in ("latest", "checkpoints.json", "checkpoint-00000005.h5"):
        (run / left).unlink()
    assert here(run, *SMALL, "run.seed=7") == 0
    assert [line["step"] for line in records(run) if "loss" in line] == [4, 8, 12, 16, 18]
    assert newest(run, print) == run / "checkpoint-00000018.h5"


def test_a_regression_has_no_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for split in ("train", "validation", "test"):
            x = rng.normal(size=(60, 5))
            file[f"{split}/x"], file[f"{split}/target"] = x, x[:, :1] - x[:, 1:2]
    data = ("data.name=hdf5", f"data.path={tmp_path / 'data.h5'}", "data.batch=20", "loss.name=squared_error")
    run, network = tmp_path / "run", "model.widths=[64,64]"
    assert here(run, *data, network, "consensus.score=inverse_loss", "train.epochs=30", "checkpoint.every=1 epoch") == 0
    told = capsys.readouterr().out
    assert "accuracy" not in told
    assert list(summary(run)["test"]) == ["loss"]
    losses = {line["step"]: line["validation_loss"] for line in records(run) if "validation_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert f"  validation loss {losses[90]:.4f}\n" in told
    assert losses[best] < 0.01 * losses[3]
    kept = json.loads((run / "checkpoints.json").read_text())["checkpoints"]
    assert max(kept, key=lambda entry: entry["score"])["step"] == best
    loss, accuracy = datasets((run / "latest").resolve())["scalars/validation"]
    assert (loss, np.isnan(accuracy)) == (losses[90], True)
    files = [run / entry["file"] for entry in kept[-2:]]
    told = alone("-m", "mpinn", "diff", *map(str, files)).stdout
    assert "validation loss" in told
    assert "accuracy" not in told
