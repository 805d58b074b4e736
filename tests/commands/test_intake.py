"""Runs that begin with the weights of a file: what export writes comes back to the last bit."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from launch import alone
from train_jobs import SMALL, here, records, train, world

import mpinn
from mpinn.analysis.export import export
from mpinn.commands.intake import intake
from mpinn.config import InputError
from mpinn.signals import Signals

DEEP = ("model.widths=[12,10,8,9]", "model.norm=batch", "schedule.cut=estimated", "consensus.name=gradients")
MODELS = {
    "mlp": ("model.norm=batch", "optimizer.name=adamw"),
    "parareal": (*DEEP, "schedule.name=parareal", "schedule.blocks=3", "schedule.iterations=2"),
    "float64": ("run.dtype=float64",),
}


def take(file: Path, directory: Path, *overrides: str, config: str | None = None) -> int:
    return intake(world(), file, directory, config, overrides, Signals())


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / request.param
    assert here(directory, *SMALL, *MODELS[request.param]) == 0
    return directory


@pytest.mark.parametrize("to", ["npz", "safetensors"])
def test_what_is_exported_comes_back(run: Path, to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(run, to, tmp_path / f"model.{to}", None, False)
    assert take(tmp_path / f"model.{to}", tmp_path / "back") == 0
    assert f"train it      python -m mpinn {tmp_path}/back/config.toml" in capsys.readouterr().out
    x = np.random.default_rng(0).integers(0, 17, (20, 8, 8, 1))
    with mpinn.open(run) as before, mpinn.open(tmp_path / "back") as after:
        assert (after.step, after.dtype) == (0, before.dtype)
        for ours, theirs in ((before.weights, after.weights), (before.state, after.state)):
            assert [*ours] == [*theirs]
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name])
        np.testing.assert_array_equal(before.predict(x), after.predict(x))
        moments = [name for name in after.checkpoint.kinds() if name.startswith("optimizer/")]
        for kind in moments:
            for entry in after.checkpoint.parameters(kind):
                assert not after.checkpoint.weights(entry.name, kind).any()


def test_it_is_evaluated_and_trained_further_on_any_grid(tmp_path: Path) -> None:
    assert here(tmp_path / "run", *SMALL, *MODELS["parareal"], "train.epochs=8") == 0
    export(tmp_path / "run", "npz", tmp_path / "model.npz", None, False)
    line = ["-m", "mpinn", "import", str(tmp_path / "model.npz"), str(tmp_path / "back"), "--set", "train.epochs=2"]
    done = alone(*line, "--set", "optimizer.rate=0.01")
    assert done.returncode == 0, done.stderr
    told = [alone("-m", "mpinn", "evaluate", str(tmp_path / name)).stdout for name in ("run", "back")]
    assert told[0].split("digits test", 1)[1] == told[1].split("digits test", 1)[1] != ""
    shutil.copytree(tmp_path / "back", tmp_path / "three")
    settings = (str(tmp_path / "back" / "config.toml"), "--set", f"run.directory={tmp_path / 'three'}")
    done = alone("-m", "mpinn", *settings)
    assert (done.returncode, "resumed from" in done.stdout) == (0, True), done.stderr
    assert records(tmp_path / "three")[0]["loss"] < 1.0
    done = train(3, tmp_path / "back", *SMALL, *MODELS["parareal"], "schedule.cut=measured", "grid.stages=3",
                 "optimizer.rate=0.01", "train.epochs=2")  # fmt: skip
    assert (done.returncode, "stages begin at" in done.stdout) == (0, True), done.stderr


def test_arrays_of_one_s_own_need_a_configuration(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"hidden1/weight": (64, 3), "hidden1/bias": (3,), "output/weight": (3, 10), "output/bias": (10,)}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(InputError, match="give its configuration with --config"):
        take(tmp_path / "own.npz", tmp_path / "back")
    (tmp_path / "own.toml").write_text("[model]\nwidths = [3]\n")
    assert take(tmp_path / "own.npz", tmp_path / "back", config=str(tmp_path / "own.toml")) == 0
    with mpinn.open(tmp_path / "back") as saved:
        np.testing.assert_array_equal(saved.weights["hidden1/weight"], arrays["hidden1/weight"].astype(np.float32))


def test_other_numbers_of_normalisation_are_mentioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here(tmp_path / "run", *SMALL) == 0
    export(tmp_path / "run", "npz", tmp_path / "model.npz", None, False)
    with np.load(tmp_path / "model.npz") as file:
        arrays = dict(file)
    for mean, said in ((arrays["normalisation.mean"], False), (arrays["normalisation.mean"] + 1, True)):
        np.savez(tmp_path / "other.npz", **{**arrays, "normalisation.mean": mean})
        assert take(tmp_path / "other.npz", tmp_path / f"back{said}") == 0
        assert ("were normalised with other numbers" in capsys.readouterr().out) == said


BROKEN = {
    "missing": (lambda arrays: arrays.pop("output/bias"), "output/bias is missing"),
    "shape": (lambda arrays: arrays.update({"output/bias": np.zeros(4)}), r"has shape \(4,\), the model needs \(10,\)"),
    "type": (lambda arrays: arrays.update({"output/bias": np.zeros(10, int)}), "is int64, the model needs floats"),
    "more": (lambda arrays: arrays.update({"output/scale": np.zeros(4)}), "output/scale is not in the model"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_does_not_fit_is_refused_and_nothing_is_written(how: str, tmp_path: Path) -> None:
    assert here(tmp_path / "run", *SMALL) == 0
    export(tmp_path / "run", "npz", tmp_path / "model.npz", None, False)
    with np.load(tmp_path / "model.npz") as file:
        arrays = dict(file)
    change, said = BROKEN[how]
    change(arrays)
    np.savez(tmp_path / "broken.npz", **arrays)
    with pytest.raises(InputError, match=said):
        take(tmp_path / "broken.npz", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_bad_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "dir").mkdir()
    for file, directory, said in (
        ("none.npz", "back", "there is no such file"),
        ("text.npz", "back", "cannot be read as safetensors or npz"),
        ("text.npz", "dir", "name a directory that does not"),
    ):
        with pytest.raises(InputError, match=said):
            take(tmp_path / file, tmp_path / directory)
    done = alone("-m", "mpinn", "import", str(tmp_path / "none.npz"), str(tmp_path / "back"))
    assert (done.returncode, done.stdout) == (2, "")


def test_the_run_directory_is_that_which_is_named(tmp_path: Path) -> None:
    """An override in its place would write into a run that is there."""
    assert here(tmp_path / "run", *SMALL) == 0
    export(tmp_path / "run", "npz", tmp_path / "model.npz", None, False)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match=r"run\.directory: the run directory is '.*back', as named: leave this out"):
        take(tmp_path / "model.npz", tmp_path / "back", f" run.directory = {tmp_path / 'run'}")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert not (tmp_path / "back").exists()


def test_values_have_no_accuracy_here_either(tmp_path: Path) -> None:
    x, values = np.random.default_rng(0).normal(size=(2, 200, 3))
    np.savez(tmp_path / "values.npz", x_train=x, y_train=values, x_test=x, y_test=values)
    own = ("data.name=npz", f"data.path={tmp_path / 'values.npz'}", "data.batch=20")
    regression = ("loss.name=squared_error", "consensus.score=inverse_loss", "model.widths=[4]", "train.epochs=1")
    assert here(tmp_path / "run", *own, *regression) == 0
    export(tmp_path / "run", "npz", tmp_path / "model.npz", None, False)
    assert take(tmp_path / "model.npz", tmp_path / "back") == 0
    for run in ("run", "back"):
        with mpinn.open(tmp_path / run) as saved:
            loss, accuracy = saved.checkpoint.scalars["validation"]
        assert (loss > 0, np.isnan(accuracy)) == (True, True), run
