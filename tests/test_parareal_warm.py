"""Parareal networks that begin as a trained network: the same on any number of ranks, and close to it."""

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from crew import Crews
from train_jobs import SMALL, arguments, differences, here, summary

from mpinn.errors import InputError
from mpinn.storage.reader import Checkpoint

PLAIN = (*SMALL, "model.widths=[10,9,8,7]", "consensus.name=gradients", "data.batch=100")
DEEP = (*PLAIN, "schedule.name=parareal", "schedule.cut=estimated", "schedule.fit=2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the network that is cut, with batch norm: running statistics are taken over too."""
    directory = tmp_path_factory.mktemp("trained") / "serial"
    assert here(directory, *PLAIN, "model.norm=batch", "train.epochs=12") == 0
    return directory


def begun(crews: Crews, trained: Path, directory: Path, ranks: int, *settings: str) -> Path:
    """The checkpoint of a run that takes no step; of 0 ranks, in this process."""
    wanted = (*DEEP, "model.norm=batch", f"schedule.warm={trained}", "train.epochs=0", *settings)
    if ranks:
        done = crews.train(ranks, directory, *wanted)
        code, said = done.returncode, done.stdout
    else:
        with redirect_stdout(StringIO()) as out:
            code = here(directory, *wanted)
        said = out.getvalue()
    assert code == 0, said
    assert f"fine blocks of {trained}/checkpoint-" in said
    return directory / "latest"


@pytest.mark.parametrize("form", ["residual", "difference"])
def test_every_number_of_ranks_begins_alike(form: str, trained: Path, tmp_path: Path, crews: Crews) -> None:
    form = f"schedule.form={form}"
    one = begun(crews, trained, tmp_path / "one", 0, form, "schedule.blocks=3")
    for sweep in ("chain", "gather"):
        three = begun(crews, trained, tmp_path / sweep, 3, form, "grid.stages=3", f"schedule.sweep={sweep}")
        assert not [name for name in differences(one, three) if name.startswith(("model", "state"))]
    with Checkpoint(one) as network, Checkpoint(trained / "latest") as serial:
        for entry in serial.parameters("model/network"):
            (name,) = (e.name for e in network.parameters("model/network") if e.name.endswith(entry.name)
                       and not e.name.startswith(("predictor", "coarse")))  # fmt: skip
            np.testing.assert_array_equal(network.weights(name), serial.weights(entry.name))
        assert len(network.parameters("state/network")) == len(serial.parameters("state/network")) > 0


def test_replicas_begin_alike(trained: Path, tmp_path: Path, crews: Crews) -> None:
    one = begun(crews, trained, tmp_path / "one", 0, "schedule.blocks=2")
    four = begun(crews, trained, tmp_path / "four", 4, "grid.stages=2", "consensus.name=averaging")
    assert not [name for name in differences(one, four) if name.startswith(("model", "state"))]
    with Checkpoint(four) as checkpoint:
        assert checkpoint.replicas == []


@pytest.mark.parametrize("form", ["residual", "difference"])
def test_what_is_fitted_brings_it_close_to_the_trained_network(
    form: str, trained: Path, tmp_path: Path, crews: Crews
) -> None:
    losses = []
    for epochs in (0, 4, 40):
        settings = (f"schedule.form={form}", "schedule.blocks=3", f"schedule.fit={epochs}")
        begun(crews, trained, tmp_path / str(epochs), 0, *settings)
        losses.append(summary(tmp_path / str(epochs))["test"]["loss"])
    assert losses[0] > losses[1] > losses[2] > 0
    assert losses[2] - summary(trained)["test"]["loss"] < 0.5 * (losses[0] - summary(trained)["test"]["loss"])


def test_each_of_the_two_is_fitted(trained: Path, tmp_path: Path, crews: Crews) -> None:
    """Both move, and a run that goes on does not ask for the file again."""
    files = [
        begun(crews, trained, tmp_path / name, 0, "schedule.blocks=2", f"schedule.fit={name}") for name in ("0", "2")
    ]
    moved = {name.split("/")[2] for name in differences(*files) if name.startswith("model/")}
    assert moved == {"predictor2", "coarse2"}
    settings = (*DEEP, "model.norm=batch", "schedule.blocks=2", f"schedule.warm={trained}")
    assert here(tmp_path / "run", *settings, stop_after=5) == 75
    gone = (*DEEP, "model.norm=batch", "schedule.blocks=2", f"schedule.warm={tmp_path / 'gone'}")
    assert here(tmp_path / "run", *gone) == 0


def test_one_block_is_the_trained_network(trained: Path, tmp_path: Path, crews: Crews) -> None:
    one = begun(crews, trained, tmp_path / "one", 0)
    assert not [name for name in differences(one, trained / "latest") if name.startswith(("model", "state"))]


def test_a_damaged_newest_checkpoint_is_passed_over_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    assert here(source, *PLAIN, "model.norm=batch", "checkpoint.every=1 epoch", "train.epochs=2") == 0
    newest = (source / "latest").resolve()
    newest.write_bytes(newest.read_bytes()[:-1])
    capsys.readouterr()
    settings = (*DEEP, "model.norm=batch", "schedule.blocks=2", "schedule.fit=0", f"schedule.warm={source}")
    assert here(tmp_path / "run", *settings, "train.epochs=0") == 0
    assert capsys.readouterr().out.count(f"{newest}: damaged: ") == 1
    for path in source.glob("checkpoint-*.h5"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"^schedule\.warm: .*source: none of its 2 checkpoints can be used$"):
        here(tmp_path / "other", *settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("schedule.warm={tmp}/none",), "none: there is no such file or directory"),
        (("schedule.warm={tmp}",), ": there is no checkpoint in this directory"),
        (("schedule.warm={tmp}/text",), "not a readable HDF5 file"),
        (
            ("schedule.warm={trained}", "model.norm=batch", "model.widths=[10,9,8,8]"),
            "has shape (8, 7), the model needs",
        ),
        (("schedule.warm={trained}",), "it is no checkpoint of the model that is cut"),
        (("schedule.warm={trained}", "model.norm=batch", "run.dtype=float64"), "is float32, the model needs float64"),
        (("schedule.warm={trained}", "schedule.iterations=2"), "goes with one sweep, not 2"),
        (("schedule.warm={parareal}", "model.norm=batch"), "hidden1/dense/weight is missing"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_door(
    settings: tuple[str, ...], said: str, trained: Path, tmp_path: Path, crews: Crews
) -> None:
    (tmp_path / "text").write_text("no checkpoint")
    places = {"tmp": tmp_path, "trained": trained, "parareal": tmp_path / "parareal"}
    if "{parareal}" in settings[0]:
        begun(crews, trained, places["parareal"], 0, "schedule.blocks=2", "schedule.fit=0")
    filled = [setting.format(**places) for setting in settings]
    done = crews.run(3, *arguments(tmp_path / "run", *DEEP, "grid.stages=3", *filled))
    assert done.returncode == 2, done.stdout
    assert "mpinn: schedule.warm: " in done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_serial_schedule_knows_no_warm_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^schedule\.warm: "):
        here(tmp_path / "run", *PLAIN, "schedule.warm=x")
    assert not (tmp_path / "run").exists()
