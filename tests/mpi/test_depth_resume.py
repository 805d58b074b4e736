"""Runs with stages: a resumed one ends as if it had not been stopped; on another grid it goes back a few batches."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_resume import first, meet
from train_jobs import SMALL, differences, records

from mpinn.comm.grid import World
from mpinn.commands.train import train
from mpinn.run.checks import Request, check
from mpinn.run.experiment import build
from mpinn.signals import Signals
from mpinn.storage.reader import Checkpoint

pytestmark = pytest.mark.mpi
HALF, WHOLE, SAMPLES = 9, 18, 3 * 1197
DEEP = ("model.widths=[9,8,7,6]", "schedule.cut=estimated")
NOISY = ("model.norm=batch", "model.dropout=0.3")
MEETING = ("consensus.name=averaging", "consensus.score=uniform", "consensus.period=4 steps")
KEPT = ("consensus.name=averaging", "consensus.period=4 steps", "consensus.in_flight=keep")
SUMS = ("schedule.accumulate=4", "schedule.recompute=true")
"""At the half there are passes in flight of equal age, with a meeting between them."""
SELDOM = ("schedule.accumulate=2", "consensus.name=gossip", "consensus.period=3 steps")
BEGUN = ("schedule.accumulate=4", "consensus.name=gossip", "consensus.period=9 steps")
"""At the half the batch with which an update is to mix has been added up, and two more steps pass before it."""
CASES = {
    "gpipe": ("schedule.name=gpipe", "consensus.name=gradients", "train.clip=0.1", *NOISY),
    "1f1b": ("schedule.name=1f1b", "consensus.name=gradients", "optimizer.name=adam"),
    "fdg": ("schedule.name=fdg", "consensus.name=gradients", *NOISY),
    "fdg, mixed": ("schedule.name=fdg", "schedule.versions=mixed", "consensus.name=none", *NOISY),
    "fdg, recompute": ("schedule.name=fdg", "schedule.recompute=true", "consensus.name=gradients", *NOISY),
    "fdg, accumulate": (
        "schedule.name=fdg",
        "schedule.accumulate=4",
        "consensus.name=gradients",
        "optimizer.name=adamw",
    ),
    "fdg, averaging": ("schedule.name=fdg", *MEETING, *NOISY),
    "fdg, averaging, kept": ("schedule.name=fdg", *SUMS, *KEPT, "consensus.slots=average"),
    "ddg, accuracy": ("schedule.name=ddg", "consensus.name=averaging", "consensus.period=4 steps", *NOISY),
    "fr, fisher": ("schedule.name=fr", *MEETING, "consensus.score=fisher", "consensus.fisher_samples=8"),
    "layerwise": ("schedule.name=layerwise", "consensus.name=gradients", *NOISY),
    "layerwise, gradient norm": ("schedule.name=layerwise", *MEETING, "consensus.score=inverse_gradient_norm"),
    "local": ("schedule.name=local", "consensus.name=gradients", "optimizer.name=adam", *NOISY),
    "local, fisher": ("schedule.name=local", *MEETING, "consensus.score=fisher", "consensus.fisher_samples=8"),
    "local, gradient norm": ("schedule.name=local", *KEPT, "consensus.score=inverse_gradient_norm", *NOISY),
    "local, outer": ("schedule.name=local", "consensus.name=outer", "consensus.period=4 steps", "schedule.width=5"),
    "local, gossip": ("schedule.name=local", "consensus.name=gossip", "consensus.form=combine_then_adapt", *NOISY),
    "fdg, gossip": ("schedule.name=fdg", "consensus.name=gossip", "consensus.form=combine_then_adapt", *NOISY),
    "fdg, gossip, accumulate": ("schedule.name=fdg", *SELDOM, *NOISY),
    "ddg, gossip, accumulate": ("schedule.name=ddg", *BEGUN, "consensus.form=combine_then_adapt", *NOISY),
    "ddg, outer": ("schedule.name=ddg", "consensus.name=outer", "consensus.period=4 steps", *NOISY),
    "parareal": ("schedule.name=parareal", "consensus.name=gradients", "train.clip=0.1", *NOISY),
    "parareal, averaging": ("schedule.name=parareal", "schedule.form=difference", *MEETING, *NOISY),
    "parareal, gathered": ("schedule.name=parareal", "schedule.sweep=gather", *MEETING, "train.clip=0.1", *NOISY),
    "images": ("schedule.name=fdg", "model.name=cnn", "model.channels=[3]", "model.kernel=3", "data.crop=1"),
}
Run = Callable[..., int]


@pytest.fixture
def run(world: World, mpi_tmp_path: Path) -> Run:
    """Train in this process, in the run directory ``run``."""

    def start(*settings: str, world: World = world, **request: object) -> int:
        overrides = (f"run.directory={mpi_tmp_path / 'run'}", *SMALL, *settings)
        return train(world, replace(Request(overrides=overrides), **request))

    return start


def deep(case: str, stages: int) -> tuple[str, ...]:
    """The settings of a case on so many stages."""
    return *DEEP, f"grid.stages={stages}", *CASES[case]


def grids(world: World) -> list[int]:
    """Numbers of stages: all ranks, and half of them for two replicas."""
    return [world.size] if world.size % 2 else [world.size, world.size // 2]


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_as_one_that_was_not_stopped(case: str, world: World, run: Run, mpi_tmp_path: Path) -> None:
    for stages in grids(world):
        settings = deep(case, stages)
        assert run(*settings, fresh=True) == 0
        meet(world)
        assert run(*settings, fresh=True, stop_after=HALF) == 75
        meet(world)
        stopped, whole = (mpi_tmp_path / name for name in ("run", newest_aside(mpi_tmp_path)))
        assert run(*settings, resume=True) == 0
        meet(world)
        last = f"checkpoint-{WHOLE:08d}.h5"
        assert differences(stopped / last, whole / last) == []
        timeless = [[{**line, "seconds": 0} for line in records(place)] for place in (stopped, whole)]
        assert timeless[0] == timeless[1]
        meet(world)


def newest_aside(path: Path) -> str:
    """The run that was last moved aside."""
    return max((place.name for place in path.glob("run.*")), key=lambda name: int(name.partition(".")[2]))


def test_a_file_of_before_a_key_was_there_goes_on_with_what_is_in_flight(
    world: World, run: Run, mpi_tmp_path: Path
) -> None:
    settings = deep("fdg", world.size)
    assert run(*settings) == 0
    meet(world)
    assert run(*settings, fresh=True, stop_after=HALF) == 75
    meet(world)
    stopped, whole = (mpi_tmp_path / name for name in ("run", "run.1"))
    if world.rank == 0:
        with h5py.File(stopped / f"checkpoint-{HALF:08d}.h5", "r+") as file:
            tables = json.loads(file["configuration"][()])
            del tables["schedule"]["shrink"], file["configuration"]
            file["configuration"] = np.bytes_(json.dumps(tables))
        (stopped / "checkpoints.json").unlink()
    meet(world)
    assert run(*settings, resume=True) == 0
    meet(world)
    last = f"checkpoint-{WHOLE:08d}.h5"
    assert differences(stopped / last, whole / last) == []
    meet(world)


@pytest.mark.parametrize(
    ("case", "lag"), [("fdg", 2), ("ddg, accuracy", 1), ("gpipe", 0), ("layerwise", 2), ("local", 1)]
)
def test_on_another_grid_the_run_goes_back_to_what_all_stages_have_applied(
    case: str, lag: int, world: World, run: Run, mpi_tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # stopped at the end of an epoch, whose last batch is smaller; one replica never meets, which would drain
    settings = deep(case, world.size)
    assert run(*settings, stop_after=12) == 75
    meet(world)
    behind = lag * (world.size - 1)
    for ranks in range(1, world.size):
        fewer = first(world, ranks)
        if world.rank < ranks:
            notes = _begins(fewer, deep(case, ranks), mpi_tmp_path / "run", 12 - behind, (1, world.size), behind)
            heads = case == "local" and fewer.rank < ranks - 1
            assert any("auxiliary heads are drawn anew" in note for note in notes) == heads
        meet(world)
    if world.size > 1:
        fewer = first(world, 1)
        if world.rank == 0:
            capfd.readouterr()
            assert run(*deep(case, 1), world=fewer) == 0
            said = capfd.readouterr().out
            assert (f"goes back {behind} batches" in said) == bool(behind)
            assert "drawn anew" not in said
        meet(world)
        lines = [line for line in records(mpi_tmp_path / "run") if "loss" in line]
        assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
        assert lines[-1]["samples"] == SAMPLES


def test_with_another_schedule_what_is_in_flight_is_dropped_on_the_same_grid_too(
    world: World, run: Run, mpi_tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*deep("fdg", world.size), stop_after=11) == 75
    meet(world)
    capfd.readouterr()
    assert run(*deep("fdg", world.size), "schedule.accumulate=2") == 0
    said = capfd.readouterr().out
    if world.rank == 0:
        assert ("what was in flight is dropped" in said) == (world.size > 1)
    meet(world)


def test_auxiliary_heads_go_on_where_only_the_replicas_are_fewer(world: World, run: Run, mpi_tmp_path: Path) -> None:
    stages = max(1, world.size // 2)
    if world.size == 2 * stages:
        assert run(*deep("local", stages), stop_after=11) == 75
        meet(world)
        fewer = first(world, stages)
        if world.rank < stages:
            shape, behind = (2, stages), stages - 1
            notes = _begins(fewer, deep("local", stages), mpi_tmp_path / "run", 11 - behind, shape, behind)
            assert not any("drawn anew" in note for note in notes)
        meet(world)


def _begins(
    world: World, settings: tuple[str, ...], directory: Path, step: int, was: tuple[int, int], behind: int
) -> Sequence[str]:
    """Check what a run begins with that was saved by ``was`` (replicas, stages); what it says of that."""
    with Checkpoint(directory / "latest") as checkpoint:
        assert checkpoint.grid == (*was, 1)
        assert ("flight/0/0" in checkpoint.kinds()) == (behind > 0)
        saved = {
            f"{kind}/{entry.name}": checkpoint.weights(entry.name, kind)
            for kind in checkpoint.kinds()
            for entry in (checkpoint.parameters(kind) if kind.startswith("model/") else ())
        }
    world.control.barrier()
    begin = check(Request(overrides=(f"run.directory={directory}", *SMALL, *settings)), world.size)
    world.control.barrier()
    experiment = build(world, begin, Signals())
    assert experiment.trainer.plan.start == step
    drawn = any("drawn anew" in note for note in experiment.notes)
    for name, part in experiment.trainer.schedule.parts.items():
        for entry in part.layout if name == "network" or not drawn else ():
            weights = part.weights[entry.slice].reshape(entry.shape)
            np.testing.assert_array_equal(weights, saved[f"model/{name}/{entry.name}"])
    experiment.keeper.close()
    begin.lock.release()
    return experiment.notes
