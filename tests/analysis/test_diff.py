import json
import math
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from checkpoint_files import values, write_file

from mpinn.analysis.apart import Apart
from mpinn.analysis.diff import compare, diff
from mpinn.config import InputError
from mpinn.storage import schema


def angle(one: np.ndarray, other: np.ndarray) -> float:
    """In degrees, by the arc cosine, in extended precision."""
    one, other = one.astype(np.longdouble).ravel(), other.astype(np.longdouble).ravel()
    return float(np.degrees(np.arccos(one @ other / np.sqrt(one @ one) / np.sqrt(other @ other))))


def write_pair(tmp_path, first, second, **options):
    for name, arrays in (("a.h5", first), ("b.h5", second)):
        write_file(tmp_path / name, 20, arrays, **options)
    return tmp_path / "a.h5", tmp_path / "b.h5"


def test_distance_and_angle_of_each_array(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "BLOCK", 128)
    monkeypatch.setattr("mpinn.analysis.apart.SLICE", 7)
    one, other = values(1), values(2)
    files = write_pair(tmp_path, {"model/network": one}, {"model/network": other})
    found = compare(*files)
    rows = {row["name"]: row for row in found["arrays"]["model/network"]}
    assert [*rows] == [*one]
    for name, row in rows.items():
        a, b = one[name].astype(np.float64), other[name].astype(np.float64)
        assert row["distance"] == pytest.approx(np.linalg.norm(a - b), rel=1e-12)
        assert row["relative"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-12)
        assert row["norms"] == pytest.approx([np.linalg.norm(a), np.linalg.norm(b)], rel=1e-12)
        assert row["angle"] == pytest.approx(angle(a, b), rel=1e-9, abs=1e-5)
        assert row["differing"] == a.size
    whole = [np.concatenate([tree[name].ravel() for name in tree]) for tree in (one, other)]
    total = found["totals"]["model/network"]
    assert total["angle"] == pytest.approx(angle(*whole), rel=1e-9)
    assert total["count"] == whole[0].size


@pytest.mark.parametrize("turn", [1e-7, 1e-4, 1.0, math.pi])
def test_small_and_large_angles_are_right(turn):
    apart = Apart()
    apart.add(np.array([2.0, 0.0]), 3 * np.array([math.cos(turn), math.sin(turn)]))
    assert apart.summary()["angle"] == pytest.approx(math.degrees(turn), rel=1e-9, abs=1e-7)


def test_equal_arrays_are_the_same_and_nan_is_nan(tmp_path, capsys):
    one = values(1)
    one["hidden1/dense/bias"][1] = math.nan
    files = write_pair(tmp_path, {"model/network": one}, {"model/network": one})
    total = compare(*files)["totals"]["model/network"]
    assert (total["differing"], total["distance"], total["angle"], total["nonfinite"]) == (0, 0.0, 0.0, 1)
    diff(*files)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-2:] for row in rows if row[:2] == ["all", "206"]] == [["same", "1"]]
    other = {name: array.copy() for name, array in one.items()}
    other["hidden1/dense/bias"][1] = math.inf
    write_file(tmp_path / "b.h5", 20, {"model/network": other})
    assert compare(*files)["totals"]["model/network"]["differing"] == 1


def test_what_only_one_file_has_is_named(tmp_path):
    one, other = values(1), values(1)
    del one["hidden1/dense/bias"]
    other["output/scale"] = np.zeros(3, "float32")
    files = write_pair(
        tmp_path,
        {"model/network": one, "optimizer/momentum/network": values(3)},
        {"model/network": other, "optimizer/first/network": values(3)},
    )
    found = compare(*files)
    assert found["only"] == {
        "first": ["optimizer/momentum/network"],
        "second": ["model/network/hidden1/dense/bias", "optimizer/first/network"],
    }
    assert found["shapes"] == [{"name": "model/network/output/scale", "shapes": [(), (3,)]}]
    assert [row["name"] for row in found["arrays"]["model/network"]] == ["hidden1/dense/weight"]


def test_configuration_steps_and_optimizer(tmp_path):
    model = {"name": "mlp", "widths": [5]}
    arrays = {"model/network": values(1), "optimizer/momentum/network": values(2)}
    write_file(tmp_path / "a.h5", 20, arrays, model=model)
    arrays["optimizer/momentum/network"] = {name: 2 * array for name, array in values(2).items()}
    write_file(tmp_path / "b.h5", 30, arrays, model={**model, "norm": "batch"}, scalars={"samples": np.array(7)})
    found = compare(tmp_path / "a.h5", tmp_path / "b.h5")
    assert found["configuration"] == [{"key": "model.norm", "values": [None, "batch"]}]
    assert found["facts"] == {"step": [20, 30], "samples": [None, 7]}
    total = found["totals"]["optimizer/momentum/network"]
    assert total["relative"] == pytest.approx(1.0)
    assert total["angle"] == pytest.approx(0.0, abs=1e-6)


def test_replicas_are_compared_by_their_numbers(tmp_path):
    def groups(*seeds):
        own = [values(seed) for seed in seeds]
        mean = {name: (own[0][name] + own[1][name]) / 2 for name in own[0]}
        return {f"replica/{r}/model/network": own[r] for r in range(2)} | {"model/network": mean}

    files = write_pair(tmp_path, groups(1, 2), groups(1, 3), replicas=2)
    first, second = compare(*files)["replicas"]
    assert first["differing"] == 0
    squares = sum(float(np.square(values(2)[name] - values(3)[name]).sum(dtype=np.float64)) for name in values(2))
    assert second["distance"] == pytest.approx(math.sqrt(squares), rel=1e-6)
    plain = {"model/network": values(1)}
    write_file(tmp_path / "b.h5", 20, plain)
    assert compare(tmp_path / "b.h5", tmp_path / "b.h5")["replicas"] == []


def test_types_of_different_width_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "BLOCK", 128)
    wide = {name: array.astype(np.float64) for name, array in values(1).items()}
    files = write_pair(tmp_path, {"model/network": values(1)}, {"model/network": wide})
    assert compare(*files)["totals"]["model/network"]["differing"] == 0


def test_json_is_strict_and_a_missing_file_is_named(tmp_path, capsys):
    one = values(1)
    one["output/scale"] = np.array(0, "float32")
    files = write_pair(tmp_path, {"model/network": one}, {"model/network": values(2)})
    diff(*files, json=True)
    out = capsys.readouterr().out
    document = json.loads(out, parse_constant=pytest.fail)
    assert out.count("\n") == 1
    assert document["arrays"]["model/network"][2]["angle"] is None
    with pytest.raises(InputError, match="elsewhere"):
        compare(files[0], tmp_path / "elsewhere")


MEASURE = """
import resource, sys
from pathlib import Path
from mpinn.analysis.{command} import {call}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{run}
print('KiB', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("command", ["diff", "inspect"])
def test_large_files_are_read_in_bounded_memory(tmp_path, command):
    """Two files with an array of 400 MB, of which the disk holds only a part: what was not written reads as zeros."""
    files = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for seed, path in enumerate(files):
        write_file(path, 20, {"model/network": values(seed)})
        with h5py.File(path, "a") as file:
            shape, dtype = (100_000, 1000), np.dtype("float32")
            array = file.create_dataset("model/network/wide/weight", shape, dtype)
            array[50_000:50_100] = seed + 1
    runs = {"diff": f"diff(Path({str(files[0])!r}), Path({str(files[1])!r}))",
            "inspect": f"inspect(Path({str(files[0])!r}))"}  # fmt: skip
    program = MEASURE.format(command=command, call=command, run=runs[command])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "100000x1000" in ended.stdout or "100,000,000" in ended.stdout
    assert int(ended.stdout.split()[-1]) < 64 * 1024
