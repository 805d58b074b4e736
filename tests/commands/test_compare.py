"""Experiments one after another: what is started, what is kept when it is typed again, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from launch import ROOT, alone, mpirun

from mpinn.commands.compare import Job, command, planned
from mpinn.config import InputError
from mpinn.training.choices import read_config

COMPARED = sorted((ROOT / "jobs" / "compare").glob("*.toml"))
SMALL = "[model]\nwidths = [12]\n[data]\nbatch = 200\n[train]\nepochs = 2\n"


def write(folder: Path, name: str, grid: str, more: str = "") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(f'[run]\ndirectory = "{folder}/runs/{name}"\n{SMALL}[grid]\n{grid}\n{more}')
    return path


def test_experiments_run_once_and_what_is_missing_is_done_later(tmp_path: Path) -> None:
    files = [
        write(tmp_path, "one", "replicas = 1"),
        write(tmp_path, "staged", "replicas = 1\nstages = 2",
              '[schedule]\nname = "parareal"\n[consensus]\nname = "none"\n'),
    ]  # fmt: skip
    text = files[1].read_text()
    files[1].write_text(text.replace("[12]", "[12, 12]").replace("epochs = 2", "epochs = 1"))
    line = ["-m", "mpinn", "compare", *map(str, files), "-o", str(tmp_path / "report")]
    done = alone(*line, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = tmp_path / "runs"
    told = [line.split(":")[0] for line in done.stdout.splitlines() if "accuracy" in line]
    assert told == [f"[1/2] {runs}/one-0 on 1 rank", f"[2/2] {runs}/staged-0 on 2 ranks"]
    assert json.loads((runs / "staged-0" / "summary.json").read_text())["grid"] == [1, 2, 1]
    assert "step" in (runs / "staged-0.log").read_text()
    kept = (runs / "one-0" / "summary.json").stat().st_mtime_ns
    (runs / "staged-0" / "summary.json").unlink()
    done = alone(*line, "--seeds", "2", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"[1/4] {runs}/one-0 on 1 rank: done before, test accuracy ")
    assert done.stdout.count("done before") == 1
    assert (runs / "one-0" / "summary.json").stat().st_mtime_ns == kept
    assert {path.name for path in runs.iterdir() if path.is_dir()} == {"one-0", "one-1", "staged-0", "staged-1"}
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<h1>4 runs: one, staged</h1>" in page


def test_one_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    bad = write(tmp_path, "bad", "replicas = 1", "[optimizer]\nrate = 1e30\n")
    good = write(tmp_path, "good", "replicas = 1")
    line = ["compare", str(bad), str(good), "-o", str(tmp_path / "report")]
    done = alone("-m", "mpinn", *line, timeout=120)
    assert done.returncode == 1
    assert f"bad-0 on 1 rank: failed with code 1, see {tmp_path}/runs/bad-0.log" in done.stdout
    assert "not finite" in (tmp_path / "runs" / "bad-0.log").read_text()
    assert "<h1>1 run: good</h1>" in (tmp_path / "report" / "index.html").read_text()


def test_the_ranks_are_those_of_the_grid_or_of_the_option(tmp_path: Path) -> None:
    files = [write(tmp_path, "a", "replicas = 2\nstages = 3"), write(tmp_path, "b", "replicas = 0")]
    jobs = planned(files, 2, 4, ("train.epochs=9",))
    moved = planned(files, 2, 4, (), tmp_path / "elsewhere")
    assert [job.directory for job in moved] == [tmp_path / "elsewhere" / job.directory.name for job in jobs]
    assert [(job.directory.name, job.seed, job.ranks) for job in jobs] == [
        ("a-0", 0, 6), ("b-0", 0, 4), ("a-1", 1, 6), ("b-1", 1, 4),
    ]  # fmt: skip
    assert jobs[2].arguments[-6:] == [
        "--set", "train.epochs=9", "--set", "run.seed=1", "--set", f"run.directory={tmp_path}/runs/a-1",
    ]  # fmt: skip
    assert command("srun --exact") == ["srun", "--exact"]


def test_a_changed_experiment_is_not_taken_for_the_one_that_was_done(tmp_path: Path) -> None:
    file = write(tmp_path, "a", "replicas = 1")
    job = Job(str(file), 0, tmp_path / "runs" / "a-0", 1, ())
    job.directory.mkdir(parents=True)
    # as a program wrote it that knew fewer keys: those that it lacks have their defaults
    asked = file.read_text().replace(f"runs/{file.stem}", f"runs/{file.stem}-0")
    (job.directory / "config.toml").write_text(asked)
    assert job.finished() is None
    (job.directory / "summary.json").write_text('{"test": {}}')
    assert job.finished() == {"test": {}}
    text = file.read_text()
    for old, new in (("epochs = 2", "epochs = 3"), ("widths = [12]", "widths = [12]\ndropout = 0.1")):
        file.write_text(text.replace(old, new))
        assert job.finished() is None
    assert Job(str(file), 1, job.directory, 1, ()).finished() is None


def test_what_is_wrong_is_said_before_the_first_starts(tmp_path: Path) -> None:
    good = write(tmp_path, "good", "replicas = 1")
    same = tmp_path / "same.toml"
    same.write_text(good.read_text())
    with pytest.raises(InputError, match="each needs one of its own"):
        planned([good, same], 1, 0, ())
    with pytest.raises(InputError, match=r"say how many with --ranks"):
        planned([good, write(tmp_path, "any", "replicas = 0")], 1, 0, ())
    with pytest.raises(InputError, match=r"train\.epoch: unknown key"):
        planned([good], 1, 0, ("train.epoch=1",))
    done = mpirun(2, "-m", "mpinn", "compare", str(good), "-o", str(tmp_path / "report"))
    assert "start it without a launcher" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_where_no_report_can_be_written_nothing_is_trained(tmp_path: Path) -> None:
    good = write(tmp_path, "good", "replicas = 1")
    (tmp_path / "text").write_text("mine")
    done = alone("-m", "mpinn", "compare", str(good), "-o", str(tmp_path / "text"))
    said = f"mpinn: --out: '{tmp_path}/text' is there and is no report: name another directory\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
    assert not (tmp_path / "runs").exists()


def test_the_compared_jobs_have_one_budget() -> None:
    configs = {file.stem: read_config(str(file), ()) for file in COMPARED}
    assert {"serial", "weighted", "parareal-2", "fdg", "layerwise", "gpipe"} <= {*configs}
    for name, config in configs.items():
        assert config.run.directory == f"runs/compare/{name}"
        for table in ("train", "optimizer", "loss", *(() if name.startswith("packed") else ("model",))):
            assert getattr(config, table) == getattr(configs["serial"], table), name
        assert config.data.batch == configs["serial"].data.batch
        assert config.grid.replicas * config.grid.stages <= 4
    members = configs["packed"].model.members()
    widths = [member.widths[0] for member in members]
    assert len(members) == 100
    assert abs(np.mean(widths) - configs["packed-alone"].model.widths[0]) < 1
    assert {member.activation for member in members} == {configs["packed-alone"].model.activation}
