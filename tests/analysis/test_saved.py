import os
import subprocess
import sys

import h5py
import numpy as np
import onnxruntime
import pytest
from launch import alone, mpirun
from train_jobs import SMALL, arguments, here, train
from trained import CLASSES, save_model

import mpinn
from mpinn.analysis.export import export
from mpinn.analysis.units import Watched, dead_units
from mpinn.array.pool import Pool
from mpinn.commands.extract import extract
from mpinn.config import InputError

MLP = {"model": {"name": "mlp", "widths": [7, 6]}}


@pytest.fixture
def file(tmp_path):
    return save_model(tmp_path / "a.h5", MLP, (3, 2), replicas=2)


def test_weights_by_name_and_by_layer(file):
    with mpinn.open(file) as saved, h5py.File(file) as plain:
        assert saved.layers == ["hidden1", "hidden2", "output"]
        assert [*saved.weights][:2] == ["hidden1/weight", "hidden1/bias"]
        assert len(saved.weights) == 6
        assert saved.weights["hidden1/weight"].shape == (6, 7)
        for name, values in saved.weights.items():
            np.testing.assert_array_equal(values, plain[f"model/network/{name}"][()])
        layer = saved.layer("hidden2")
        assert [*layer] == ["weight", "bias"]
        np.testing.assert_array_equal(layer["bias"], plain["model/network/hidden2/bias"][()])
        with pytest.raises(KeyError, match="hidden1/weight"):
            saved.weights["hidden3/weight"]
        with pytest.raises(KeyError, match="there are hidden1, hidden2, output"):
            saved.layer("hidden3")


def test_what_has_been_closed_says_so_and_is_not_called_damaged(file):
    with mpinn.open(file) as saved:
        saved.weights["hidden1/weight"]
        weights = saved.weights
    for read in (
        lambda: saved.history,
        lambda: saved.configuration,
        lambda: saved.weights,
        lambda: weights["hidden1/weight"],
        lambda: saved.predict(np.zeros((1, 3, 2))),
        lambda: saved.checkpoint.verify(),
    ):
        with pytest.raises(InputError, match=r"a\.h5: it has been closed, and nothing more can be read from it"):
            read()


def test_the_best_is_one_of_a_directory(file):
    with pytest.raises(InputError, match="the best is one of a run directory's checkpoints, and this is one file"):
        mpinn.open(file, best=True)


def test_a_replica_has_weights_of_its_own(file):
    with mpinn.open(file, replica=1) as saved, h5py.File(file) as plain:
        own = plain["replica/1/model/network/output/weight"][()]
        np.testing.assert_array_equal(saved.weights["output/weight"], own)
        assert not np.array_equal(own, plain["model/network/output/weight"][()])
    with pytest.raises(InputError, match="it has 2 replicas, from 0: there is no 2"):
        mpinn.open(file, replica=2)


def test_history_is_columns_of_equal_length(file):
    with mpinn.open(file) as saved:
        history = saved.history
    assert {name: column.shape for name, column in history.items()} == {"step": (2,), "loss": (2,)}
    assert history["loss"][0] == 0.5


def test_predictions_are_of_samples_that_are_not_normalised(file):
    x = np.random.default_rng(0).normal(size=(300, 3, 2))
    with mpinn.open(file, replica=0) as saved:
        found = saved.predict(x)
        y = ((x - [-1, 2]) / [0.5, 3]).reshape(300, 6)
        for name in saved.layers:
            layer = saved.layer(name)
            y = y @ layer["weight"].astype(np.float64) + layer["bias"]
            y = y if name == "output" else np.maximum(y, 0)
        np.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-5)
        assert saved.predict(x[:0]).shape == (0, CLASSES)
        with pytest.raises(ValueError, match=r"expected x of shape \(B, 3, 2\), got \(300, 6\)"):
            saved.predict(x.reshape(300, 6))


def test_predictions_are_those_of_evaluate(tmp_path):
    """Accuracy on the test split, which `evaluate` finds with compiled kernels and the numbers of the data set."""
    run = tmp_path / "run"
    assert train(2, run, *SMALL).returncode == 0
    told = alone("-m", "mpinn", "evaluate", str(run)).stdout
    with h5py.File("data/digits.h5", "r", locking=False) as data:
        x, target = data["test/x"][:], data["test/target"][:]
    with mpinn.open(run) as saved:
        y = saved.predict(x).astype(np.float64)
    loss = np.log(np.exp(y).sum(axis=1)) - y[np.arange(len(y)), target]
    assert f"accuracy {(y.argmax(axis=1) == target).mean():.4f}, loss {loss.mean():.4f}" in told


def test_a_file_without_normalisation_asks_its_data_set(file):
    with h5py.File(file, "a") as plain:
        del plain["data/mean"]
    with mpinn.open(file) as saved, pytest.raises(InputError, match=r"its data set is not here: data.path: .* 8 x 8"):
        saved.predict(np.zeros((1, 3, 2)))


def test_of_a_population_a_member_is_taken_first(tmp_path):
    population = ("model.name=population", "model.widths=[2,3]", "train.epochs=1")
    assert here(tmp_path / "run", *population) == 0
    with mpinn.open(tmp_path / "run") as saved:
        assert saved.layers
        for use in (lambda: saved.predict(np.zeros((1, 8, 8, 1))), lambda: dead_units(saved)):
            with pytest.raises(InputError, match="its model is a population: take one member"):
                use()
    with pytest.raises(InputError, match="its model is a population: take one member"):
        export(tmp_path / "run", "onnx", None, None, False)
    extract(tmp_path / "run", 1, tmp_path / "member")
    export(tmp_path / "member", "onnx", tmp_path / "member.onnx", None, False)
    x = np.random.default_rng(0).integers(0, 17, (9, 8, 8, 1))
    found = onnxruntime.InferenceSession(tmp_path / "member.onnx").run(["y"], {"x": x.astype(np.float32)})[0]
    with mpinn.open(tmp_path / "member") as saved:
        np.testing.assert_allclose(found, saved.predict(x), atol=1e-5)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="nothing"):
        mpinn.open(tmp_path / "nothing")
    with pytest.raises(InputError, match="no checkpoint"):
        mpinn.open(tmp_path)


def test_opening_imports_neither_mpi_nor_compiled_kernels(file):
    program = (
        "import sys, mpinn, numpy\n"
        "with mpinn.open(sys.argv[1]) as saved: saved.predict(numpy.zeros((1, 3, 2)))\n"
        "print(sorted({'mpi4py', 'cupy', 'numba'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", program, file], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.strip()) == (0, "[]"), ended.stderr


def test_dead_units_are_counted(tmp_path):
    """Units of digits whose bias is far below zero are never active; those of tanh only saturate."""
    layers = [
        {"kind": "conv", "outputs": 6, "activation": "relu"},
        {"kind": "flatten"},
        {"kind": "dense", "outputs": 4, "activation": "tanh"},
        {"kind": "dense", "outputs": CLASSES},
    ]
    path = save_model(
        tmp_path / "a.h5", {"model": {"name": "layers", "layers": layers}, "data": {"name": "digits"}}, (8, 8, 1),
        mean=np.array([4.8]), std=np.array([6.0]),
    )  # fmt: skip
    with h5py.File(path, "a") as plain:
        plain["model/network/conv1/bias"][:] = [0, -1e3, 0, 0, -1e3, 0]
        plain["model/network/dense1/bias"][0] = -1e3
        plain["model/network/dense1/weight"][:, 1] = 0
    with mpinn.open(path) as saved:
        found = dead_units(saved)
    assert (found["samples"], found["split"]) == (300, "validation")
    assert found["layers"] == [
        {"name": "conv1", "units": 6, "dead": 2},
        {"name": "dense1", "units": 4, "dead": 2},
    ]


def test_units_are_watched_over_all_batches():
    watched = Watched([4])
    for value in (2.0, 1.0, 3.0, 2.0):
        watched.activate("relu", np.array([[value, -value], [value, -1.0]]), Pool())
    low, high = watched.ranges[4,]
    assert (low.tolist(), high.tolist()) == ([1.0, 0.0], [3.0, 0.0])


def test_the_command_shows_dead_units_where_they_are_asked_for(tmp_path):
    run = tmp_path / "run"
    done = mpirun(2, *arguments(run, *SMALL, "model.norm=batch"))
    assert done.returncode == 0, done.stderr
    told = alone("-m", "mpinn", "inspect", str(run), "--units").stdout
    rows = [line.split() for line in told.splitlines()]
    assert ["dead", "on", "300", "of", "validation", "units", "dead", "share"] in rows
    assert ["hidden1/norm", "12"] in [row[:2] for row in rows]
    assert "dead on" not in alone("-m", "mpinn", "inspect", str(run)).stdout
    missing = alone("-m", "mpinn", "inspect", str(run), "--units", "--data", "elsewhere.h5")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "mpinn: --data: the digits come with the program" in missing.stderr
