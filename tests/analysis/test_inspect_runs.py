"""What `inspect` shows of runs: who trains, what is lost, the members of a population, and where data are."""

import csv
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import values, write_file
from launch import alone
from train_jobs import SMALL, arguments, here

from mpinn.analysis.inspect import describe, inspect
from mpinn.analysis.values import short
from mpinn.storage.lock import Lock
from mpinn.storage.reader import Checkpoint

POPULATION = (
    "model.name=population", "model.widths={from=1,to=12}", "model.repetitions=2", "model.rungs=['1 epoch']",
    "model.rates=[0.1,0.05]", "train.epochs=2", "data.batch=200", "optimizer.weight_decay=0.001",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "small"
    assert here(place, *SMALL, "checkpoint.every=1 epoch") == 0
    return place


def test_the_file_that_a_run_leaves_when_it_fails_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = alone(*arguments(tmp_path / "run", *SMALL, "optimizer.rate=1e30"))
    assert "is not finite" in failed.stderr
    (left,) = (tmp_path / "run").glob("inspection-*.h5")
    assert describe(tmp_path / "run")["run"]["inspections"] == [left.name]
    inspect(tmp_path / "run")
    assert f"failed  {left.name}: what it was then, which inspect and diff take" in capsys.readouterr().out
    inspect(left)
    shown = capsys.readouterr().out
    assert "nan, inf" in shown
    assert "1 replica x 1 stage x 1 shard\n" in shown


@pytest.fixture(scope="module", params=["classes", "values"])
def population(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    settings: tuple[str, ...] = ()
    if request.param == "values":
        rng = np.random.default_rng(0)
        sizes = {"train": 1200, "validation": 100, "test": 100}
        splits = {f"{split}_x": rng.random((size, 3)) for split, size in sizes.items()}
        np.savez(
            folder / "data.npz", **splits, **{f"{name[:-1]}y": x.sum(1, keepdims=True) for name, x in splits.items()}
        )
        settings = ("data.name=npz", f"data.path={folder / 'data.npz'}", "loss.name=squared_error")
        settings += ("consensus.score=inverse_loss",)
    assert here(folder / "population", *POPULATION, *settings) == 0
    return folder / "population"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


def shown(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    inspect(path)
    return capsys.readouterr().out.splitlines()


def state(lines: list[str]) -> str:
    return next(line.removeprefix("state").strip() for line in lines if line.startswith("state "))


def test_a_run_that_is_being_trained_says_by_whom(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert state(shown(run, capsys)) == "finished"
    (run / "summary.json").unlink()
    (run / "lock").write_text("pid 1 on host of-old")  # of a job that was killed: nobody holds it
    assert state(shown(run, capsys)) == "not finished"
    assert describe(run)["run"]["training"] is None
    lock = Lock()
    lock.take(run / "lock")
    try:
        assert state(shown(run, capsys)).startswith(f"being trained by pid {os.getpid()} on host ")
        assert describe(run)["run"]["training"].startswith(f"pid {os.getpid()} on host ")
    finally:
        lock.release()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (Path.unlink, "missing"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), "damaged"),
    ],
)
def test_a_finished_run_without_its_last_checkpoint_says_so(
    harm: Callable[[Path], object], said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run / "checkpoint-00000018.h5"
    harm(last)
    lines = shown(run, capsys)
    assert state(lines) == f"finished, but its last checkpoint is {said}: {last.name}"
    assert ["newest", "checkpoint-00000012.h5"] in [line.split() for line in lines]
    row = next(line.split() for line in lines if line.split()[:1] == [last.name])
    assert row[2] == said
    wrong = {entry["file"]: entry["wrong"] for entry in describe(run)["run"]["checkpoints"]}
    assert wrong == {
        "checkpoint-00000006.h5": None, "checkpoint-00000012.h5": None, last.name: said
    }  # fmt: skip


def test_a_last_checkpoint_that_is_not_listed_either_is_missed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = run / "checkpoint-00000018.h5"
    last.unlink()
    index = (run / "checkpoints.json").read_text()
    entry = index[index.rindex(",", 0, index.index(last.name)) : index.rindex("}", 0, index.rindex("]")) + 1]
    (run / "checkpoints.json").write_text(index.replace(entry, ""))
    assert state(shown(run, capsys)) == f"finished, but its last checkpoint is missing: {last.name}"


def test_arrays_are_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = np.linspace(-1, 2, 1000)
    long[3:5] = np.nan
    arrays = {
        "bounds": np.array([0, 2, 4]), "member_loss": long, "weights": np.full((60, 4), 0.25), "empty": np.zeros(0),
        "lost": np.full(9, np.nan), "one": 2.5,
    }  # fmt: skip
    write_file(tmp_path / "a.h5", 20, {"model/network": values(0)}, scalars=arrays)
    told = " ".join(" ".join(shown(tmp_path / "a.h5", capsys)).split())
    for text in (
        "bounds [0, 2, 4]",
        "member_loss (1000, -1 to 2, 2 not finite)",
        "weights (60x4, 0.25 to 0.25)",
        "empty []",
        "lost (9, nothing finite)",
        "one 2.5",
    ):
        assert text in told
    assert short(np.array([0.5, np.nan])) == "[0.5, nan]"


def test_a_population_is_shown_by_its_members(population: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(population / "ranking.csv", newline="") as file:
        ranking = list(csv.DictReader(file))
    found = describe(population)["checkpoint"]["population"]
    assert (found["members"], found["there"]) == (96, 48)
    assert [str(row["member"]) for row in found["best"]] == [row["member"] for row in ranking[:10]]
    for row, known in zip(found["best"], ranking, strict=False):
        for name in ("layers", "width", "activation", "seed"):
            assert str(row[name]) == known[name]
        for name in ("validation_loss", "rate", "weight_decay"):
            assert row[name] == float(known[name])
    with Checkpoint(population / "checkpoint-00000012.h5") as file:
        names = {parameter.name.split("/")[1] for parameter in file.parameters("model/network")}
    assert found["panels"] == len(names)
    lines = shown(population, capsys)
    assert next(line for line in lines if line.startswith("members")).startswith(
        "members  96, of which 48 are there, in"
    )
    start = next(number for number, line in enumerate(lines) if line.split()[:2] == ["best", "members"])
    measure = "validation_loss" if found["best"][0]["validation_accuracy"] is None else "validation_accuracy"
    assert [line.split()[:2] for line in lines[start + 2 : start + 12]] == [
        [row["member"], f"{float(row[measure]):.4f}"] for row in ranking[:10]
    ]
    assert len({row[measure] for row in ranking[:10]}) > 3
    told = "\n".join(lines)
    for word in ("population/panel", "member_", "consensus", "averaging"):
        assert word not in told


NARROW = """
import fcntl, struct, sys, termios
fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
from mpinn.cli.main import main
main(["inspect", sys.argv[1]])
"""


def test_names_of_checkpoints_stay_whole_on_a_narrow_terminal(run: Path) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    job = subprocess.Popen([sys.executable, "-c", NARROW, str(run)], stdout=slave, env=environment)
    os.close(slave)
    said = b""
    try:
        while piece := os.read(master, 4096):
            said += piece
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(master)
    assert job.wait(timeout=60) == 0
    told = said.decode()
    for step in (6, 12, 18):
        assert f"checkpoint-{step:08d}.h5 " in told
    assert "are left out" in told


@pytest.mark.parametrize("ending", ["npz", "h5"])
def test_units_of_moved_data_hint_at_the_option_that_says_where(ending: str, tmp_path: Path) -> None:
    data, moved, place = tmp_path / "data.npz", tmp_path / f"moved.{ending}", tmp_path / "run"
    rng = np.random.default_rng(0)
    splits = {}
    for split, size in (("train", 40), ("validation", 10), ("test", 10)):
        splits |= {f"{split}_x": rng.random((size, 3)), f"{split}_y": rng.integers(0, 2, size)}
    np.savez(data, **splits)
    assert here(place, "data.name=npz", f"data.path={data}", "data.batch=10", "train.epochs=1") == 0
    data.rename(tmp_path / "moved.npz")
    told = alone("-m", "mpinn", "inspect", str(place), "--units")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("mpinn: data.path: ")
    assert told.stderr.endswith("; where it is here, say with --data ...\n")
    told = alone("-m", "mpinn", "evaluate", str(place))
    assert told.stderr.endswith("; where it is here, say with --set data.path=...\n")
    told = alone("-m", "mpinn", "inspect", str(place), "--data", str(moved))
    assert (told.returncode, told.stderr) == (2, "mpinn: --data: goes with --units: nothing else needs the data set\n")
    told = alone("-m", "mpinn", "inspect", str(place), "--units", "--data", str(moved))
    assert told.returncode == (0 if ending == "npz" else 2)
    if ending != "npz":
        assert told.stderr.startswith("mpinn: --data: ")
        assert "say with" not in told.stderr
