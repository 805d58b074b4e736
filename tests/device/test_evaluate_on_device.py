"""Saved models are measured on the device, and where there is none."""

from pathlib import Path

import pytest
from launch import alone
from train_jobs import SMALL, here, summary

from mpinn.array.device import choose_device

NOWHERE = {"CUDA_VISIBLE_DEVICES": "", "MPINN_EMULATED_GPUS": "0"}
CNN = ("model.name=cnn", "model.channels=[4,6]", "model.kernel=3", "model.widths=[16]", "run.device=gpu")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp(request.param)
    assert here(directory, *SMALL[1:], *CNN, f"run.bf16={str(request.param == 'bfloat16').lower()}") == 0
    return directory


def said(directory: Path, *settings: str, env: dict[str, str] | None = None) -> list[str]:
    line = [word for setting in settings for word in ("--set", setting)]
    done = alone("-m", "mpinn", "evaluate", str(directory), *line, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def accuracy(line: str) -> float:
    return float(line.partition("accuracy ")[2].partition(",")[0])


def test_the_device_finds_what_training_found(run: Path) -> None:
    where, found = said(run)
    assert where == f"on {choose_device('gpu', 'auto', 0, bf16='bfloat16' in run.name).said}"
    test = summary(run)["test"]
    assert found.endswith(f"accuracy {test['accuracy']:.4f}, loss {test['loss']:.4f}")


@pytest.mark.parametrize(("settings", "env"), [(("run.device=cpu", "run.bf16=false"), {}), ((), NOWHERE)])
def test_so_does_a_machine_without_one(run: Path, settings: tuple[str, ...], env: dict[str, str]) -> None:
    (found,) = said(run, *settings, env=env)
    assert accuracy(found) == pytest.approx(summary(run)["test"]["accuracy"], abs=0.02)


def test_a_member_of_a_population_is_measured_on_the_host(tmp_path: Path) -> None:
    population = ("model.name=population", "model.widths=[3,9]", "model.repetitions=2", "run.device=gpu")
    assert here(tmp_path, *SMALL[1:], *population, "grid.replicas=1") == 0
    note, found = said(tmp_path)
    assert note.startswith("member ")
    assert accuracy(found) == pytest.approx(summary(tmp_path)["test"]["accuracy"], abs=1e-4)


def test_a_device_that_is_asked_for_must_be_there(run: Path) -> None:
    done = alone("-m", "mpinn", "evaluate", str(run), "--set", "run.device=gpu", env=NOWHERE)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mpinn: run.device: gpu: no GPU")
