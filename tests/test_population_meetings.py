"""Replicas of a population that meet, under mpirun: on every number of shards, through rungs, patience and restarts."""

from pathlib import Path

import numpy as np
import pytest
from crew import Crews
from population_jobs import CHOOSY, POPULATION, members, newest, same
from train_jobs import datasets, differences, here, records, summary

from mpinn.population.ranking import population_in
from mpinn.storage.reader import Checkpoint
from mpinn.training.choices import read_config

AVERAGED = (
    *(setting for setting in POPULATION if not setting.startswith("grid.")),
    *CHOOSY,
    "grid.replicas=2",
    "consensus.period=4 steps",
    "run.dtype=float64",
)
"""Two replicas. Most evaluations, both rungs, and steps 7 and 10 are between meetings; members leave, move and stop."""


KINDS = ("averaging", "outer", "gossip")


@pytest.mark.parametrize("kind", KINDS)
def test_members_of_replicas_are_the_same_on_any_number_of_shards(kind: str, tmp_path: Path, crews: Crews) -> None:
    # messages are then under way when members leave
    form = ("consensus.form=combine_then_adapt", "consensus.period=1 step") if kind == "gossip" else ()
    for ranks, shards in ((2, 1), (4, 2)):
        settings = (*AVERAGED, f"consensus.name={kind}", *form, f"grid.shards={shards}")
        done = crews.train(ranks, tmp_path / str(shards), *settings)
        assert done.returncode == 0, done.stderr
        assert f"consensus {kind}" in done.stdout
    same(tmp_path / "1", tmp_path / "2")
    assert all(np.isfinite(array).all() for array in members(newest(tmp_path / "1")).values())
    found = [summary(tmp_path / name) for name in ("1", "2")]
    assert found[0]["test"] == found[1]["test"]
    # the best weights that a member had are merged ones
    for split in ("validation", "test"):
        told = crews.run(0, "-m", "mpinn", "evaluate", str(tmp_path / "2"), "--split", split).stdout
        assert f"accuracy {found[1][split]['accuracy']:.4f}, loss {found[1][split]['loss']:.4f}" in told


def test_what_a_meeting_says_is_of_all_shards(tmp_path: Path, crews: Crews) -> None:
    for ranks, shards in ((2, 1), (4, 2)):
        done = crews.train(ranks, tmp_path / str(shards), *AVERAGED, f"grid.shards={shards}")
        assert done.returncode == 0, done.stderr
        assert "consensus averaging, score accuracy" in done.stdout
    one, two = (summary(tmp_path / name) for name in ("1", "2"))
    assert one["weights"] == pytest.approx(two["weights"], rel=1e-12)
    assert [r for r in records(tmp_path / "1") if "validation_loss" in r] == [
        r for r in records(tmp_path / "2") if "validation_loss" in r
    ]
    assert [r["step"] for r in records(tmp_path / "1") if "meeting_weights" in r] == [4, 8, 12, 16, 18]
    assert two["weights"] != [0.5, 0.5]


def test_a_file_between_meetings_has_each_member_merged_by_its_own_weights(tmp_path: Path, crews: Crews) -> None:
    stopped = crews.train(2, tmp_path / "run", *AVERAGED, "--stop-after", "9")
    assert stopped.returncode == 75, stopped.stderr
    path = newest(tmp_path / "run")
    found = datasets(path)
    merge, place = found["consensus/averaging/merge"], 0
    with Checkpoint(path) as checkpoint:
        config = read_config(checkpoint.configuration, ())
        several = population_in(checkpoint.scalars, config.model.members(), 10)
    assert merge.shape == (2, len(several.members)) == (2, 24)
    assert (merge != merge[:, :1]).any()
    for name, panel in several.panels:
        at = f"model/network/population/{name}/output/bias"
        own = merge[:, place : place + len(panel.members), None]
        apart = np.array([found[f"replica/{replica}/{at}"] for replica in range(2)])
        assert (apart[0] != apart[1]).any()
        np.testing.assert_allclose(found[at], (own * apart).sum(axis=0), rtol=1e-14, atol=1e-16)
        place += len(panel.members)
    # and that is what the run has measured
    last = [record for record in records(tmp_path / "run") if "validation_loss" in record][-1]
    told = crews.run(0, "-m", "mpinn", "evaluate", str(tmp_path / "run"), "--split", "validation").stdout
    assert last["step"] == 9
    assert f"accuracy {last['validation_accuracy']:.4f}, loss {last['validation_loss']:.4f}" in told


@pytest.mark.parametrize("kind", KINDS)
def test_replicas_that_meet_go_on_with_the_same_bits(kind: str, tmp_path: Path, crews: Crews) -> None:
    settings = (*AVERAGED, f"consensus.name={kind}", "grid.shards=2")
    done = crews.train(4, tmp_path / "whole", *settings)
    assert done.returncode == 0, done.stderr
    for stop in ("7", "10"):
        stopped = crews.train(4, tmp_path / "parts", *settings, "--stop-after", stop)
        assert stopped.returncode == 75, stopped.stderr
    done = crews.train(4, tmp_path / "parts", *settings)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    # the configuration names the directory
    assert differences(newest(tmp_path / "whole"), newest(tmp_path / "parts")) == ["configuration"]


def test_members_that_diverged_everywhere_do_not_change_how_others_go_on(tmp_path: Path, crews: Crews) -> None:
    settings = (*POPULATION[:-2], "grid.replicas=2", "consensus.name=outer", "consensus.period=4 steps")
    # the first number of the first vector is then NaN
    settings = (*settings, "model.rates=[1e30, 0.1]", "model.activations=['relu']")
    done = crews.train(2, tmp_path / "whole", *settings)
    assert done.returncode == 0, done.stderr
    # no mean of others is there for them
    assert "not finite" not in done.stdout
    found = datasets(newest(tmp_path / "whole"))
    bias = found["model/network/population/panel0/hidden1/bias"]
    assert np.isnan(bias[0])
    assert np.isfinite(bias).any()
    assert not [name for name in found if name.startswith("replica/0/model/")]
    stopped = crews.train(2, tmp_path / "parts", *settings, "--stop-after", "10")
    assert stopped.returncode == 75, stopped.stderr
    done = crews.train(2, tmp_path / "parts", *settings)
    assert done.returncode == 0, done.stderr
    assert differences(newest(tmp_path / "whole"), newest(tmp_path / "parts")) == ["configuration"]


def test_replicas_that_go_on_on_other_shards_agree_at_the_next_meeting(tmp_path: Path, crews: Crews) -> None:
    settings = (*AVERAGED, "consensus.name=outer")
    stopped = crews.train(2, tmp_path / "run", *settings, "--stop-after", "10")
    assert stopped.returncode == 75, stopped.stderr
    assert [name for name in datasets(newest(tmp_path / "run")) if name.startswith("replica/0/model/")]
    done = crews.train(4, tmp_path / "run", *settings, "grid.shards=2")
    assert done.returncode == 0, done.stderr
    assert "model/network: the 2 replicas of step 10 differ; each of the 2 takes their mean" in done.stdout
    assert not [name for name in datasets(newest(tmp_path / "run")) if name.startswith("replica/0/model/")]


def test_replicas_that_met_go_on_as_one(tmp_path: Path, crews: Crews) -> None:
    stopped = crews.train(2, tmp_path / "run", *AVERAGED, "--stop-after", "10")
    assert stopped.returncode == 75, stopped.stderr
    done = crews.train(0, tmp_path / "run", *AVERAGED, "grid.replicas=1", "train.epochs=3")
    assert done.returncode == 0, done.stderr
    assert "model/network: the 2 replicas of step 10 differ; the one there is now takes their mean" in done.stdout
    assert summary(tmp_path / "run")["population"]["there"] == 12


@pytest.mark.parametrize("score", ["accuracy", "inverse_gradient_norm"])
def test_one_replica_remembers_of_meetings_what_a_network_does(score: str, tmp_path: Path) -> None:
    """And so goes on from files of before members met."""
    assert here(tmp_path / "run", *POPULATION, f"consensus.score={score}") == 0
    found = datasets(newest(tmp_path / "run"))
    wanted = {f"consensus/averaging/{name}" for name in ("merge", "samples", "squares", "steps", "agreed")}
    assert {name: array.shape for name, array in found.items() if name in wanted} == dict.fromkeys(wanted, (1,))
