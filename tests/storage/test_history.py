import json
import math

import numpy as np
import pytest

from mpinn.config import InputError
from mpinn.storage.history import Metrics, columns, read


def test_records_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.append({"step": 1, "loss": np.float32(0.5), "weights": np.array([0.25, 0.75]), "note": "größe"})
    metrics.append({"step": 2, "loss": float("nan"), "replica": {"loss": [1.0, math.inf]}})
    assert read(path) == [  # before it is closed: every line is flushed
        {"step": 1, "loss": 0.5, "weights": [0.25, 0.75], "note": "größe"},
        {"step": 2, "loss": None, "replica": {"loss": [1.0, None]}},
    ]
    metrics.close()
    assert read(tmp_path / "none") == []


def test_a_rewind_drops_later_steps_and_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in range(5):
        metrics.append({"step": step})
    metrics.rewind(2)
    metrics.append({"step": 3, "again": True})
    metrics.close()
    assert [record["step"] for record in read(path)] == [0, 1, 2, 3]
    assert read(path)[-1]["again"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_torn_last_line_is_passed_over_and_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert [record["step"] for record in read(path)] == [1, 2]
    metrics = Metrics(path)
    metrics.append({"step": 3})
    metrics.close()
    assert [record["step"] for record in read(path)] == [1, 2, 3]


@pytest.mark.parametrize("line", ["{", "[1]", "\x00"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + line + "\n" + '{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2"):
        read(path)


def test_columns_have_a_gap_where_a_record_has_nothing():
    table = columns([{"step": 1, "loss": 1, "name": "a"}, {"step": 2, "accuracy": 0.5, "loss": None}])
    assert list(table) == ["step", "loss", "accuracy"]
    assert (table["step"].dtype, table["step"].tolist()) == (np.int64, [1, 2])
    np.testing.assert_array_equal(table["loss"], [1, math.nan])
    np.testing.assert_array_equal(table["accuracy"], [math.nan, 0.5])
    assert columns([]) == {}
