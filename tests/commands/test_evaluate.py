"""``evaluate``: what it takes of the configuration, and what it refuses because it would change nothing."""

import re
from pathlib import Path

import numpy as np
import pytest
from train_jobs import SMALL, here, world

import mpinn
from mpinn.commands.evaluate import evaluate
from mpinn.commands.extract import extract
from mpinn.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("evaluated") / "run"
    assert here(place, *SMALL) == 0
    return str(place)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("grid.stages", "7", "every rank measures the whole model on its share of the samples"),
        ("grid.replicas", "1", "every rank measures the whole model on its share of the samples"),
        ("train.epochs", "9", r"\[train\] says how to train, and a model is only measured here"),
        ("optimizer.rate", "9.0", r"\[optimizer\] says how to train, and a model is only measured here"),
        ("consensus.score", "best", r"\[consensus\] says how to train, and a model is only measured here"),
        ("data.batch", "9", "it is one of training, and a model is only measured here"),
        ("checkpoint.keep", "9", r"\[checkpoint\] says how to train, and a model is only measured here"),
    ],
)
def test_what_changes_nothing_is_refused(key: str, value: str, why: str, run: str) -> None:
    with pytest.raises(InputError, match=rf"^{key}: {why}: leave this out$"):
        evaluate(world(), run, "test", ("run.device=cpu", f"{key}={value}"), False)


def test_a_key_that_is_unknown_is_named_as_such(run: str) -> None:
    with pytest.raises(InputError, match=r"^grid\.stage: unknown key"):
        evaluate(world(), run, "test", ("grid.stage=7",), False)


def test_what_says_how_to_measure_is_taken(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert evaluate(world(), run, "validation", ("run.device=cpu", "run.kernels=plain", "data.memory=1.0"), False) == 0
    assert "digits validation, 300 samples: accuracy 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "loss"),
    [(("model.widths=[8]",), "nan\n"), (("model.name=population", "model.activations=['relu']"), "")],
    ids=["network", "population"],
)
def test_outputs_that_overflow_are_a_result_and_no_warning(
    model: tuple[str, ...], loss: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One step so long that the weights are finite, and what they make of the samples is not, of many members at least.

    A warning would be an error here.
    """
    far = ("optimizer.rate=1e25", "optimizer.decay=constant", "optimizer.warmup=0 steps", "data.batch=1197")
    assert here(tmp_path / "run", *far, *model, "train.epochs=1", "run.kernels=plain") == 0
    capsys.readouterr()
    assert evaluate(world(), str(tmp_path / "run"), "test", ("run.device=cpu",), False) == 0
    assert f", loss {loss}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["mlp", "population"])
def test_other_data_are_normalised_as_in_training(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not with the numbers of their own training split, of less than a batch: `predict` does not know those."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(3, 2, (200, 4)), np.arange(200) % 3
    np.savez(tmp_path / "one.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
    np.savez(tmp_path / "other.npz", x_train=50 * x[:9], y_train=labels[:9], x_test=x[:70], y_test=labels[:70])
    data = ("data.name=npz", "data.batch=20", "train.epochs=2", "model.widths=[5]", f"model.name={kind}")
    assert here(tmp_path / "run", *data, f"data.path={tmp_path / 'one.npz'}") == 0
    capsys.readouterr()
    assert evaluate(world(), str(tmp_path / "run"), "test", (f"data.path={tmp_path / 'other.npz'}",), False) == 0
    told = re.search(r"70 samples: accuracy ([\d.]+), loss ([\d.]+)", capsys.readouterr().out)
    single = tmp_path / "run"
    if kind == "population":
        extract(single, None, tmp_path / "best")
        single = tmp_path / "best"
    with mpinn.open(single) as saved:
        y = saved.predict(x[:70]).astype(np.float64)
    losses = np.log(np.exp(y).sum(axis=1)) - y[np.arange(70), labels[:70]]
    assert told is not None
    np.testing.assert_allclose(float(told[2]), losses.mean(), atol=2e-4)
    np.testing.assert_allclose(float(told[1]), (y.argmax(axis=1) == labels[:70]).mean(), atol=1e-4)
