"""A locale whose encoding is not UTF-8: names that it cannot write are refused, and those that are there are read."""

import shutil
from pathlib import Path

import pytest
from launch import alone
from train_jobs import SMALL, arguments, here

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8:surrogateescape"}
WRONG = " is no name in the encoding ascii of this locale (LC_ALL=C): set LC_ALL=C.UTF-8"


@pytest.mark.parametrize("key", ["run.directory", "data.path", "schedule.warm"])
@pytest.mark.parametrize("typed", [True, False])
def test_a_path_that_the_locale_cannot_write_is_refused_with_its_name(key: str, typed: bool, tmp_path: Path) -> None:
    table, name = key.split(".")
    schedule = 'name = "parareal"\nblocks = 2\n' if table == "schedule" else ""
    (tmp_path / "run.toml").write_text(f'[{table}]\n{schedule}{name} = "läufe/größe 1"\n', encoding="utf-8")
    settings = ["schedule.name=parareal", "schedule.blocks=2"] if schedule else []
    typed_ones = [word for setting in (*settings, f"{key}=läufe/größe 1") for word in ("--set", setting)]
    words = typed_ones if typed else ["run.toml"]
    job = alone("-m", "mpinn", *words, cwd=tmp_path, env=ASCII)
    assert job.returncode == 2
    assert job.stderr == f"mpinn: {key}: 'läufe/größe 1'{WRONG}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_a_name_of_ascii_is_a_name_in_every_locale(tmp_path: Path) -> None:
    job = alone(*arguments(tmp_path / "run", *SMALL), env=ASCII)
    assert (job.returncode, job.stderr) == (0, "")


@pytest.mark.parametrize("name", ["größe-1", "gr\udcf6\udcdfe"])
def test_a_report_of_a_run_with_such_a_name(name: str, tmp_path: Path) -> None:
    assert here(tmp_path / "run", *SMALL) == 0
    shutil.move(tmp_path / "run", tmp_path / name)
    shutil.copytree(tmp_path / name, tmp_path / "again" / name, symlinks=True)
    (tmp_path / name / "checkpoints.json").write_text("")
    out = tmp_path / "report"
    job = alone("-m", "mpinn", "report", name, f"again/{name}", "-o", str(out), cwd=tmp_path, env=ASCII)
    assert (job.returncode, job.stderr) == (0, "")
    page = (out / "index.html").read_text(encoding="utf-8")
    shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    assert f"again/{shown}" in page


def test_what_the_locale_cannot_write_is_replaced_on_the_screen(tmp_path: Path) -> None:
    assert here(tmp_path / "run", *SMALL) == 0
    shutil.move(tmp_path / "run", tmp_path / "größe-1")
    plain = {name: value for name, value in ASCII.items() if name != "PYTHONIOENCODING"}
    job = alone("-m", "mpinn", "inspect", "größe-1", cwd=tmp_path, env=plain)
    assert (job.returncode, job.stderr) == (0, "")
    assert job.stdout.splitlines()[0].split() == ["run", "gr????e-1"]  # two bytes of UTF-8 each
