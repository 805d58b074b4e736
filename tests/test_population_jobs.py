"""Populations under mpirun: the same to the last bit on every grid, through rungs, patience and restarts."""

import csv
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from crew import Crews
from population_jobs import CHOOSY, POPULATION, members, newest, same
from train_jobs import SMALL, datasets, here, records, summary, world

import mpinn
from mpinn.analysis.run_tables import run_table
from mpinn.analysis.runs import Run, series_of
from mpinn.commands.extract import extract
from mpinn.commands.train import train as train_here
from mpinn.errors import InputError
from mpinn.run.checks import Request, check
from mpinn.schedules.members import Members

RISE = "expected lengths that rise, after the start and before the end of"


@pytest.mark.parametrize("choosy", [(), CHOOSY], ids=["all", "rungs and patience"])
def test_members_are_the_same_on_any_number_of_shards(choosy: tuple[str, ...], tmp_path: Path, crews: Crews) -> None:
    assert here(tmp_path / "1", *POPULATION, *choosy) == 0
    for ranks in (2, 3) if choosy else (4,):
        done = crews.train(ranks, tmp_path / str(ranks), *POPULATION, *choosy)
        assert done.returncode == 0, done.stderr
        assert "population of 48 members with " in done.stdout
        same(tmp_path / "1", tmp_path / str(ranks))
        assert summary(tmp_path / str(ranks))["test"] == summary(tmp_path / "1")["test"]
        losses = [[line["loss"] for line in records(tmp_path / name) if "loss" in line] for name in (str(ranks), "1")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        if not choosy:
            # nothing is sent while they train
            assert [rank["bytes"] for rank in summary(tmp_path / str(ranks))["ranks"]] == [0] * ranks
    if choosy:
        with h5py.File(newest(tmp_path / "1")) as file:
            left, stopped = file["scalars/member_left"][()], file["scalars/member_stopped"][()]
        assert [int((left == step).sum()) for step in (6, 14, 0)] == [24, 12, 12]
        assert 0 < (stopped > 0).sum() < 48


@pytest.mark.parametrize("ranks", [1, 2])
def test_nothing_is_told_that_plays_no_part(ranks: int, tmp_path: Path, crews: Crews) -> None:
    done = crews.train(ranks, tmp_path / "run", *POPULATION, "train.epochs=1")
    assert done.returncode == 0, done.stderr
    for word in ("averag", "consensus", "replica never meets", "score"):
        assert word not in done.stdout
    told = summary(tmp_path / "run")
    assert (told["consensus"], told["score"]) == (None, None)
    table = run_table(series_of([Run(tmp_path / "run")]))
    assert dict(zip(table.columns, table.rows[0], strict=True))["consensus"] == ""


def test_replicas_of_a_shard_share_its_gradient(tmp_path: Path, crews: Crews) -> None:
    settings = [setting for setting in POPULATION if not setting.startswith("grid.")]
    choices = ("consensus.name=gradients", "run.dtype=float64", "model.rungs=['6 steps']")
    assert here(tmp_path / "1", *settings, *choices) == 0
    done = crews.train(4, tmp_path / "4", *settings, *choices, "grid.shards=2")
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "4")["grid"] == [2, 1, 2]
    one, four = (members(newest(tmp_path / name)) for name in ("1", "4"))
    assert one.keys() == four.keys()
    for name, array in one.items():
        np.testing.assert_allclose(four[name], array, rtol=1e-7, atol=1e-9, err_msg=name)


def test_a_rung_leaves_the_mean_of_the_losses_and_the_count_of_updates_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, shares = Members.step, []

    def noted(self: Members, batch: Any, update: Any) -> Any:
        shares.append(self.share * len(self.population.members))
        return step(self, batch, update)

    monkeypatch.setattr(Members, "step", noted)
    settings = (*POPULATION, "model.rungs=['6 steps']", "optimizer.name=adam", "run.kernels=plain")
    assert here(tmp_path, *settings) == 0
    assert shares == pytest.approx([1.0] * 18)
    assert datasets(newest(tmp_path))["counters/network/updates"] == 18


@pytest.mark.parametrize("later", [3, 1])
def test_a_stopped_run_goes_on_with_the_same_bits_on_another_number_of_shards(
    later: int, tmp_path: Path, crews: Crews
) -> None:
    assert here(tmp_path / "whole", *POPULATION, *CHOOSY) == 0
    stopped = crews.train(2, tmp_path / "parts", *POPULATION, *CHOOSY, "--stop-after", "10")
    assert stopped.returncode == 75, stopped.stderr
    done = crews.train(later, tmp_path / "parts", *POPULATION, *CHOOSY)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    same(tmp_path / "whole", tmp_path / "parts")
    assert [r["step"] for r in records(tmp_path / "parts")] == [r["step"] for r in records(tmp_path / "whole")]


def test_a_member_that_diverges_harms_nobody_and_is_ranked_last(tmp_path: Path, crews: Crews) -> None:
    settings = (*POPULATION, "model.rates=[0.1, 1e30]", "model.activations=['relu', 'tanh']", "run.dtype=float32")
    done = crews.train(2, tmp_path, *settings)
    assert done.returncode == 0, done.stderr
    rows = ranking(tmp_path)
    assert len(rows) == 48
    wild = [row for row in rows if float(row["rate"]) > 1]
    assert {row["validation_loss"] for row in wild if row["activation"] == "relu"} == {""}
    calm = [int(row["place"]) for row in rows if float(row["rate"]) < 1]
    assert max(calm) < min(int(row["place"]) for row in rows if not row["validation_loss"])
    assert all(float(row["validation_loss"]) < 2.5 for row in rows if float(row["rate"]) < 1)


def ranking(directory: Path) -> list[dict[str, str]]:
    with (directory / "ranking.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_summary_ranks_by_validation_and_tests_the_winner_alone(tmp_path: Path, crews: Crews) -> None:
    done = crews.train(2, tmp_path, *POPULATION, *CHOOSY)
    assert done.returncode == 0, done.stderr
    rows, found = ranking(tmp_path), summary(tmp_path)
    assert [int(row["place"]) for row in rows] == list(range(1, 49))
    there = [row for row in rows if row["left"] == "0"]
    assert there == rows[:12]
    values = [(-float(row["validation_accuracy"]), float(row["validation_loss"])) for row in there]
    assert values == sorted(values)
    assert found["population"]["best"] == int(rows[0]["member"])
    assert found["validation"]["accuracy"] == float(rows[0]["validation_accuracy"])
    assert f"member {rows[0]['member']} by validation" in done.stdout
    assert "36 members left" not in done.stdout
    assert "24 members left, 24 go on" in done.stdout
    assert "12 members left, 12 go on" in done.stdout


def test_an_extracted_member_is_an_ordinary_run_with_the_same_numbers(tmp_path: Path, crews: Crews) -> None:
    assert here(tmp_path / "run", *POPULATION, *CHOOSY) == 0
    best = ranking(tmp_path / "run")[0]
    done = crews.run(0, "-m", "mpinn", "extract", str(tmp_path / "run"), "--best", "-o", str(tmp_path / "best"))
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path / "run")
    for split in ("validation", "test"):
        told = crews.run(0, "-m", "mpinn", "evaluate", str(tmp_path / "best"), "--split", split).stdout
        assert f"accuracy {found[split]['accuracy']:.4f}, loss {found[split]['loss']:.4f}" in told
    again = crews.run(0, "-m", "mpinn", "extract", str(tmp_path / "run"), "--best", "-o", str(tmp_path / "best"))
    assert again.returncode == 2
    assert "exists already" in again.stderr
    longer = crews.run(0, "-m", "mpinn", str(tmp_path / "best/config.toml"), "--set", "train.epochs=5")
    assert longer.returncode == 0, longer.stderr
    assert "at step 18" in longer.stdout
    assert summary(tmp_path / "best")["steps"] == 30
    assert best["activation"] in (tmp_path / "best/config.toml").read_text()
    with mpinn.open(tmp_path / "best") as model:
        assert model.predict(np.zeros((2, 8, 8, 1))).shape == (2, 10)
    exported = crews.run(
        0, "-m", "mpinn", "export", str(tmp_path / "best"), "--to", "npz", "-o", str(tmp_path / "best.npz")
    )
    assert exported.returncode == 0, exported.stderr
    whole = crews.run(0, "-m", "mpinn", "export", str(tmp_path / "run"), "--to", "npz", "-o", str(tmp_path / "run.npz"))
    assert whole.returncode == 2
    assert "its model is a population: take one member" in whole.stderr
    told = crews.run(0, "-m", "mpinn", "evaluate", str(tmp_path / "run")).stdout
    assert f"member {best['member']}, the best of the population" in told
    assert f"accuracy {found['test']['accuracy']:.4f}, loss {found['test']['loss']:.4f}" in told


def test_an_extracted_member_goes_on_as_it_would_have_in_the_population(tmp_path: Path) -> None:
    """With its momentum and its own rate: as close as sums in another order come, in float64."""
    settings = (*POPULATION, *CHOOSY[3:], "run.dtype=float64", "optimizer.decay=constant", "optimizer.warmup=0 steps")
    assert here(tmp_path / "run", *settings) == 0
    assert here(tmp_path / "long", *settings, "train.epochs=5") == 0
    for number in (7, 40):
        target, then = tmp_path / str(number), tmp_path / f"{number} later"
        extract(tmp_path / "run", number, target)
        request = Request(file=str(target / "config.toml"), overrides=("train.epochs=5",))
        assert train_here(world(), request) == 0
        extract(tmp_path / "long", number, then)
        one, other = (datasets(newest(path)) for path in (target, then))
        names = [name for name in one if name.startswith(("model/", "optimizer/"))]
        assert len(names) > 7
        for name in names:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("schedule.name=fdg",), "schedule.name: a population is trained by the schedule serial, not by fdg"),
        (("model.widths=[]",), "model.widths: expected at least one"),
        (("model.widths=[0]",), "model.widths: 0 is not allowed: whole numbers of at least 1"),
        (("model.widths={from = 5, to = 1}",), "model.widths: from 5 is above to 1"),
        (("model.widths={from = 1, too = 9}",), "model.widths: too is unknown (did you mean to?)"),
        (("model.widths={draw = 'uniform', low = 1, high = 5}",), "model.widths: whole numbers are listed"),
        (("model.rates={draw = 'log', low = 1, high = 5}",), "model.rates: draw 'log' is not one of uniform"),
        (("model.rates={draw = 'log_uniform', low = 0, high = 5}",), "model.rates: a logarithmic range begins above 0"),
        (("model.rates=[0.1, -1]",), "model.rates: -1 is not allowed"),
        (("model.activations=[]",), "model.activations: expected at least one"),
        (("model.activations=['rel']",), "model.activations"),
        (("model.seeds=[1, 2]", "model.repetitions=2"), "model.repetitions: seeds say how often"),
        (("model.rungs=['1 epoch']", "model.survive=0"), "model.survive: expected a number above 0 and below 1, got 0"),
        (("model.survive=0",), "model.survive: expected a number above 0 and below 1, got 0"),
        (("model.survive=7",), "model.survive: expected a number above 0 and below 1, got 7"),
        (("model.rungs=['10 steps']", "train.epochs=1"), f"model.rungs: {RISE} the 1 epoch of 10 steps, got"),
        (("model.rungs=['60 epochs']",), f'model.rungs: {RISE} the 60 epochs of 10 steps, got ["60 epochs"]'),
        (("model.rungs=['2 epochs', '700 steps']",), f"model.rungs: {RISE} the 60 epochs of 10 steps"),
        (("model.rungs=['0 steps']",), f"model.rungs: {RISE}"),
        (("model.rungs=['2 epochs', '19 steps']",), f"model.rungs: {RISE}"),
        (("model.rungs=['2 epochs', '20 steps']",), f"model.rungs: {RISE}"),
        (("model.repetitions=10000000",), "model.widths: 1,000,000,000 members are too many: at most 10,000,000"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_the_door(settings: tuple[str, ...], said: str, tmp_path: Path) -> None:
    overrides = (f"run.directory={tmp_path / 'run'}", "model.name=population", *settings)
    with pytest.raises(InputError) as raised:
        check(Request(overrides=overrides), 1)
    assert said in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_may_be_cut_before_a_rung(tmp_path: Path) -> None:
    line = (*POPULATION, "model.rungs=['6 steps', '14 steps']")
    assert here(tmp_path / "run", *line, stop_after=7) == 75
    with pytest.raises(InputError, match=f"model.rungs: {RISE} the 2 epochs of 6 steps"):
        here(tmp_path / "new", *line, "train.epochs=2")
    assert not (tmp_path / "new").exists()
    assert here(tmp_path / "run", *line, "train.epochs=2") == 0
    assert here(tmp_path / "none", *line, "train.epochs=0") == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("grid.replicas=1", "grid.shards=0"), "the 1 members make 1 panels, which are never cut, so this can "
         "be at most as many, got 0, which is 2 here"),
        (
            ("consensus.name=averaging", "consensus.score=fisher"),
            "consensus.score: fisher is not measured for the members of a population; use uniform, accuracy, ",
        ),
        (("grid.shards=3",), "grid.shards: any number of replicas x 1 stages x 3 shards need a multiple of 3"),
    ],
)  # fmt: skip
def test_grids_that_a_population_cannot_use_are_refused(settings: tuple[str, ...], said: str) -> None:
    few = ("model.name=population", "model.widths=[3]", "model.activations=['relu']")
    with pytest.raises(InputError) as raised:
        check(Request(overrides=(*few, *settings)), 2)
    assert said in str(raised.value)


def test_members_that_are_not_there_are_not_extracted(tmp_path: Path, crews: Crews) -> None:
    assert here(tmp_path / "run", *POPULATION, *CHOOSY) == 0
    gone = next(int(row["member"]) for row in ranking(tmp_path / "run") if row["left"] == "6")
    with pytest.raises(InputError, match="numbered from 0 to 47, got 48"):
        extract(tmp_path / "run", 48, None)
    with pytest.raises(InputError, match=f"member {gone} left after step 6; see ranking.csv"):
        extract(tmp_path / "run", gone, None)
    assert not list((tmp_path / "run").glob("member-*"))
    assert here(tmp_path / "mlp", *SMALL) == 0
    with pytest.raises(InputError, match="has no members: its model is mlp"):
        extract(tmp_path / "mlp", None, None)
    done = crews.run(0, "-m", "mpinn", "extract", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "say which member: --member NUMBER or --best" in done.stderr
