"""Jobs with parareal networks: one on any number of ranks, told apart from others, evaluated, and resumed."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import pytest
from crew import Crews
from train_jobs import LAYER, SMALL, arguments, differences, here, paced, records, summary, train

from mpinn.storage.reader import Checkpoint

PLAIN = (*SMALL, "model.widths=[10,9,8,7]", "model.norm=batch", "consensus.name=gradients")
DEEP = (*PLAIN, "schedule.name=parareal", "schedule.cut=estimated")
GROWING = "[{kind='conv',outputs=2},{kind='conv',outputs=2,padding=3},{kind='flatten'},{kind='dense',outputs=10}]"
NAMES = ["fine1", "predictor2", "fine2", "coarse2", "predictor3", "fine3", "coarse3", "output"]


@pytest.mark.parametrize("settings", [(), ("schedule.form=difference", "schedule.iterations=2")], ids=["1", "2"])
def test_the_network_is_the_same_on_one_rank_and_on_several(
    settings: tuple[str, ...], tmp_path: Path, crews: Crews
) -> None:
    assert crews.train(3, tmp_path / "three", *DEEP, "grid.stages=3", *settings).returncode == 0
    assert here(tmp_path / "one", *DEEP, "schedule.blocks=3", *settings) == 0
    told = [summary(tmp_path / name)["test"] for name in ("one", "three")]
    assert told[0] == told[1]
    files = [tmp_path / name / "latest" for name in ("one", "three")]
    differing = differences(*files)
    # what a rank counts, and the grid, are those of the ranks
    assert [name for name in differing if name.startswith(("model", "state", "optimizer"))] == []
    with h5py.File(files[0]) as one, h5py.File(files[1]) as three:
        names = [name for name in NAMES if settings == () or name != "predictor3"]
        assert sorted(one["model/network"]) == sorted(three["model/network"]) == sorted(names)
    done = crews.run(2, "-m", "mpinn", "evaluate", str(tmp_path / "three"))
    assert f"accuracy {told[0]['accuracy']:.4f}, loss {told[0]['loss']:.4f}" in done.stdout, done.stderr


def test_one_block_is_serial_training(tmp_path: Path) -> None:
    assert here(tmp_path / "parareal", *DEEP) == 0
    assert here(tmp_path / "serial", *PLAIN) == 0
    files = [tmp_path / name / "latest" for name in ("parareal", "serial")]
    assert {name for name in differences(*files) if name.startswith("model")} == set()
    with Checkpoint(files[0]) as checkpoint:
        assert checkpoint.configuration["schedule"]["blocks"] == 1


def test_a_run_goes_on_on_other_ranks_with_the_same_blocks(tmp_path: Path, crews: Crews) -> None:
    assert here(tmp_path / "whole", *DEEP, "schedule.blocks=2") == 0
    directory = tmp_path / "run"
    assert crews.train(2, directory, *DEEP, "grid.stages=2", "--stop-after", "7").returncode == 75
    assert here(directory, *DEEP, "schedule.blocks=2") == 0
    assert [line["step"] for line in records(directory) if "loss" in line] == [4, 8, 12, 16, 18]
    assert not [n for n in differences(directory / "latest", tmp_path / "whole" / "latest") if n.startswith("model")]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((*DEEP, "schedule.blocks=3"), "a parareal network of 3 blocks (residual, 1 sweep) is another architecture"),
        ((*DEEP, "schedule.blocks=2", "schedule.form=difference"), "of 2 blocks (difference, 1 sweep) is another"),
        (PLAIN, "but the model as it is is another architecture"),
    ],
)
def test_another_network_is_refused(settings: tuple[str, ...], said: str, tmp_path: Path, crews: Crews) -> None:
    assert here(tmp_path, *DEEP, "schedule.blocks=2", stop_after=3) == 75
    done = crews.run(0, *arguments(tmp_path, *settings))
    assert done.returncode == 2
    assert f"mpinn: {tmp_path}: this run trains a parareal network of 2 blocks (residual, 1 sweep), but" in done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_replicas_of_parareal_networks_agree_and_meet(tmp_path: Path, crews: Crews) -> None:
    for consensus in ("averaging", "gossip"):
        done = crews.train(4, tmp_path / consensus, *DEEP, "grid.stages=2", f"consensus.name={consensus}")
        assert done.returncode == 0, done.stderr
        assert "2 x 2 x 1 ranks" in done.stdout
        assert summary(tmp_path / consensus)["test"]["loss"] < 2.4


def test_a_gathered_sweep_is_the_same_network(tmp_path: Path, crews: Crews) -> None:
    settings = (*DEEP, "grid.stages=3", "train.clip=0.1")
    said = {}
    for sweep in ("chain", "gather", "auto"):
        done = crews.train(3, tmp_path / sweep, *settings, f"schedule.sweep={sweep}")
        assert done.returncode == 0, done.stderr
        (said[sweep],) = (line for line in done.stdout.splitlines() if line.startswith("coarse sweep"))
    assert said["chain"] == "coarse sweep from stage to stage: schedule.sweep is chain"
    assert said["gather"] == "coarse sweep gathered on the last stage: schedule.sweep is gather"
    assert said["auto"].startswith("coarse sweep gathered on the last stage: its messages take about ")
    files = [tmp_path / sweep / "latest" for sweep in said]
    for other in files[1:]:
        differing = differences(files[0], other)
        assert [name for name in differing if name.startswith(("model", "state", "optimizer"))] == []
    with h5py.File(files[1]) as file:
        assert sorted(file["model/network"]) == sorted(NAMES)


def test_a_run_goes_on_with_its_sweep_elsewhere(tmp_path: Path, crews: Crews) -> None:
    settings = (*DEEP, "grid.stages=3")
    assert here(tmp_path / "whole", *DEEP, "schedule.blocks=3") == 0
    assert crews.train(3, tmp_path / "run", *settings, "schedule.sweep=chain", "--stop-after", "7").returncode == 75
    done = train(3, tmp_path / "run", *settings, "schedule.sweep=gather", "--stop-after", "11")
    assert done.returncode == 75
    assert "schedule.sweep was chain and is gather" in done.stdout
    assert crews.train(3, tmp_path / "run", *settings, "schedule.sweep=gather").returncode == 0
    files = [tmp_path / name / "latest" for name in ("run", "whole")]
    assert not [name for name in differences(*files) if name.startswith(("model", "optimizer"))]


def test_fine_blocks_overlap_in_both_passes(tmp_path: Path) -> None:
    # the first block has more layers, so that it is still busy when the other one has left the batch before
    settings = ("train.epochs=1", "model.norm=none", "grid.stages=2", "schedule.cut=['hidden4']", "--trace")
    assert paced(2, tmp_path, *DEEP, *settings).returncode == 0
    told = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    for name in ("forward", "backward"):
        first, second = ([e for e in told if e["name"] == name and e["pid"] == rank] for rank in (0, 1))
        same = [(one, other) for one, other in product(first, second) if one["args"]["batch"] == other["args"]["batch"]]
        # what lies between two messages may be nothing: half a layer is none of that
        assert max(together(one, other) for one, other in same) > LAYER / 2, name


def together(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Microseconds from when both have begun to when one ends; negative where one ends before."""
    ends = [event["ts"] + event["dur"] for event in (one, other)]
    return float(min(ends) - max(one["ts"], other["ts"]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("grid.stages=2", "schedule.blocks=3"), "schedule.blocks: 3 fine blocks need as many stages, or one, not 2"),
        (("grid.stages=2", "schedule.iterations=3"), "schedule.iterations: 2 fine blocks are exact after 2 sweeps"),
        (("schedule.blocks=9",), "schedule.blocks: the model has 4 units"),
        (("grid.stages=2", "schedule.cut=['output']"), "schedule.cut: no stage can begin at 'output'"),
        (("grid.stages=2", "schedule.form=sum"), "schedule.form: "),
        (
            ("grid.stages=2", "schedule.sweep=gather", "schedule.iterations=2"),
            "schedule.sweep: gather goes with one sweep, not 2",
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_the_door(
    settings: tuple[str, ...], said: str, tmp_path: Path, crews: Crews
) -> None:
    done = crews.run(2, *arguments(tmp_path / "run", *DEEP, *settings))
    assert done.returncode == 2, done.stdout
    assert f"mpinn: {said}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_layers_that_cannot_be_imitated_are_refused_at_the_door(tmp_path: Path, crews: Crews) -> None:
    settings = ("schedule.name=parareal", "schedule.blocks=2", "model.name=layers", f"model.layers={GROWING}")
    done = crews.run(0, *arguments(tmp_path / "run", *settings))
    assert done.returncode == 2
    said = "mpinn: schedule.name: parareal can imitate layers of images that do not grow, then of vectors, but these go"
    assert done.stderr.startswith(said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("augmented", [(), ("data.crop=1", "data.flip=true")], ids=["plain", "augmented"])
def test_a_convolutional_network_is_cut_too(augmented: tuple[str, ...], tmp_path: Path, crews: Crews) -> None:
    """Every stage sees the same augmented samples."""
    images = (*augmented, *SMALL[1:], "schedule.name=parareal", "schedule.cut=['hidden1']", "consensus.name=gradients")
    small = ("model.name=cnn", "model.channels=[3,4]", "model.kernel=3", "model.widths=[9,8]")
    assert crews.train(2, tmp_path / "two", *images, *small, "grid.stages=2").returncode == 0
    assert here(tmp_path / "one", *images, *small, "schedule.blocks=2") == 0
    differing = differences(*(tmp_path / name / "latest" for name in ("one", "two")))
    assert [name for name in differing if name.startswith(("model", "state", "optimizer"))] == []
