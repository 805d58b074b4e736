"""Jobs with stages: what they print, their timeline, what evaluates them, and what they are refused for."""

import json
import re
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import pytest
from crew import Crews
from train_jobs import LAYER, SMALL, arguments, datasets, paced, records, summary, train

ACCURATE = ("train.epochs=15", "train.evaluate=15 epochs", "train.clip=1", "data.batch=32", "model.widths=[32,32,32]",
            "consensus.name=gradients")  # fmt: skip
DEEP = (*SMALL, "model.widths=[64,64,64]", "grid.stages=2", "schedule.cut=estimated", "consensus.name=gradients")


def events(directory: Path) -> dict[int, list[dict[str, Any]]]:
    """The events of each rank."""
    found = defaultdict(list)
    for event in json.loads((directory / "trace.json").read_text())["traceEvents"]:
        if event["ph"] == "X":
            found[event["pid"]].append(event)
    return found


def overlap(first: list[dict[str, Any]], second: list[dict[str, Any]], *names: str) -> dict[bool, float]:
    """The most microseconds for which both ranks do what the names say at once, with the same batch or with others."""
    computing = [[e for e in one if e["name"] in names] for one in (first, second)]
    most = {True: 0.0, False: 0.0}
    for a, b in product(*computing):
        same = a["args"]["batch"] == b["args"]["batch"]
        most[same] = max(most[same], min(a["ts"] + a["dur"], b["ts"] + b["dur"]) - max(a["ts"], b["ts"]))
    return most


MICRO_BATCHES = ("gpipe", "1f1b")
DELAYED = ("fdg", "layerwise", "ddg", "fr", "local")


@pytest.mark.parametrize("schedule", [*DELAYED, *MICRO_BATCHES, "naive"])
def test_stages_compute_at_the_same_time_unless_they_take_turns(schedule: str, tmp_path: Path) -> None:
    done = paced(2, tmp_path, *DEEP, "train.epochs=1", f"schedule.name={schedule}", "--trace")
    assert done.returncode == 0, done.stderr
    assert f"timeline of the ranks: {tmp_path}/trace.json" in done.stdout
    found = events(tmp_path)
    assert sorted(found) == [0, 1]
    # weight gradients follow the input gradient that the other stage needs, so backward passes of one batch always
    # overlap a little; with other batches, or forward, no stage works beside another that it waits for
    if schedule in DELAYED:
        assert overlap(found[0], found[1], "forward", "backward")[False] > LAYER / 2
    elif schedule in MICRO_BATCHES:
        assert overlap(found[0], found[1], "forward")[True] > LAYER / 2
    else:
        assert not any(overlap(found[0], found[1], "forward").values())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("schedule.name=fdg",), "gradients are up to 1 update old: if the loss stalls"),
        (("schedule.name=layerwise",), "gradients are up to 2 updates old: if the loss stalls"),
        (("schedule.name=fdg", "schedule.order=forward_first", "schedule.accumulate=4"), "are up to 0.5 updates old"),
        (("schedule.name=layerwise", "train.clip=1"), ""),
        (("schedule.name=1f1b",), ""),
    ],
)
def test_delayed_gradients_are_told_of(settings: tuple[str, ...], said: str, tmp_path: Path, crews: Crews) -> None:
    done = crews.train(2, tmp_path, *DEEP, "train.epochs=1", *settings)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout if said else "updates old" not in done.stdout
    stated = summary(tmp_path)["ranks"][0]["staleness_formula"]
    assert (f"up to {stated:g} update" in done.stdout) == bool(said)


@pytest.mark.parametrize("schedule", ["layerwise", "fdg"])
def test_accuracies_of_delayed_gradients_are_those_of_serial_training(
    schedule: str, tmp_path: Path, crews: Crews
) -> None:
    """On three seeds; the noise is that of the 300 test samples, of which one is 0.003."""
    means = []
    staged = ("grid.stages=2", "schedule.cut=estimated", f"schedule.name={schedule}")
    for ranks, own in ((1, ()), (2, staged)):
        found = []
        for seed in range(3):
            done = crews.train(ranks, tmp_path / f"{ranks}-{seed}", *SMALL, *ACCURATE, *own, f"run.seed={seed}")
            assert done.returncode == 0, done.stderr
            found.append(summary(tmp_path / f"{ranks}-{seed}")["test"]["accuracy"])
        means.append(sum(found) / 3)
    serial, delayed = means
    assert serial > 0.94
    assert delayed == pytest.approx(serial, abs=0.02)


def test_the_timeline_says_what_was_done_with_which_batch_and_version(tmp_path: Path, crews: Crews) -> None:
    done = crews.train(2, tmp_path, *DEEP, "schedule.name=fdg", "--trace")
    assert done.returncode == 0, done.stderr
    steps = 18
    for rank, found in events(tmp_path).items():
        by_name = {name: [e["args"] for e in found if e["name"] == name] for name in {e["name"] for e in found}}
        assert set(by_name) == {"forward", "backward", "update", "mix", "send", "receive"}
        for name in ("forward", "backward", "update", "send", "receive"):
            assert [args["batch"] for args in by_name[name]] == list(range(steps)), name
        assert [args["version"] for args in by_name["update"]] == list(range(1, steps + 1))
        # backward first: the first stage runs batch b forward with the weights after b - 1 updates
        assert [a["version"] for a in by_name["forward"]] == [max(0, b - (rank == 0)) for b in range(steps)]
        assert all(args["bytes"] > 0 for args in by_name["send"])


def test_the_summary_names_stages_and_staleness(tmp_path: Path, crews: Crews) -> None:
    done = crews.train(2, tmp_path, *DEEP, "schedule.name=fdg", "schedule.order=forward_first")
    assert re.search("schedule fdg, stages begin at flatten, hidden[23]: costs estimated", done.stdout)
    ages = re.findall(r"(\d\.\d\d) \((\d)\)", done.stdout)
    assert ages == [("1.83", "2"), ("0.00", "0")]
    ranks = summary(tmp_path)["ranks"]
    assert [rank["staleness_formula"] for rank in ranks] == [2, 0]
    assert all(0 < rank["computing"] <= 1 for rank in ranks)


def test_a_forward_pass_beside_a_backward_pass_has_a_row_of_its_own_in_the_timeline(
    tmp_path: Path, crews: Crews
) -> None:
    done = crews.train(2, tmp_path, *DEEP, "schedule.name=layerwise", "schedule.overlap=always", "--trace")
    assert "forward and backward passes run side by side: schedule.overlap is always" in done.stdout
    found = events(tmp_path)
    assert {e["tid"] for e in found[1]} == {0}
    # the first two batches have nothing to run beside
    assert [e["args"]["batch"] for e in found[0] if e["tid"] == 1 and e["name"] == "forward"] == list(range(2, 18))
    assert {e["name"] for e in found[0] if e["tid"] == 1} == {"forward"}


@pytest.mark.parametrize("schedule", ["fdg", "local"])
def test_evaluate_measures_the_merged_model_as_the_run_did(schedule: str, tmp_path: Path, crews: Crews) -> None:
    assert crews.train(2, tmp_path, *DEEP, f"schedule.name={schedule}").returncode == 0
    measured = summary(tmp_path)["test"]
    done = crews.run(0, "-m", "mpinn", "evaluate", str(tmp_path))
    assert f"accuracy {measured['accuracy']:.4f}, loss {measured['loss']:.4f}" in done.stdout
    with h5py.File(tmp_path / "latest") as file:
        assert list(file["model/network"]) == ["hidden1", "hidden2", "hidden3", "output"]
        assert "flight" not in file


def test_the_cuts_of_a_run_are_kept(tmp_path: Path, crews: Crews) -> None:
    settings = (*DEEP, "schedule.name=fdg", "schedule.cut=['hidden2']")
    assert crews.train(2, tmp_path, *settings, "--stop-after", "7").returncode == 75
    done = train(2, tmp_path, *settings)
    assert "stages begin at flatten, hidden2: as before" in done.stdout
    assert [line["step"] for line in records(tmp_path) if "loss" in line] == [4, 8, 12, 16, 18]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("grid.stages=2",), "grid.stages: the schedule serial keeps the whole depth on one rank"),
        (("grid.stages=2", "schedule.name=fdg", "model.widths=[]"), "grid.stages: the model has"),
        (("grid.stages=2", "schedule.name=fdg", "schedule.cut=['output', 'hidden1']"), "schedule.cut: "),
        (("grid.stages=2", "schedule.name=fdg", "schedule.cut=['hidden7']"), "schedule.cut: no stage can begin at"),
        (("grid.stages=2", "schedule.name=fdg", "schedule.cut=fast"), "schedule.cut: "),
        (("grid.stages=2", "schedule.name=fdg", "schedule.shrink=0"), "schedule.shrink: "),
        (("grid.stages=2", "schedule.name=gpipe", "schedule.micro_batches=0"), "schedule.micro_batches: "),
        (("grid.stages=2", "schedule.name=fgd"), "schedule.name: 'fgd' is not one of"),
        (("grid.stages=3", "schedule.name=fdg"), "grid.stages: any number of replicas x 3 stages"),
        (
            ("schedule.name=fdg", "grid.stages=2", "consensus.in_flight=keep", "consensus.score=fisher"),
            "consensus.in_flight: keep does not go with the score fisher, which measures on the batches of training, "
            "and would overwrite those in flight",
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_the_door(
    settings: tuple[str, ...], said: str, tmp_path: Path, crews: Crews
) -> None:
    done = crews.run(2, *arguments(tmp_path / "run", *settings))
    assert done.returncode == 2
    assert f"mpinn: {said}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_replicas_whose_depth_is_cut_anew_agree_at_the_next_meeting(tmp_path: Path, crews: Crews) -> None:
    """As an outer optimizer leaves them: all from one start."""
    settings = (
        *DEEP[:-1],
        "schedule.name=gpipe",
        "grid.replicas=2",
        "consensus.name=outer",
        "consensus.period=4 steps",
    )
    stopped = crews.train(4, tmp_path, *settings, "--stop-after", "10")
    assert stopped.returncode == 75, stopped.stderr
    own = "replica/0/model/network/output/weight"
    assert own in datasets((tmp_path / "latest").resolve())
    done = crews.train(2, tmp_path, *settings, "grid.stages=1")
    assert done.returncode == 0, done.stderr
    assert "model/network: the 2 replicas of step 10 differ; each of the 2 takes their mean" in done.stdout
    assert "the momentum of the outer optimizer begins at 0" in done.stdout
    assert own not in datasets((tmp_path / "latest").resolve())
