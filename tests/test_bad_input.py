"""What is wrong with the user's input is said once, in one message with its path, before anything is written."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from launch import mpirun
from train_jobs import SMALL, arguments, contents, here, train, world

from mpinn.comm.grid import World
from mpinn.config import load
from mpinn.errors import InputError
from mpinn.run.checks import Request, check
from mpinn.training.choices import CHOICES, DEFAULTS

SETTINGS = {
    "data.bach=64": "data.bach: unknown key (did you mean batch?)",
    "dta.batch=64": "dta: unknown table (did you mean data?)",
    "schedule.micro_batches=8": "schedule.micro_batches: unknown key (it goes with schedule.name = gpipe or 1f1b);",
    "schedule.shrink=0.5": "schedule.shrink: unknown key (it goes with schedule.name = fdg, ddg, fr or layerwise);",
    "data.batch=-1": "data.batch: expected an integer of at least 1, got -1",
    "data.batch=many": "data.batch: expected an integer of at least 1, got 'many'",
    "data.batch=1.5": "data.batch: expected an integer of at least 1, got 1.5",
    "data.batch=1198": "data.batch: 1198 is more than the 1197 samples of the training split",
    "data.batch": "--set data.batch: expected table.key=value",
    "model.widths=[64,": "--set model.widths=[64,: the value is not TOML",
    "data.name=digts": "data.name: 'digts' is not one of digits, mnist, cifar10, cifar100, hdf5, npz (did you mean",
    "data.name=hdf5": 'data.path: data.name = "hdf5" needs the path of a file',
    "consensus.name=gossp": "consensus.name: 'gossp' is not one of averaging, gossip, gradients, none, outer (did",
    "consensus.score=bst": "consensus.score: 'bst' is not one of",
    "model.widths=[100000000000000]": "model: a rank cannot hold its part of 7,500,000,000,000,010 parameters",
    "model.activation=rel": "model.activation: 'rel' is not one of",
    "optimizer.rate=0": "optimizer.rate: expected a number above 0, got 0",
    "optimizer.decay=step": 'optimizer.milestones: decay = "step" needs at least one, such as',
    "optimizer.warmup=5": "optimizer.warmup: expected a length",
    "run.seed=9223372036854775808": "run.seed: expected an integer of at least 0 and at most 9223372036854775807, got",
    "train.epochs=-1": "train.epochs: expected an integer of at least 0, got -1",
    "checkpoint.every=0 epochs": "checkpoint.every: expected a length above zero",
    'run.directory="a\\u0000b"': "run.directory: expected a string in UTF-8 without NUL, got 'a\\x00b'",
    "run.directory=runs/\udcff": "run.directory: expected a string in UTF-8 without NUL, got 'runs/\\udcff'",
    "grid.replicas=2": "grid.replicas: 2 replicas x 1 stages x 1 shards need 2 ranks, not 1",
    "schedule.name=locl": "schedule.name: 'locl' is not one of",
    "run.dtype=float16": "run.dtype: 'float16' is not one of float32, float64",
    "run.transport=pigeon": "run.transport: 'pigeon' is not one of",
}


def refused(directory: Path, *settings: str, **request: object) -> str:
    """The message with which a run on one rank is refused; nothing is written."""
    before = contents(directory.parent)
    with pytest.raises(InputError) as caught:
        here(directory, *settings, **request)
    assert contents(directory.parent) == before
    return str(caught.value)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting(setting: str, tmp_path: Path) -> None:
    assert refused(tmp_path / "run", setting).startswith(SETTINGS[setting])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("schedule.name=local", "schedule.width=-1"), "schedule.width: expected an integer of at least 0, got -1"),
        (("schedule.name=layerwise", "schedule.overlap=yes"), "schedule.overlap: 'yes' is not one of auto, always, n"),
        (
            ("schedule.name=layerwise", "schedule.overlap=always", "schedule.order=backward_first"),
            "schedule.overlap: always: with order = backward_first the forward pass needs the weights",
        ),
    ],
)
def test_a_schedule(settings: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert refused(tmp_path / "run", *settings).startswith(message)


def test_several_mistakes_are_all_told(tmp_path: Path) -> None:
    told = refused(tmp_path / "run", "data.bach=64", "train.epochs=-1").splitlines()
    assert [line.split(":")[0] for line in told] == ["data.bach", "train.epochs"]


@pytest.mark.parametrize(
    ("ranks", "settings", "message"),
    [
        (
            4,
            ("grid.replicas=3",),
            r"grid.replicas: 3 replicas .* 3 ranks, not 4; replicas can be 4 .*, or take 3$",
        ),
        (4, ("grid.stages=3",), r"grid.stages: .* need a multiple of 3 ranks, not 4"),
        (4, ("grid.stages=2",), r"grid.stages: the schedule serial keeps the whole depth on one rank, .* 1, got 2"),
        (4, ("grid.shards=4",), r"grid.shards: the model mlp is not a population, .* 1, got 4"),
        (2, ("grid.replicas=1",), r"grid.replicas: 1 replicas .* need 1 rank, not 2"),
    ],
)
def test_a_grid(ranks: int, settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(Request(overrides=settings), ranks)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        (b"[data\nbatch = 1", "is not TOML"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"batch = 64", "batch: unknown table (did you mean data.batch?)"),
        (b"data = 64", "data: expected a table, got 64"),
    ],
)
def test_a_configuration_file(text: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    if text is not None:
        file.write_bytes(text)
    assert message in refused(tmp_path / "run", file=str(file))


def samples(file: h5py.File, shape: tuple[int, ...] = (20, 3), target: object = None) -> None:
    """Data that is right, but for what a test makes wrong."""
    for split in ("train", "validation", "test"):
        file[f"{split}/x"] = np.linspace(0, 1, int(np.prod(shape))).reshape(shape)
        file[f"{split}/target"] = np.arange(shape[0]) % 4 if target is None else target


def labels_out_of_range(file: h5py.File) -> None:
    samples(file)
    file.attrs["classes"] = 3


def not_finite(file: h5py.File) -> None:
    samples(file)
    file["validation/x"][3, 1] = np.nan


def uneven(file: h5py.File) -> None:
    samples(file)
    del file["test/target"]
    file["test/target"] = np.zeros(19, np.int64)


def without_test(file: h5py.File) -> None:
    samples(file)
    del file["test"]


DATA: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "five axes": (lambda file: samples(file, (20, 3, 2, 2, 1)), "/train/x: expected the shape"),
    "labels out of range": (labels_out_of_range, "/train/target: labels must lie in 0 to 2, these lie in 0 to 3"),
    "negative labels": (lambda file: samples(file, target=np.arange(20) - 1), "/train/target: labels must lie in 0 to"),
    "broken labels": (lambda file: samples(file, target=np.full(20, 0.5)), "/train/target: labels must be whole"),
    "not finite": (not_finite, "/validation/x: there are values that are not finite"),
    "uneven": (uneven, "/test/target: 19 targets for 20 samples of x"),
    "a split is missing": (without_test, "/test/x: this data set is missing"),
    "empty": (lambda file: None, "/train/x: this data set is missing"),
}


@pytest.mark.parametrize("case", DATA)
def test_a_data_file(case: str, tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    make, message = DATA[case]
    with h5py.File(path, "w") as file:
        make(file)
    assert message in refused(tmp_path / "run", "data.name=hdf5", f"data.path={path}", "data.batch=10")


@pytest.mark.parametrize(
    ("contents", "message"), [(None, "there is no file"), (b"P1 1 1 0", "is not an HDF5 file"), (b"", "is not an HDF5")]
)
def test_a_file_that_is_no_data(contents: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    if contents is not None:
        path.write_bytes(contents)
    told = refused(tmp_path / "run", "data.name=hdf5", f"data.path={path}")
    assert told.startswith("data.path: ")
    assert message in told


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            (),
            "loss.name: cross_entropy needs class numbers, but the targets are values: use squared_error\n"
            "consensus.score: accuracy needs class numbers, but the targets are values: use inverse_loss",
        ),
        (("consensus.name=gradients",), "loss.name: cross_entropy needs class numbers"),
        (("loss.name=squared_error",), "consensus.score: accuracy needs class numbers"),
        (("loss.name=squared_error", "consensus.score=best"), "consensus.score: best needs class numbers"),
        (("loss.name=squared_error", "consensus.name=none", "data.deal=skewed"), "data.deal: 'skewed' sorts by label"),
    ],
)
def test_a_choice_that_needs_classes(settings: tuple[str, ...], message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        samples(file, target=np.zeros((20, 2)))
    told = refused(tmp_path / "run", "data.name=hdf5", f"data.path={path}", "data.batch=10", *settings)
    assert told.startswith(message)


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = refused(tmp_path / "file" / "run")
    assert re.fullmatch(r"run.directory: '.*/file/run' cannot be written: Not a directory", told)
    with pytest.raises(InputError, match=r"^run.directory: '/proc/mpinn' cannot be written: "):
        here(Path("/proc/mpinn/run"))


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert refused(tmp_path / "run", resume=True) == f"--resume: there is no checkpoint in {tmp_path / 'run'}"
    assert refused(tmp_path / "run", resume=True, fresh=True).startswith("--fresh: start anew or --resume, not both")


def test_a_directory_that_holds_something_else_is_not_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("")
    assert "it is no run" in refused(tmp_path / "thesis", fresh=True)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("make", [Path.touch, os.mkfifo])
def test_what_is_no_directory_is_refused_and_stays(make: Callable[[Path], None], fresh: bool, tmp_path: Path) -> None:
    make(tmp_path / "x")
    told = refused(tmp_path / "x", fresh=fresh)
    assert told == f"run.directory: '{tmp_path / 'x'}' is there, and it is no directory: choose another one"


@pytest.mark.parametrize(
    ("text", "beside", "moved"),
    [
        ('title = "my site"\n', "a.py", False),
        ('title = "my site"\n', "metrics.jsonl", False),
        ("[train]\nepochs = 3\n", "a.py", False),
        ("title = ", "a.py", False),
        ("title = ", "metrics.jsonl", True),
        ("title = ", "checkpoint-00000006.h5", True),
        (load("", (), CHOICES, DEFAULTS).toml(), "a.py", True),
    ],
)
def test_a_folder_whose_configuration_no_run_has_written_is_not_moved_aside(
    text: str, beside: str, moved: bool, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "config.toml").write_text(text)
    (tmp_path / "site" / beside).touch()
    if moved:
        assert here(tmp_path / "site", *SMALL, fresh=True) == 0
        assert (tmp_path / "site.1" / "config.toml").read_text() == text
        return
    told = refused(tmp_path / "site", fresh=True)
    assert told.startswith(f"--fresh: {tmp_path / 'site'} is not moved aside: no run has written its config.toml")


@pytest.mark.parametrize("fresh", [True, False])
def test_a_configuration_that_is_no_file_is_not_waited_for(fresh: bool, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    os.mkfifo(tmp_path / "site" / "config.toml")
    assert "no run" in refused(tmp_path / "site", fresh=fresh)


def test_a_configuration_that_a_person_wrote_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "config.toml"
    file.write_text("[train]\nepochs = 1  # for a first look\n")
    told = refused(tmp_path / "run", file=str(file))
    assert told == f"run.directory: {file} is there, and no run has written it: choose another directory"
    assert here(tmp_path / "another", file=str(file)) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("train.epoch=1",), "mpinn: train.epoch: unknown key (did you mean epochs?); [train] knows: "),
        (("data.deal=same", "data.batch=127"), "mpinn: data.batch: 127 cannot be divided by 2 replicas"),
        (("--fresh", "--bogus"), "No such option: --bogus"),
    ],
)
def test_the_program_says_it_once_on_several_ranks_and_leaves_with_2(
    settings: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    job = train(2, tmp_path / "run", *settings)
    assert (job.returncode, job.stdout) == (2, "")
    assert job.stderr.count(message) == 1
    assert "Traceback" not in job.stderr
    assert not (tmp_path / "run").exists()


def test_a_mistake_that_one_machine_sees_is_told_by_all() -> None:
    def fail() -> None:
        raise InputError("data.path", "there is no file 'x'")

    class Pair(World):
        def gather_text(self, text: str) -> list[str]:
            return ["", text]

    pair = Pair(**{**world().__dict__, "size": 2})
    with pytest.raises(InputError, match=r"^data.path: there is no file 'x' \(on rank 1\)$"):
        pair.everywhere(fail)
    assert world().everywhere(lambda: 7) == 7


ELSEWHERE = """
import sys
from dataclasses import replace
from mpinn.cli.main import main
from mpinn.comm.launch import read_launch
from mpinn.run import assembly
open_here = assembly.open_source
def elsewhere(data):
    return open_here(replace(data, path=data.path.replace("here", "there")) if read_launch().rank == 1 else data)
assembly.open_source = elsewhere
main(sys.argv[1:])
"""
"""The program, which finds another file under the same name on the machine of rank 1."""


@pytest.mark.parametrize(
    ("samples", "features", "told"),
    [
        (90, 3, r"train_samples \(54 -> 81\), .*"),
        (60, 4, r"sample_shape \(3 -> 4\)"),
        (60, 3, r"mean \(.*"),
    ],
)
def test_other_data_on_another_machine(samples: int, features: int, told: str, tmp_path: Path) -> None:
    """Ranks with more of them would wait for others for ever."""
    for name, shape in {"here": (60, 3), "there": (samples, features)}.items():
        x, y = np.random.default_rng(len(name)).normal(size=shape), np.arange(shape[0]) % 3
        np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    settings = ("data.name=npz", f"data.path={tmp_path}/here.npz", "data.batch=10", "consensus.name=gradients")
    job = mpirun(2, "-c", ELSEWHERE, *arguments(tmp_path / "run", *settings)[2:])
    said = rf"mpinn: data.path: '{tmp_path}/here.npz' holds other data than rank 0 has found: {told} \(on rank 1\)\n"
    assert (job.returncode, job.stdout) == (2, "")
    assert re.fullmatch(said, job.stderr)
    assert not (tmp_path / "run").exists()
