"""Populations through the whole program on a device: rungs, patience, restarts, shards, extracted members."""

import csv
from pathlib import Path

import numpy as np
import pytest
from launch import alone, no_launcher
from train_jobs import SMALL, datasets, here, summary, train

POPULATION = (
    *SMALL[1:],
    "model.name=population",
    "model.widths=[3, 40, 50]",
    "model.layers=[1, 2]",
    "model.activations=['relu', 'tanh', 'gelu', 'identity']",
    "model.repetitions=1",
    "model.rungs=['6 steps', '14 steps']",
    "model.patience=1",
    "model.rates={draw = 'log_uniform', low = 0.01, high = 1}",
    "train.evaluate=3 steps",
    "train.clip=2",
    "optimizer.rate=0.2",
    "grid.replicas=1",
    "grid.shards=0",
    "run.device=gpu",
)
"""24 members in 8 panels, which leave and stop."""
WANTED = ("model/", "optimizer/", "scalars/member_")


def members(directory: Path) -> dict[str, np.ndarray]:
    """All that the newest checkpoint says of the members."""
    found = datasets((directory / "latest").resolve())
    return {name: array for name, array in found.items() if name.startswith(WANTED)}


def same(one: Path, other: Path) -> None:
    first, second = members(one), members(other)
    assert first.keys() == second.keys()
    assert not [name for name in first if first[name].tobytes() != second[name].tobytes()]


def close(one: Path, other: Path) -> None:
    first, second = members(one), members(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_allclose(second[name], array, rtol=1e-7, atol=1e-9, err_msg=name)


def test_a_run_is_that_of_a_cpu(tmp_path: Path) -> None:
    assert here(tmp_path / "gpu", *POPULATION, "run.dtype=float64") == 0
    assert here(tmp_path / "cpu", *POPULATION, "run.dtype=float64", "run.device=cpu") == 0
    close(tmp_path / "cpu", tmp_path / "gpu")
    one, other = (summary(tmp_path / name)["population"] for name in ("gpu", "cpu"))
    assert one["best"] == other["best"]
    assert [row["member"] for row in one["ranking"]] == [row["member"] for row in other["ranking"]]


@pytest.mark.skipif(bool(no_launcher()), reason="no mpirun")
@pytest.mark.parametrize("choosy", [False, True], ids=["all", "rungs and patience"])
def test_members_are_the_same_on_two_shards(choosy: bool, tmp_path: Path) -> None:
    fixed = () if choosy else ("model.rungs=[]", "model.patience=0")
    assert here(tmp_path / "1", *POPULATION, *fixed) == 0
    done = train(2, tmp_path / "2", *POPULATION, *fixed, timeout=300)
    assert done.returncode == 0, done.stderr
    same(tmp_path / "1", tmp_path / "2")
    assert summary(tmp_path / "2")["test"] == summary(tmp_path / "1")["test"]
    if not choosy:
        assert [rank["bytes"] for rank in summary(tmp_path / "2")["ranks"]] == [0, 0]


@pytest.mark.skipif(bool(no_launcher()), reason="no mpirun")
@pytest.mark.parametrize("wild", [(), ("model.rates=[0.1, 1e300]", "consensus.score=best")], ids=["", "wild"])
def test_members_of_replicas_meet_as_on_a_cpu(wild: tuple[str, ...], tmp_path: Path) -> None:
    settings = (*POPULATION, "grid.replicas=2", "consensus.name=averaging", "consensus.period=4 steps")
    settings = (*settings, "consensus.mix=0.7", "run.dtype=float64", *wild)
    for device in ("gpu", "cpu"):
        done = train(2, tmp_path / device, *settings, f"run.device={device}", timeout=300)
        assert done.returncode == 0, done.stderr
    close(tmp_path / "cpu", tmp_path / "gpu")
    one, other = (summary(tmp_path / name) for name in ("gpu", "cpu"))
    assert one["weights"] == pytest.approx(other["weights"], rel=1e-9)
    assert one["population"]["best"] == other["population"]["best"]


def test_a_stopped_run_goes_on_with_the_same_bits_and_also_on_a_cpu(tmp_path: Path) -> None:
    assert here(tmp_path / "whole", *POPULATION) == 0
    for directory in ("parts", "moved"):
        assert here(tmp_path / directory, *POPULATION, "run.dtype=float32", stop_after=10) == 75
    assert here(tmp_path / "parts", *POPULATION) == 0
    same(tmp_path / "whole", tmp_path / "parts")
    assert here(tmp_path / "moved", *POPULATION, "run.device=cpu") == 0
    whole, moved = (summary(tmp_path / name)["validation"]["loss"] for name in ("whole", "moved"))
    assert moved == pytest.approx(whole, rel=1e-3)


def test_an_extracted_member_has_the_numbers_of_the_population(tmp_path: Path) -> None:
    assert here(tmp_path / "run", *POPULATION) == 0
    done = alone("-m", "mpinn", "extract", str(tmp_path / "run"), "--best", "-o", str(tmp_path / "best"))
    assert done.returncode == 0, done.stderr
    told = alone("-m", "mpinn", "evaluate", str(tmp_path / "best"), "--split", "test").stdout
    assert f"accuracy {summary(tmp_path / 'run')['test']['accuracy']:.4f}" in told
    with (tmp_path / "run/ranking.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 24


def test_a_member_that_diverges_harms_nobody(tmp_path: Path) -> None:
    settings = (*POPULATION, "model.rates=[0.1, 1e30]", "model.rungs=[]", "model.patience=0")
    assert here(tmp_path, *settings) == 0
    with (tmp_path / "ranking.csv").open() as file:
        rows = list(csv.DictReader(file))
    wild = {row["validation_loss"] for row in rows if float(row["rate"]) > 1 and row["activation"] == "relu"}
    assert wild == {""}
    assert all(float(row["validation_loss"]) < 2.5 for row in rows if float(row["rate"]) < 1)
