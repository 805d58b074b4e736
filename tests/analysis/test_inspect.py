import json
import math
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpinn.analysis.inspect import describe, inspect
from mpinn.analysis.moments import Moments
from mpinn.config import InputError
from mpinn.nn.layout import Layout
from mpinn.storage import schema
from mpinn.storage.directory import RunDirectory
from mpinn.storage.history import Metrics
from mpinn.storage.index import Saved, digest, write_index
from mpinn.storage.writer import Header, Piece, write

LAYOUT = Layout({"hidden1": {"dense": {"weight": (40, 5), "bias": (5,)}}, "output": {"scale": ()}}, "float32")


def values(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {entry.name: np.asarray(rng.standard_normal(entry.shape), "float32") for entry in LAYOUT}


def write_file(
    path: Path,
    step: int,
    arrays: dict[str, dict[str, np.ndarray]],
    replicas: int = 1,
    model: dict[str, object] | None = None,
) -> None:
    """A checkpoint with the arrays of each group."""
    snapshot = schema.Snapshot(
        step=step,
        epoch=1,
        seed=3,
        grid=(replicas, 1, 1),
        dtype="float32",
        configuration={"model": model or {"name": "mlp", "widths": [5]}, "consensus": {"name": "averaging"}},
        vectors=[],
        data={"position": 640},
        scalars={"best": math.nan},
        history={"step": np.array([1, 2]), "accuracy": np.array([0.5, math.nan])},
    )
    pieces = []
    for group, tree in arrays.items():
        kind = group.split("/", 2)[2] if group.startswith("replica") else group
        for name, array in tree.items():
            for block in schema.blocks(array.shape, array.itemsize):
                merged = replicas > 1 and group == kind
                pieces.append(Piece(group, kind, name, array.shape, block.selection, array[block.selection], merged))
    write(path, Header.of(snapshot, None), pieces)


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


def test_replicas_are_measured_against_their_mean(tmp_path):
    one, two, mean = values(1), values(2), {}
    for name in one:
        mean[name] = (one[name] + two[name]) / 2
    groups = {"replica/0/model/network": one, "replica/1/model/network": two, "model/network": mean}
    write_file(tmp_path / "a.h5", 20, groups, replicas=2)
    apart = math.sqrt(sum(float(np.square(one[name] - mean[name]).sum()) for name in one))
    size = math.sqrt(sum(float(np.square(mean[name]).sum()) for name in mean))
    found = describe(tmp_path / "a.h5")["checkpoint"]["replicas"]
    assert [row["replica"] for row in found] == [0, 1]
    for row in found:
        assert row["distance"] == pytest.approx(apart, rel=1e-6)
        assert row["relative"] == pytest.approx(apart / size, rel=1e-6)


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
    monkeypatch.setattr("mpinn.analysis.tables.WIDE", 80)
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
    monkeypatch.setattr("mpinn.analysis.tables.WIDE", 80)
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
