import base64
import csv
import json
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from launch import alone
from train_jobs import SMALL, here, train

from mpinn.analysis.figures import look
from mpinn.analysis.rank_figures import KINDS, SHARES, window
from mpinn.analysis.report import report
from mpinn.analysis.run_tables import result_table, time_to
from mpinn.analysis.runs import Run, series_of
from mpinn.config import InputError, load
from mpinn.training.choices import CHOICES, DEFAULTS

RANK = {"computing": 0.5, "communicating": 0.2, "waiting": 0.3, "bytes": 1e6, "staleness": 0.9, "most_stale": 1.0,
        "staleness_formula": 1.0, "memory": 1e8}  # fmt: skip


def make_run(path: Path, losses, accuracies, seed=0, speed=10.0, finished=True, tables=None, meetings=None) -> Path:
    """A run directory with an epoch of ten steps and 80 samples; lines of loss and validation after each."""
    path.mkdir(parents=True)
    given = {**(tables or {}), "run": {"seed": seed, "directory": str(path)}}
    (path / "config.toml").write_text(load(given, (), CHOICES, DEFAULTS).toml())
    lines = []
    for number, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), 1):
        if meetings:
            lines.append({"step": 10 * number, "meeting_weights": meetings[number - 1]})
        facts = {"step": 10 * number, "loss": loss, "rate": 0.1, "samples": 80 * number, "seconds": number * speed}
        lines.append(facts)
        if accuracy is not None:
            lines.append({"step": 10 * number, "validation_loss": 1 - accuracy, "validation_accuracy": accuracy})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        ranks = [RANK, {**RANK, "bytes": 3e6, "memory": 2e8}]
        told = {"grid": [2, 1, 1], "ranks": ranks, "test": {"accuracy": accuracies[-1]},
                "validation": {"accuracy": accuracies[-1], "loss": 0.1}}  # fmt: skip
        (path / "summary.json").write_text(json.dumps(told))
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_runs_that_differ_in_their_seed_are_one_series(tmp_path):
    values = ([1.0, 0.5], [0.8, 0.9])
    paths = [make_run(tmp_path / f"small-seed{seed}", *values, seed=seed) for seed in range(3)]
    other = make_run(tmp_path / "other", *values, tables={"model": {"widths": [3]}})
    again = make_run(tmp_path / "again", *values, seed=2)
    found = series_of([Run(path) for path in (*paths[:2], other, paths[2], again)])
    names = [(one.label, [run.name for run in one.runs]) for one in found]
    assert names[0] == ("small", ["small-seed0", "small-seed1", "small-seed2"])
    assert [label for label, _ in names] == ["small", "other", "again"]


def test_mean_and_band_over_seeds(tmp_path):
    losses = np.array([[1.0, 0.5, 0.3], [2.0, 1.5, 0.1], [3.0, 1.0, 0.2]])
    runs = [
        Run(make_run(tmp_path / f"a{seed}", row, [0.5, 0.6, 0.7], seed=seed))
        for seed, row in enumerate(losses.tolist())
    ]
    (one,) = series_of(runs)
    x, mean, band = one.curve("loss", "step")
    np.testing.assert_array_equal(x, [10, 20, 30])
    np.testing.assert_allclose(mean, losses.mean(axis=0))
    np.testing.assert_allclose(band, [losses.min(axis=0), losses.max(axis=0)])
    x, mean, band = series_of(runs[:1])[0].curve("loss", "samples")
    np.testing.assert_array_equal(x, [80, 160, 240])
    np.testing.assert_array_equal(band, [mean, mean])


def test_seeds_of_different_speed_are_averaged_where_all_have_been(tmp_path):
    fast = make_run(tmp_path / "a0", [1.0, 0.0], [0.5, 0.6], seed=0, speed=10)
    slow = make_run(tmp_path / "a1", [1.0, 0.0], [0.5, 0.6], seed=1, speed=20)
    (one,) = series_of([Run(fast), Run(slow)])
    x, mean, _ = one.curve("loss", "seconds")
    assert (x[0], x[-1]) == (20, 20)
    np.testing.assert_allclose(mean, 0.5)  # at 20 s one has come to 0, the other is at 1


def test_validation_gets_the_samples_and_seconds_of_its_step(tmp_path):
    run = Run(make_run(tmp_path / "a", [1.0, 0.5, 0.2], [0.7, None, 0.9], speed=5))
    for axis, expected in (("step", [10, 30]), ("samples", [80, 240]), ("seconds", [5, 15])):
        x, accuracy = run.curve("validation_accuracy", axis)
        np.testing.assert_array_equal(x, expected)
        np.testing.assert_array_equal(accuracy, [0.7, 0.9])
    np.testing.assert_allclose(run.along(np.array([5.0, 25.0]), "seconds"), [2.5, 12.5])
    assert time_to(run, 0.8) == 15
    assert time_to(run, 0.95) is None


def test_results_are_means_with_a_deviation(tmp_path):
    paths = [
        make_run(tmp_path / f"a{seed}", [1.0, 0.5], [0.8, last], seed=seed) for seed, last in enumerate((0.9, 0.94))
    ]
    paths.append(make_run(tmp_path / "b", [1.0, 0.5], [0.8, 0.99], tables={"model": {"widths": [3]}}))
    table = result_table(series_of([Run(path) for path in paths]))
    told = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert told["a"]["test accuracy (%)"] == "92.00 ± 2.83"
    assert told["b"]["test accuracy (%)"] == "99.00"
    assert (told["a"]["seeds"], told["a"]["seconds"], told["a"]["MB sent"]) == (2, 20.0, 4.0)
    assert (told["a"]["seconds to 98%"], told["b"]["seconds to 98%"]) == (None, 20.0)
    # as much as the rank that had most; older summaries do not say
    assert (told["a"]["MB of a rank"], told["b"]["MB of a rank"]) == (200.0, 200.0)
    assert [told["a"][name] for name in ("networks", "networks x samples/s")] == [1, told["a"]["samples/s"]]


@pytest.mark.parametrize("unknown", ["null", "NaN"])
def test_where_the_system_does_not_tell_of_memory_the_column_is_empty(unknown, tmp_path):
    """NaN stood in the first summaries, null does in those that are JSON."""
    path = make_run(tmp_path / "a", [1.0, 0.5], [0.8, 0.9])
    text = re.sub(r'"memory": \d+\.0', f'"memory": {unknown}', (path / "summary.json").read_text())
    assert text.count(unknown) == 2
    (path / "summary.json").write_text(text)
    table = result_table(series_of([Run(path)]))
    assert dict(zip(table.columns, table.rows[0], strict=True))["MB of a rank"] is None


def test_a_population_trains_as_many_networks_and_old_summaries_know_no_memory(tmp_path):
    path = make_run(tmp_path / "a", [1.0, 0.5], [0.8, 0.9])
    told = json.loads((path / "summary.json").read_text())
    ranks = [{name: value for name, value in rank.items() if name != "memory"} for rank in told["ranks"]]
    (path / "summary.json").write_text(json.dumps({**told, "ranks": ranks, "population": {"members": 50}}))
    table = result_table(series_of([Run(path)]))
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["MB of a rank"], row["networks"]) == (None, 50)
    assert row["networks x samples/s"] == 50 * row["samples/s"]


def test_the_page_is_whole_and_tables_and_figures_stand_beside_it(tmp_path):
    weights = [[0.25, 0.75], [0.5, 0.5]]
    first = make_run(tmp_path / "averaged & <b>", [1.0, 0.5], [0.8, 0.9], meetings=weights)
    second = make_run(tmp_path / "half", [1.0, 0.5], [0.8, None], finished=False, tables={"model": {"widths": [3]}})
    out = tmp_path / "out"
    report([first, second], out)
    page = (out / "index.html").read_text()
    assert "averaged &amp; &lt;b&gt;" in page
    assert "<b>" not in page
    assert "half is not finished" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:|//|file:)|<script|@import|url\(""", page)
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {"curves.png", "time.png", "meetings.png", "shares.png"}
    assert {base64.b64decode(image) for image in images} == {path.read_bytes() for path in (out / "figures").iterdir()}
    for image in images:
        png = base64.b64decode(image)
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">I", png[16:20])[0] > 1500
    for link in re.findall(r'href="([^"]+)"', page):
        assert (out / link).is_file()
    assert rows(out / "tables" / "meetings.csv")[1] == {
        "run": "averaged & <b>", "step": "10", "replica": "1", "weight": "0.75",
    }  # fmt: skip
    lines = rows(out / "tables" / "curves.csv")
    assert [line["validation_accuracy"] for line in lines] == ["0.8", "0.9", "0.8", ""]
    assert [line["seconds"] for line in lines] == ["10.0", "20.0", "10.0", "20.0"]
    settings = {row["key"]: row for row in rows(out / "tables" / "settings.csv")}
    assert settings["model.widths"]["half"] == "[3]"
    report([first], out)  # a report may be written over
    assert "half is not finished" not in (out / "index.html").read_text()
    assert not (out / "tables" / "settings.csv").exists()


def test_a_run_that_has_just_begun_is_left_out_and_named(tmp_path, capsys):
    good = make_run(tmp_path / "good", [1.0], [0.5])
    young = make_run(tmp_path / "young", [], [], finished=False)
    report([young, good], tmp_path / "out")
    said = f"{young} is left out: it has no line of metrics yet."
    assert capsys.readouterr().out.splitlines()[0] == said
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count(said) == 1
    assert "1 run: good" in page
    assert [row["run"] for row in rows(tmp_path / "out" / "tables" / "runs.csv")] == ["good"]
    with pytest.raises(InputError, match="young: the run has no line of metrics yet, nor has any other"):
        report([young, make_run(tmp_path / "younger", [], [], finished=False)], tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_population_has_its_landscape(tmp_path):
    run = make_run(tmp_path / "many", [1.0], [0.5])
    lines = ["member,layers,width,activation,validation_accuracy,validation_loss"]
    lines += [f"{width},1,{width},{name},{0.9 - width / 10},0.5" for width in (1, 2) for name in ("relu", "tanh")]
    (run / "ranking.csv").write_text("\n".join([*lines, "5,1,4,tanh,,"]) + "\n")
    assert [row["width"] for row in Run(run).members] == ["1", "1", "2", "2", "4"]
    report([run], tmp_path / "out")
    assert (tmp_path / "out" / "figures" / "population-1.png").is_file()
    assert Run(make_run(tmp_path / "one", [1.0], [0.5])).members == []


def test_a_window_is_of_batches_that_follow_each_other():
    events = [
        {"name": name, "ts": 100.0 * batch + place, "dur": 40.0 + (300 if batch == 5 else 0), "args": {"batch": batch}}
        for batch in range(12)
        for place, name in ((0, "forward"), (50, "backward"))
    ]
    begin, end = window(events)
    assert begin % 100 == 0
    assert end - begin == 290
    assert window(events[:2]) == (0.0, 90.0)


@pytest.mark.parametrize("kinds", [KINDS, SHARES])
def test_what_stands_side_by_side_is_told_apart_in_grey(kinds):
    def grey(colour):
        red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    looks = [(grey(colour), hatch) for _, colour, hatch in kinds.values()]
    for place, (one, hatch) in enumerate(looks):
        for other, its in looks[place + 1 :]:
            assert hatch != its or abs(one - other) > 25


def test_many_lines_are_told_apart():
    looks = [tuple(map(str, look(index).values())) for index in range(32)]
    assert len({*looks}) == 32
    assert len({(dash, mark) for _, dash, mark in looks[::8]}) == 4


def test_runs_with_stages_have_a_partition_and_a_timeline(tmp_path):
    deep = (*SMALL, "model.widths=[12,11,10]", "grid.stages=2", "schedule.cut=estimated", "consensus.name=gradients")
    for name in ("fdg", "parareal"):
        done = train(2, tmp_path / name, *deep, f"schedule.name={name}", "--trace")
        assert done.returncode == 0, done.stderr
    done = alone(
        "-m", "mpinn", "report", str(tmp_path / "fdg"), str(tmp_path / "parareal"), "-o", str(tmp_path / "out")
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/out/index.html: 7 figures, 6 tables\n"), done.stderr
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert names == {"curves.png", "time.png", "stages.png", "shares.png", "partition.png", "timeline-1.png",
                     "timeline-2.png"}  # fmt: skip
    stages = rows(tmp_path / "out" / "tables" / "partition.csv")
    assert [row["stage"] for row in stages] == ["0", "1", "0", "1"]
    whole = 64 * 12 + 12 + 12 * 11 + 11 + 11 * 10 + 10 + 10 * 10 + 10
    assert sum(int(row["parameters"]) for row in stages if row["run"] == "fdg") == whole
    assert sum(int(row["parameters"]) for row in stages if row["run"] == "parareal") > whole
    assert [row["layers"].split()[-1] for row in stages if row["stage"] == "1"] == ["output", "output"]
    ranks = rows(tmp_path / "out" / "tables" / "ranks.csv")
    assert [row["by the formula"] for row in ranks] == ["1.0", "0.0", "0.0", "0.0"]


def test_a_regression_has_losses_only(tmp_path):
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(60, 4)), rng.normal(size=(60, 2))
    np.savez(tmp_path / "data.npz", **{f"{split}_{kind}": values for split in ("train", "test")
                                       for kind, values in (("x", x), ("target", target))})  # fmt: skip
    settings = ("data.name=npz", f"data.path={tmp_path}/data.npz", "data.batch=20", "loss.name=squared_error")
    assert (
        here(tmp_path / "run", *settings, "consensus.score=inverse_loss", "train.epochs=2", "optimizer.rate=0.01") == 0
    )
    report([tmp_path / "run"], tmp_path / "out")
    assert rows(tmp_path / "out" / "tables" / "results.csv")[0]["test accuracy (%)"] == ""


def test_what_is_no_run_and_what_is_no_report_are_refused(tmp_path, monkeypatch):
    good = make_run(tmp_path / "good", [1.0], [0.5])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: not a run directory: it has no config\.toml"):
        report([tmp_path / "empty"], tmp_path / "out")
    young = make_run(tmp_path / "young", [], [], finished=False)
    with pytest.raises(InputError, match="young: the run has no line of metrics yet"):
        report([young], tmp_path / "out")
    with pytest.raises(InputError, match="is there and is no report"):
        report([good], good)
    assert not (tmp_path / "out").exists()
    assert not (good / "index.html").exists()
    monkeypatch.setitem(sys.modules, "mpinn.analysis.pictures", None)
    with pytest.raises(InputError, match=r"pip install 'mpinn\[report\]'"):
        report([good], tmp_path / "out")
