"""Replicas that survive the death of others; each run ends as one that goes on with fewer from where that was."""

import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from launch import finish, mpirun, ranks_of, start
from train_jobs import SMALL, arguments, differences, records, wait_for, world
from ulfm import (
    FLAGS,
    SAVING,
    WRITING,
    Drill,
    bereave,
    deaths,
    drill,
    mortal,
    references,
    surviving,
    ulfm,
    under_open_mpi,
)

from mpinn.array.typing import Array
from mpinn.comm.channel import DONE, NullChannel, Pending
from mpinn.comm.grid import World
from mpinn.errors import InputError
from mpinn.partition.cuts import Cuts
from mpinn.run.checks import Request, check
from mpinn.run.keeper import RunKeeper
from mpinn.run.survival import Death, Survival, left, outline
from mpinn.storage.restore import newest
from mpinn.training.boundary import Boundaries, Standing
from mpinn.training.choices import read_config

STOPPED = 75
KILLED = 33
"""The index of the batch in whose update a rank dies."""
LONG = (*SMALL, "train.epochs=10", "run.kernels=plain")
"""60 steps; kernels that need not be loaded, since jobs take as long as they take to start."""
NORMED = (*LONG, "model.norm=batch")
GRADIENTS = (*LONG, "consensus.name=gradients", "train.log=1 step")


DIFFERENT = {
    "accuracy": (("consensus.name=averaging", "consensus.period=7 steps"), 1),
    "norm": (("consensus.name=averaging", "consensus.period=7 steps", "consensus.score=inverse_gradient_norm"), 0),
    "gossip": (("consensus.name=gossip",), 3),
    "combine": (("consensus.name=gossip", "consensus.form=combine_then_adapt"), 0),
    "outer": (("consensus.name=outer", "consensus.period=7 steps", "optimizer.name=adam"), 2),
}
"""A consensus, and who dies."""
SCHEDULES = {"1f1b": 0, "fdg": 2, "ddg": 1, "parareal": 0}
"""Steps that are under way at a boundary."""


@pytest.fixture
def _with_ulfm() -> Iterator[None]:
    with under_open_mpi():
        yield


@pytest.fixture(scope="module")
def synchronous(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Drill]:
    """By the rank that dies first; after rank 0 two more die."""
    place = tmp_path_factory.mktemp("synchronous")
    with under_open_mpi():
        one = drill(place, "one", mortal({2: KILLED}), *GRADIENTS, "run.kernels=auto")
        all_but_one = drill(place, "all-but-one", mortal({0: KILLED, 2: 41, 1: 50}), *GRADIENTS)
        first, second, third = (death["resumed"] for death in all_but_one.deaths)
        references(4, one.until(one.deaths[0]["resumed"]), all_but_one.until(first))
        references(3, one.until(0), all_but_one.until(second))
        references(2, all_but_one.until(third))
        references(1, all_but_one.until(0))
    return {2: one, 0: all_but_one}


@pytest.fixture(scope="module")
def different(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drill]:
    place = tmp_path_factory.mktemp("different")
    with under_open_mpi():
        drills = {
            name: drill(place, name, mortal({dead: KILLED}), *NORMED, *consensus)
            for name, (consensus, dead) in DIFFERENT.items()
        }
        references(4, *(each.until(each.deaths[0]["resumed"]) for each in drills.values()))
        for name, each in drills.items():
            bereave(each.oracle, DIFFERENT[name][1])
        references(3, *(each.until(0) for each in drills.values()))
    return drills


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drill]:
    place = tmp_path_factory.mktemp("staged")
    grid = ("model.widths=[12,12,12]", "grid.replicas=2", "grid.stages=2")
    with under_open_mpi():
        drills = {
            name: drill(place, name, mortal({1: KILLED}), *GRADIENTS, *grid, f"schedule.name={name}")
            for name in SCHEDULES
        }
        references(4, *(each.until(each.deaths[0]["resumed"] + SCHEDULES[name]) for name, each in drills.items()))
        references(2, *(each.until(0, "grid.replicas=1") for each in drills.values()))
    return drills


@pytest.fixture(scope="module")
def saving(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Drill]:
    """By the step after which the writer dies, in the middle of the run or at its end."""
    place, settings = tmp_path_factory.mktemp("saving"), (*GRADIENTS, "checkpoint.every=15 steps")
    with under_open_mpi():
        drills = {step: drill(place, str(step), SAVING.replace("STEP", str(step)), *settings) for step in (30, 60)}
        references(4, drills[30].until(30), drills[60].until(59), drills[60].until(0))
        references(3, drills[30].until(0))
    return drills


def every_line(run: Path) -> None:
    """The metrics have each line of a run of 60 steps once, in order."""
    lines = [(line["step"], *sorted(line.keys() - {"step"})[:1]) for line in records(run)]
    assert len(lines) == len(set(lines))
    assert [step for step, _ in lines] == sorted(step for step, _ in lines)
    assert {step for step, _ in lines} >= {*range(5, 61, 5)}


@pytest.mark.ulfm
@pytest.mark.parametrize("dead", [2, 0])
def test_synchronous_replicas_go_on_as_a_run_resumed_with_fewer(dead: int, synchronous: dict[int, Drill]) -> None:
    drill = synchronous[dead]
    death, said = drill.deaths[0], drill.job.stdout
    assert death["resumed"] in (KILLED - 1, KILLED)
    assert death["noticed"] == KILLED
    assert (death["dead"], death["retired"], death["replicas"]) == ([dead], [], [dead])
    assert (death["before"], death["after"]) == ([4, 1, 1], [3, 1, 1])
    assert f"rank {dead} (of replica {dead}) has died, noticed after step {KILLED}\n" in said
    assert f"survived      rank {dead} of replica {dead} died after step {KILLED}, 3 of 4" in said
    assert differences(drill.run / "latest", drill.oracle / "latest") == ["configuration"]
    assert [line["step"] for line in records(drill.run) if "loss" in line] == [*range(1, 61)]
    every_line(drill.run)


@pytest.mark.ulfm
def test_a_rank_that_dies_among_the_survivors_is_survived_too(synchronous: dict[int, Drill]) -> None:
    assert [death["dead"] for death in synchronous[2].deaths] == [[2]]
    assert [death["dead"] for death in synchronous[0].deaths] == [[0], [2], [1]]
    assert [death["after"] for death in synchronous[0].deaths] == [[3, 1, 1], [2, 1, 1], [1, 1, 1]]


@pytest.mark.ulfm
@pytest.mark.parametrize("consensus", DIFFERENT)
def test_replicas_that_differ_go_on_with_weights_of_their_own(consensus: str, different: dict[str, Drill]) -> None:
    drill = different[consensus]
    assert [death["dead"] for death in drill.deaths] == [[DIFFERENT[consensus][1]]]
    assert differences(drill.run / "latest", drill.oracle / "latest") == ["configuration"]
    every_line(drill.run)


@pytest.mark.ulfm
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_replica_without_all_its_stages_retires(schedule: str, staged: dict[str, Drill]) -> None:
    drill = staged[schedule]
    assert "rank 0 retires: without all its stages a replica cannot go on\n" in drill.job.stdout
    (death,) = drill.deaths
    assert (death["dead"], death["retired"], death["replicas"]) == ([1], [0], [0])
    assert (death["before"], death["after"]) == ([2, 2, 1], [1, 2, 1])
    assert differences(drill.run / "latest", drill.oracle / "latest") == ["configuration"]
    every_line(drill.run)


@pytest.mark.ulfm
@pytest.mark.parametrize("step", [30, 60])
def test_a_writer_that_dies_while_it_saves_leaves_nothing_half_done(step: int, saving: dict[int, Drill]) -> None:
    run = saving[step].run
    (death,) = saving[step].deaths
    assert (death["dead"], death["noticed"], death["resumed"]) == ([0], step, step)
    assert list(run.glob(".*.partial")) == []
    found = newest(run, pytest.fail)
    assert found is not None
    expected = ["configuration"] if step < 60 else ["configuration", "@grid"]
    assert differences(found, saving[step].oracle / "latest") == expected
    every_line(run)


@pytest.mark.ulfm
@pytest.mark.usefixtures("_with_ulfm")
def test_what_a_writer_has_not_written_any_more_another_writes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = (*NORMED, "train.log=3 steps", "consensus.period=7 steps")
    job = surviving(4, run, WRITING.replace("STEP", "33"), *settings)
    assert job.returncode == 0, job.stderr
    (death,) = deaths(run)
    assert (death["dead"], death["resumed"]) == ([0], 33)
    assert [line["step"] for line in records(run) if "loss" in line] == [*range(3, 61, 3)]
    every_line(run)


@pytest.mark.ulfm
@pytest.mark.usefixtures("_with_ulfm")
def test_without_a_whole_replica_the_job_ends_and_goes_on_when_it_is_started_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = (*GRADIENTS, "model.widths=[12,12]", "grid.stages=2", "schedule.name=1f1b", "checkpoint.every=15 steps")
    job = surviving(4, run, mortal({1: KILLED, 2: KILLED}), *settings)
    assert job.returncode == 1
    told = (
        "mpinn: ranks 1-2 died, and no replica has all its ranks: the same command goes on from the newest checkpoint"
    )
    assert told in job.stderr
    again = ulfm(4, *arguments(run, *settings))
    assert again.returncode == 0
    assert f"resumed from {run}/checkpoint-00000030.h5 at step 30\n" in again.stdout
    every_line(run)


@pytest.mark.ulfm
@pytest.mark.usefixtures("_with_ulfm")
def test_a_writer_killed_from_outside_is_replaced_and_a_signal_still_stops_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    long = ("model.widths=[12]", "train.epochs=100000", "optimizer.decay=constant", "train.log=7 steps")
    settings = (*long, "checkpoint.every=15 steps", "run.survive=true", "run.patience=5", "run.kernels=plain")
    job = start(4, *arguments(run, *settings), options=FLAGS)
    wait_for(run / "checkpoint-00000045.h5", job)
    os.kill(ranks_of(job)[0], signal.SIGKILL)
    (found,) = (int(path.name[11:19]) for path in [newest(run, pytest.fail)] if path)
    wait_for(run / f"checkpoint-{(found // 15 + 20) * 15:08d}.h5", job)
    job.send_signal(signal.SIGUSR1)
    ended = finish(job, timeout=30)
    assert ended.returncode == STOPPED, ended.stderr
    assert "rank 0 (of replica 0) has died, noticed after step " in ended.stdout
    assert (run / "requeue").exists()
    assert not (run / "lock").exists()
    steps = [line["step"] for line in records(run) if "loss" in line]
    assert steps == list(range(7, steps[-1] + 1, 7))


@pytest.mark.ulfm
@pytest.mark.usefixtures("_with_ulfm")
def test_the_mpirun_of_open_mpi_must_be_told(tmp_path: Path) -> None:
    job = mpirun(2, *arguments(tmp_path / "run", *SMALL, "run.survive=true"))
    assert job.returncode == 2
    told = " was started without ULFM, which lets ranks survive: start with mpirun --with-ft ulfm\n"
    assert job.stderr.startswith("mpinn: run.survive: Open MPI 5.")
    assert job.stderr.count(told) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (("grid.stages=2", "schedule.name=1f1b"), "there is one replica, and without all its ranks none can go on"),
        (("data.deal=same",), "with data.deal = same fewer replicas have epochs of fewer steps: only false goes"),
        (
            ("model.name=population", "consensus.name=gradients"),
            "no copy is kept of which members a population has left: only false goes",
        ),
    ],
)
def test_what_cannot_survive_is_refused(settings: tuple[str, ...], why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        check(Request(overrides=(f"run.directory={tmp_path / 'run'}", "run.survive=true", *settings)), 2)
    assert str(caught.value) == f"run.survive: {why}"
    assert not (tmp_path / "run").exists()


def test_an_mpi_without_ulfm_is_refused(tmp_path: Path) -> None:
    job = mpirun(2, *arguments(tmp_path / "run", *SMALL, "run.survive=true"))
    assert job.returncode == 2
    assert job.stderr.count("mpinn: run.survive: ") == 1
    assert "has no ULFM, which lets ranks survive: use Open MPI 5, as mpirun --with-ft ulfm\n" in job.stderr
    assert not (tmp_path / "run").exists()


def test_of_the_living_those_whose_replica_is_whole_go_on() -> None:
    assert left((4, 1, 1), [0, 1, 3]) == (0, 1, 3)
    assert left((3, 2, 1), [0, 1, 3, 4, 5]) == (0, 1, 4, 5)
    assert left((2, 2, 2), [0, 1, 2, 4, 5, 6, 7]) == (4, 5, 6, 7)
    assert left((2, 2, 1), [0, 3]) == ()


def test_ranks_and_replicas_keep_the_numbers_with_which_the_job_began() -> None:
    survival = Survival((4, 2, 1))
    assert survival.stay([0, 1, 2, 4, 5, 6, 7]) == [0, 1, 4, 5, 6, 7]
    first = survival.bury([0, 1, 2, 4, 5, 6, 7])
    assert (first.dead, first.retired, first.replicas) == ((3,), (2,), (1,))
    assert (first.before, first.after) == ((4, 2, 1), (3, 2, 1))
    assert (survival.ranks, survival.replicas) == ((0, 1, 4, 5, 6, 7), (0, 2, 3))
    assert survival.stay([0, 1, 2, 3, 5]) == [0, 1, 2, 3]  # counted among those that there were
    second = survival.bury([0, 1, 2, 3, 5])
    assert (second.dead, second.retired, second.replicas) == ((6,), (7,), (3,))
    assert second.sentences(64)[:2] == [
        "rank 6 (of replica 3) has died, noticed after step -1",
        "rank 7 retires: without all its stages a replica cannot go on",
    ]
    assert (survival.ranks, survival.replicas) == ((0, 1, 4, 5), (0, 2))
    config = read_config(None, ("grid.replicas=4", "grid.stages=2"))
    assert survival.adapted(config).grid.replicas == 2
    assert survival.adapted(read_config(None, ())).grid.replicas == 0


def test_a_death_in_few_words() -> None:
    death = Death((1, 4), (0,), (0, 2), (4, 2, 1), (2, 2, 1), noticed=9, resumed=7)
    said = "ranks 1, 4 of replicas 0, 2 died after step 9, 2 of 4 replicas went on from step 7"
    assert outline(asdict(death)) == said


def agreeing(*other: int) -> World:
    """One of two ranks, of which the other tells: minus its last boundary, its last step, is the directory ready."""

    class Control(NullChannel):
        def all_max(self, array: Array) -> Pending:
            array[:] = np.maximum(array, other)
            return DONE

    return replace(world(), control=Control("control"))


def kept(*standings: Standing) -> Boundaries:
    boundaries = Boundaries([], (0, 1))
    for standing in standings:
        boundaries.keep(standing)
    return boundaries


def test_cuts_that_not_all_have_are_nobodys() -> None:
    """A rank that heard of a death just before it was built finds the cuts with all others, or waits for ever."""
    survival = Survival((2, 1, 1))
    survival.track(cast(RunKeeper, None), kept(Standing(0, 0, 0.0, None, 0, 0, 0.0)), Cuts((0, 3)), lambda: 0)
    survival.agree(agreeing(1, 0, 1))
    assert (survival.cuts, survival.begin, survival.prepared) == (None, None, True)


def test_who_was_not_built_again_goes_on_with_those_who_were() -> None:
    """After a second death, at which others had already copied the state in which all were to go on."""
    survival, boundaries = Survival((3, 1, 1)), kept(*(Standing(step, 0, 0.0, None, 2, 0, 0.0) for step in (9, 10)))
    survival.track(cast(RunKeeper, None), boundaries, Cuts((0, 3)), lambda: 10)
    survival.agree(agreeing(-10, 10, 1))
    begin = survival.begin
    assert begin is boundaries.at(10)
    survival.deaths.append(Death((2,), (), (2,), (3, 1, 1), (2, 1, 1)))
    survival.agree(agreeing(-8, 10, 1))
    assert survival.begin is begin
    assert survival.deaths[0].resumed == 8
