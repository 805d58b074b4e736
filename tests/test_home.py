"""A ``~`` before a path is the home directory of the user, also where no shell has seen it."""

import tomllib
from pathlib import Path

import pytest
from launch import ROOT, alone

WORDS = "--set model.widths=[8,8,8] --set data.batch=400 --set train.epochs=1"


def test_a_tilde_is_the_home_directory_wherever_a_path_is_given(tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    digits = ROOT / "data" / "digits.h5"
    (home / "digits.h5").symlink_to(digits)
    (home / "job.toml").write_text('[run]\ndirectory = "~/run"\n[data]\nname = "hdf5"\npath = "~/digits.h5"\n')
    told = [
        f"train ~/job.toml --stop-after 1 {WORDS}",
        f"train --set run.directory=~/run --set data.name=hdf5 --set data.path=~/digits.h5 {WORDS}",
        f"--set run.directory=~/warm --set schedule.name=parareal --set schedule.blocks=2 --set schedule.warm=~/run "
        f"--set schedule.fit=0 {WORDS}",
        "evaluate ~/run --set data.path=~/digits.h5",
        "export ~/run --to=npz --out=~/model.npz",
        "import ~/model.npz ~/again",
    ]
    for line, code in zip(told, (75, 0, 0, 0, 0, 0), strict=True):
        job = alone("-m", "mpinn", *line.split(), cwd=here, env={"HOME": str(home)})
        assert (job.returncode, job.stderr) == (code, ""), line
    assert not any(here.iterdir())
    written = {path.name for path in home.glob("[!.]*")}
    assert written == {"digits.h5", "job.toml", "run", "warm", "model.npz", "again"}
    # the same place for somebody with another home
    stored = tomllib.loads((home / "run" / "config.toml").read_text())
    assert (stored["run"]["directory"], stored["data"]["path"]) == (f"{home}/run", f"{home}/digits.h5")
    assert tomllib.loads((home / "warm" / "config.toml").read_text())["schedule"]["warm"] == f"{home}/run"


@pytest.mark.parametrize("key", ["run.directory", "data.path"])
def test_a_home_directory_that_is_not_known_is_refused(key: str, tmp_path: Path) -> None:
    job = alone("-m", "mpinn", "--set", f"{key}=~nobody-here/run", cwd=tmp_path)
    assert (job.returncode, job.stdout) == (2, "")
    known = "the home directory ~nobody-here is not known; what has this name here is ./~nobody-here/run"
    assert job.stderr == f"mpinn: {key}: {known}\n"
    assert not any(tmp_path.iterdir())
