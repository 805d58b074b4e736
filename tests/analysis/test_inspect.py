import json
import math
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from checkpoint_files import LAYOUT, values, write_file

from mpinn.analysis.inspect import describe, inspect
from mpinn.analysis.moments import Moments
from mpinn.config import InputError
from mpinn.storage import schema
from mpinn.storage.directory import RunDirectory
from mpinn.storage.history import Metrics
from mpinn.storage.index import Saved, digest, write_index


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = RunDirectory(tmp_path / "runs" / "digits")
    directory.create()
    entries = []
    for step, score in ((10, 0.9), (20, 0.8)):
        path = directory.checkpoint(step)
        write_file(path, step, {"model/network": values(step), "optimizer/momentum/network": values(step + 1)})
        entries.append(Saved(path.name, step, 1, score, path.stat().st_size, digest(path)))
    write_index(directory, entries)
    metrics = Metrics(directory.metrics)
    metrics.append({"step": 20, "loss": 0.25})
    metrics.close()
    return directory.path


def test_a_file_is_described(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "BLOCK", 128)  # several blocks an array
    arrays = values(0)
    arrays["hidden1/dense/weight"][:10] = 0
    arrays["hidden1/dense/bias"][:2] = [math.nan, math.inf]
    write_file(tmp_path / "a.h5", 20, {"model/network": arrays})
    file = describe(tmp_path / "a.h5")["checkpoint"]
    assert (file["step"], file["epoch"], file["seed"]) == (20, 1, 3)
    assert file["grid"] == {"replicas": 1, "stages": 1, "shards": 1}
    assert file["configuration"]["consensus"] == {"name": "averaging"}
    assert file["data"] == {"position": 640}
    assert file["history"] == {"step": 2, "accuracy": 0.5}
    weight, bias, scale = file["parameters"]["model/network"]
    array = arrays["hidden1/dense/weight"].astype(np.float64)
    assert (weight["name"], weight["shape"], weight["count"]) == ("hidden1/dense/weight", [40, 5], 200)
    expected = [np.linalg.norm(array), array.mean(), array.std(), array.min(), array.max(), 0.25]
    found = [weight[name] for name in ("norm", "mean", "std", "min", "max", "zeros")]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert (bias["count"], bias["nonfinite"], weight["nonfinite"]) == (5, 2, 0)
    assert bias["max"] == arrays["hidden1/dense/bias"][2:].max()
    assert scale["shape"] == []
    total = file["totals"]["model/network"]
    assert (total["count"], total["nonfinite"]) == (LAYOUT.count, 2)


def test_statistics_do_not_depend_on_the_blocks():
    data = np.random.default_rng(0).standard_normal(1000) + 1e6
    whole, parts = Moments(), Moments()
    whole.add(data)
    for part in np.split(data, [0, 1, 17, 900]):
        parts.add(part)
    assert parts.summary() == pytest.approx(whole.summary(), rel=1e-9)
    assert parts.summary()["std"] == pytest.approx(data.std(), rel=1e-9)
    nothing = Moments()
    nothing.add(np.array([math.nan]))
    assert nothing.summary()["mean"] is None
    assert nothing.summary()["nonfinite"] == 1


def test_replicas_are_measured_against_their_mean_and_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "BLOCK", 128)
    own = [values(seed) for seed in range(3)]
    own[2] = {name: own[0][name] + np.float32(0.01) for name in own[0]}
    mean = {name: np.mean([values[name] for values in own], axis=0, dtype=np.float32) for name in own[0]}
    groups = {f"replica/{r}/model/network": own[r] for r in range(3)} | {"model/network": mean}
    groups |= {f"replica/{r}/optimizer/momentum/network": values(10 + r) for r in range(3)}
    groups["optimizer/momentum/network"] = values(20)
    scalars = {"meeting_weights": np.array([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]])}
    write_file(tmp_path / "a.h5", 20, groups, replicas=3, scalars=scalars)

    def flat(tree):
        return np.concatenate([tree[name].astype(np.float64).ravel() for name in tree])

    found = describe(tmp_path / "a.h5")["checkpoint"]
    assert [row["replica"] for row in found["replicas"]] == [0, 1, 2]
    assert [row["weight"] for row in found["replicas"]] == [0.2, 0.3, 0.5]
    assert [row["farthest"]["replica"] for row in found["replicas"]] == [1, 2, 1]
    for number, row in enumerate(found["replicas"]):
        apart = np.linalg.norm(flat(own[number]) - flat(mean))
        assert row["distance"] == pytest.approx(apart, rel=1e-9)
        assert row["relative"] == pytest.approx(apart / np.linalg.norm(flat(mean)), rel=1e-9)
        slots = np.linalg.norm(flat(values(10 + number)) - flat(values(20))) / np.linalg.norm(flat(values(20)))
        assert row["optimizer"] == pytest.approx(slots, rel=1e-9)
        for other in range(3):
            between = np.linalg.norm(flat(own[number]) - flat(own[other]))
            assert found["apart"][number][other] == pytest.approx(between, rel=1e-6, abs=1e-6)


def test_a_replica_that_is_not_finite_is_counted_and_left_out(tmp_path):
    own = [values(1), values(2)]
    mean = {name: (own[0][name] + own[1][name]) / 2 for name in own[0]}
    own[1]["hidden1/dense/weight"][3] = math.nan
    groups = {"replica/0/model/network": own[0], "replica/1/model/network": own[1], "model/network": mean}
    write_file(tmp_path / "a.h5", 20, groups, replicas=2)
    first, second = describe(tmp_path / "a.h5")["checkpoint"]["replicas"]
    assert (first["nonfinite"], second["nonfinite"]) == (0, 5)
    finite = np.isfinite(own[1]["hidden1/dense/weight"])
    squares = sum(float(np.square((own[1][name] - mean[name])[np.isfinite(own[1][name])]).sum()) for name in mean)
    assert finite.sum() == 195
    assert second["distance"] == pytest.approx(math.sqrt(squares), rel=1e-6)


def test_a_run_is_described_by_its_newest_good_file(run):
    (run / "checkpoint-00000020.h5").write_bytes(b"")
    description = describe(run)
    assert description["checkpoint"]["step"] == 10
    assert description["run"]["newest"] == "checkpoint-00000010.h5"
    assert [entry["best"] for entry in description["run"]["checkpoints"]] == [True, False]
    assert "checkpoint-00000020.h5: damaged" in description["run"]["notes"][0]
    assert description["run"]["last"] == {"step": 20, "loss": 0.25}


def test_a_run_whose_files_are_all_damaged_is_still_described(run):
    for path in run.glob("*.h5"):
        path.write_bytes(b"")
    description = describe(run)
    assert description["checkpoint"] is None
    assert "none of its 2 checkpoints" in description["run"]["notes"][-1]


def test_json_is_one_strict_object(run, capsys):
    inspect(run, json=True)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    document = json.loads(line, parse_constant=pytest.fail)
    assert document["checkpoint"]["scalars"] == {"best": None}
    assert set(document["checkpoint"]["totals"]) == {"model/network", "optimizer/momentum/network"}


def test_tables_name_every_layer_and_fit_a_terminal(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    inspect(run)
    out = capsys.readouterr().out
    for text in (
        "checkpoint-00000010.h5",
        "best",
        "hidden1/dense/weight",
        "40x5",
        "scalar",
        "averaging",
        "optimizer/momen",
    ):
        assert text in out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_written_layers_are_a_table_of_their_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    inner = {"kind": "conv", "name": "conv1", "outputs": 32, "kernel": [3, 1], "bias": False}
    layers = [
        {"kind": "residual", "name": "sum", "body": [inner], "projection": [{**inner, "name": "again"}]},
        {"kind": "flatten", "name": "flatten1"},
        {"kind": "dense", "name": "dense1", "outputs": 10, "initial": "lecun", "bias": True},
    ]
    model = {"name": "layers", "layers": layers}
    write_file(tmp_path / "a.h5", 1, {"model/network": values(0)}, model=model)
    inspect(tmp_path / "a.h5")
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "model name layers" in lines
    rows = lines[lines.index("model.layers kind options") + 2 :]
    assert rows[:6] == [
        "sum residual",
        "sum/body/conv1 conv outputs 32, kernel [3, 1], bias false",
        "sum/projection/again conv outputs 32, kernel [3, 1], bias false",
        "flatten1 flatten",
        "dense1 dense outputs 10, initial lecun, bias true",
        "",
    ]
    assert max(map(len, out.splitlines())) <= 80


def test_values_that_are_not_finite_get_a_column(tmp_path, capsys):
    arrays = values(0)
    write_file(tmp_path / "a.h5", 1, {"model/network": arrays})
    inspect(tmp_path / "a.h5")
    assert "nan, inf" not in capsys.readouterr().out
    arrays["hidden1/dense/bias"][0] = math.nan
    write_file(tmp_path / "a.h5", 1, {"model/network": arrays})
    inspect(tmp_path / "a.h5")
    assert "nan, inf" in capsys.readouterr().out


@pytest.mark.parametrize("make", ["text", "hdf5", "nothing", "empty directory"])
def test_what_is_neither_file_nor_run_is_refused_by_name(tmp_path, make):
    path = tmp_path / "given"
    if make == "text":
        path.write_text("hello")
    elif make == "hdf5":
        h5py.File(path, "w").close()
    elif make == "empty directory":
        path.mkdir()
    with pytest.raises(InputError, match="given"):
        describe(path)


def test_inspecting_imports_neither_mpi_nor_a_gpu(run):
    program = (
        "import sys; from pathlib import Path; from mpinn.analysis.inspect import inspect; inspect(Path(sys.argv[1]));"
        "print(sorted({'mpi4py', 'cupy', 'numba'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", program, run], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "[]")
