"""A run that is stopped and resumed ends as if it had not been; on other ranks it goes on from what was merged."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from train_jobs import SMALL, differences, records

from mpinn.comm.grid import World
from mpinn.commands.train import train
from mpinn.run.checks import Request, check
from mpinn.run.experiment import build
from mpinn.schedules.serial import Serial
from mpinn.signals import Signals
from mpinn.storage.reader import Checkpoint
from mpinn.training import agreement

pytestmark = pytest.mark.mpi
HALF, WHOLE = 9, 18
NOISY = ("model.norm=batch", "model.dropout=0.3")
IMAGES = ("model.name=cnn", "model.channels=[3]", "model.kernel=3", "data.crop=1", "data.flip=true")
"""A network whose statistics are those of channels, and samples that are drawn anew in each epoch."""
CASES = {
    "sgd, none": ("optimizer.name=sgd", "consensus.name=none", *NOISY),
    "adam, none": ("optimizer.name=adam", "consensus.name=none"),
    "sgd, gradients": ("optimizer.nesterov=true", "consensus.name=gradients", "run.dtype=float64"),
    "adamw, gradients": ("optimizer.name=adamw", "consensus.name=gradients", "consensus.bucket=0.001", *NOISY),
    "uniform": ("consensus.score=uniform", "consensus.period=4 steps", *NOISY),
    "accuracy": ("consensus.score=accuracy", "consensus.period=4 steps", "optimizer.momentum=0"),
    "accuracy_shard": ("consensus.score=accuracy_shard", "data.deal=redealt", "train.clip=0.1"),
    "fisher": ("consensus.score=fisher", "consensus.period=4 steps", "consensus.fisher_samples=8", *NOISY),
    "best": ("consensus.score=best", "consensus.period=4 steps", "optimizer.name=adam", *NOISY),
    "samples, slots averaged": (
        *("consensus.score=samples", "consensus.slots=average", "consensus.period=5 steps"),
        *("optimizer.name=adamw", "data.deal=skewed"),
    ),
    "slots reset": ("consensus.slots=reset", "consensus.period=4 steps", "optimizer.name=adam", *NOISY),
    "gradient norm, mix": (
        *("consensus.score=inverse_gradient_norm", "consensus.mix=0.5", "consensus.period=4 steps"),
        *("optimizer.name=adamw", "model.norm=layer"),
    ),
    "gossip": ("consensus.name=gossip", "optimizer.name=adam", "consensus.period=2 steps", *NOISY),
    "gossip, sent early": (
        *("consensus.name=gossip", "consensus.form=combine_then_adapt", "consensus.graph=complete"),
        *("run.dtype=float64", *NOISY),
    ),
    "outer": ("consensus.name=outer", "consensus.period=4 steps", *NOISY),
    "outer, weighted": (
        *("consensus.name=outer", "consensus.score=accuracy", "consensus.period=4 steps"),
        *("optimizer.name=adamw", "consensus.nesterov=false", "consensus.momentum=0.5"),
    ),
    "images, augmented": ("consensus.score=uniform", "consensus.period=4 steps", *IMAGES),
    "images, read batch by batch": ("consensus.name=gradients", "data.memory=0", *IMAGES),
}
Run = Callable[..., int]


@pytest.fixture
def run(world: World, mpi_tmp_path: Path) -> Run:
    """Train in this process, in the run directory ``run``."""

    def start(*settings: str, world: World = world, **request: object) -> int:
        overrides = (f"run.directory={mpi_tmp_path / 'run'}", *SMALL, *settings)
        return train(world, replace(Request(overrides=overrides), **request))

    return start


def meet(world: World) -> None:
    """Files that rank 0 has written are there for all ranks."""
    world.control.barrier()


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_as_one_that_was_not_stopped(case: str, world: World, run: Run, mpi_tmp_path: Path) -> None:
    settings = CASES[case]
    assert run(*settings) == 0
    meet(world)
    assert run(*settings, fresh=True, stop_after=HALF) == 75
    meet(world)
    stopped, whole = (mpi_tmp_path / name for name in ("run", "run.1"))
    assert (stopped / "requeue").exists()
    assert (stopped / "latest").resolve().name == f"checkpoint-{HALF:08d}.h5"
    assert not (stopped / "summary.json").exists()
    meet(world)
    assert run(*settings, resume=True) == 0
    meet(world)
    assert not (stopped / "requeue").exists()
    last = f"checkpoint-{WHOLE:08d}.h5"
    assert differences(stopped / last, whole / last) == []
    timeless = [[{**line, "seconds": 0} for line in records(place)] for place in (stopped, whole)]
    assert timeless[0] == timeless[1]
    meet(world)


@pytest.mark.parametrize("case", ["gossip", "gossip, sent early"])
def test_a_run_of_before_gossip_remembered_anything_goes_on(
    case: str, world: World, run: Run, mpi_tmp_path: Path
) -> None:
    settings = CASES[case]
    assert run(*settings) == 0
    meet(world)
    assert run(*settings, fresh=True, stop_after=HALF) == 75
    meet(world)
    stopped, whole = (mpi_tmp_path / name for name in ("run", "run.1"))
    if world.rank == 0:
        with h5py.File(stopped / f"checkpoint-{HALF:08d}.h5", "r+") as file:
            assert ("consensus" in file) == (world.size > 1)
            file.pop("consensus", None)
        (stopped / "checkpoints.json").unlink()
    meet(world)
    assert run(*settings, resume=True) == 0
    meet(world)
    last = f"checkpoint-{WHOLE:08d}.h5"
    assert differences(stopped / last, whole / last) == []
    meet(world)


def test_one_signal_to_one_rank_stops_all_at_the_same_step(
    world: World, run: Run, mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*CASES["uniform"], "train.epochs=10")
    assert run(*settings) == 0
    meet(world)
    step = Serial.step
    called: list[int] = []

    def step_and_signal(self: Serial, batch: object, update: object) -> object:
        if "network" not in self.parts:  # the rehearsal that compiles kernels
            return step(self, batch, update)
        called.append(0)
        if len(called) == 10 and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, batch, update)

    monkeypatch.setattr(agreement, "HORIZON", 0.01)
    monkeypatch.setattr(Serial, "step", step_and_signal)
    assert run(*settings, fresh=True) == 75
    meet(world)
    monkeypatch.undo()
    steps = np.empty((world.size, 1), np.int64)
    world.control.all_gather(np.array([len(called)], np.int64), steps).wait()
    assert (steps == len(called)).all()
    assert 10 <= len(called) < 60
    stopped, whole = (mpi_tmp_path / name for name in ("run", "run.1"))
    assert (stopped / "requeue").exists()
    with Checkpoint(stopped / "latest") as checkpoint:
        assert checkpoint.step == len(called)
    meet(world)
    assert run(*settings) == 0
    meet(world)
    assert differences(stopped / "checkpoint-00000060.h5", whole / "checkpoint-00000060.h5") == []
    meet(world)


def first(world: World, ranks: int) -> World:
    """The first ``ranks`` ranks as a world of their own, on these; called by all ranks."""
    control = world.control.split(int(world.rank < ranks), world.rank, "control")
    return replace(
        world,
        size=control.size,
        control=control,
        open_channel=lambda color, key, name, transport, polite, ordered: control.split(color, key, name),
    )


@pytest.mark.parametrize(
    "case", ["uniform", "sgd, none", "slots reset", "adamw, gradients", "gossip, sent early", "outer"]
)
def test_a_file_of_all_ranks_goes_on_with_fewer(
    case: str, world: World, run: Run, mpi_tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = CASES[case]
    assert run(*settings, stop_after=HALF) == 75
    meet(world)
    for ranks in range(1, world.size):
        fewer = first(world, ranks)
        if world.rank < ranks:
            capfd.readouterr()
            _goes_on(fewer, world.size, run, settings, mpi_tmp_path / "run", HALF + ranks)
            said = capfd.readouterr().out
            if world.rank == 0 and ranks == 1:
                assert f"the grid was {world.size} x 1 x 1 and is 1 x 1 x 1" in said
                assert ("model/network: the" in said) == (case != "adamw, gradients")
        meet(world)


def _goes_on(world: World, ranks: int, run: Run, settings: tuple[str, ...], directory: Path, stop: int) -> None:
    """On fewer ranks every replica begins with the merged model, and the run goes on from the same step."""
    newest = directory / "latest"
    with Checkpoint(newest) as checkpoint:
        step, kind = checkpoint.step, checkpoint.model()
        merged = {entry.name: checkpoint.weights(entry.name) for entry in checkpoint.parameters(kind)}
        updates = checkpoint.weights("updates", "counters/network")
    world.control.barrier()
    request = Request(overrides=(f"run.directory={directory}", *SMALL, *settings))
    begin = check(request, world.size)
    world.control.barrier()
    experiment = build(world, begin, Signals())
    (part,) = experiment.trainer.schedule.parts.values()
    assert experiment.trainer.plan.start == step
    for entry in part.layout:
        np.testing.assert_array_equal(part.weights[entry.slice].reshape(entry.shape), merged[entry.name])
    np.testing.assert_array_equal(part.counters[:1], updates)
    experiment.keeper.close()
    begin.lock.release()
    assert run(*settings, world=world, stop_after=stop) == 75
    world.control.barrier()
    with Checkpoint(newest) as checkpoint:
        assert checkpoint.step == stop
        assert checkpoint.grid == (world.size, 1, 1)
    world.control.barrier()
