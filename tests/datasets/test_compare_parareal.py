"""The script that compares parareal networks: a row for every number of blocks, with what its runs have reached."""

import json
from pathlib import Path

from launch import ROOT, alone


def test_a_row_for_every_number_of_blocks(tmp_path: Path) -> None:
    settings = ("model.widths=[9,8,7]", "train.epochs=1", "data.batch=200", "schedule.cut=estimated")
    line = [str(ROOT / "data/compare_parareal.py"), str(tmp_path), str(ROOT / "jobs/parareal.toml")]
    line += [word for setting in settings for word in ("--set", setting)]
    done = alone(*line, "--blocks", "1", "2", "--seeds", "3", "4", "--at-once", "2")
    assert done.returncode == 0, done.stderr
    serial, two = ([cell.strip() for cell in row.split("|")[1:-1]] for row in done.stdout.splitlines()[2:])
    assert serial[:2] == ["1 (serial)", f"{64 * 9 + 9 + 9 * 8 + 8 + 8 * 7 + 7 + 7 * 10 + 10:,}"]
    assert two[0] == "2"
    reached = [
        json.loads((tmp_path / f"2-blocks-seed-{seed}/summary.json").read_text())["test"]["accuracy"] for seed in (3, 4)
    ]
    assert two[3] == ", ".join(f"{100 * accuracy:.2f}" for accuracy in reached)
    assert two[2].startswith(f"{50 * sum(reached):.2f} ")


def test_a_run_that_cannot_be_is_told(tmp_path: Path) -> None:
    line = [str(ROOT / "data/compare_parareal.py"), str(tmp_path), str(ROOT / "jobs/parareal.toml")]
    done = alone(*line, "--set", "model.widths=[9]", "--blocks", "2", "--seeds", "0")
    assert done.returncode == 1
    assert "schedule.blocks: the model has" in done.stderr
