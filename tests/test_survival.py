"""Replicas that survive the death of others; each run ends as one that goes on with fewer from where that was."""

import os
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
from launch import finish, mpirun, open_mpi, open_mpi_library, ranks_of, start
from training import SMALL, arguments, differences, records, wait_for
from ulfm import FLAGS, SAVING, WRITING, bereave, deaths, dying, surviving, ulfm

from mpinn.choices import read_config
from mpinn.storage.restore import newest
from mpinn.survival import Death, Survival, left, outline

STOPPED = 75
KILLED = 33
"""The index of the batch in whose update a rank dies."""
LONGER = (*SMALL, "train.epochs=10", "model.norm=batch")
"""60 steps."""
GRADIENTS = (*SMALL, "train.epochs=10", "consensus.name=gradients", "train.log=1 step")


@pytest.fixture
def _with_ulfm(monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = open_mpi()
    assert prefix is not None
    monkeypatch.setenv("MPINN_TEST_MPIRUN", str(prefix / "bin/mpirun"))
    monkeypatch.setenv("MPI4PY_LIBMPI", str(open_mpi_library()))


def train(ranks: int, run: Path, *settings: str) -> int:
    """Train with the same messages as a run that survives; the code."""
    return ulfm(ranks, *arguments(run, *settings)).returncode


def every_line(run: Path) -> None:
    """The metrics have each line of a run of 60 steps once, in order."""
    lines = [(line["step"], *sorted(line.keys() - {"step"})[:1]) for line in records(run)]
    assert len(lines) == len(set(lines))
    assert [step for step, _ in lines] == sorted(step for step, _ in lines)
    assert {step for step, _ in lines} >= {*range(5, 61, 5)}


@pytest.mark.ulfm
@pytest.mark.usefixtures("_with_ulfm")
@pytest.mark.parametrize("dead", [2, 0])
def test_synchronous_replicas_go_on_as_a_run_resumed_with_fewer(dead: int, tmp_path: Path) -> None:
    run, oracle = tmp_path / "run", tmp_path / "oracle"
    job = dying(4, run, {dead: KILLED}, *GRADIENTS)
    assert job.returncode == 0, job.stderr
    (death,) = deaths(run)
    step = death["resumed"]
    assert step in (KILLED - 1, KILLED)
    assert death["noticed"] == KILLED
    assert (death["dead"], death["retired"], death["replicas"]) == ([dead], [], [dead])
    assert (death["before"], death["after"]) == ([4, 1, 1], [3, 1, 1])
    assert f"rank {dead} (of replica {dead}) has died, noticed after step {KILLED}\n" in job.stdout
    assert f"survived      rank {dead} of replica {dead} died after step {KILLED}, 3 of 4" in job.stdout
    assert train(4, oracle, *GRADIENTS, "--stop-after", str(step)) == STOPPED
    assert train(3, oracle, *GRADIENTS) == 0
    assert differences(run / "latest", oracle / "latest") == ["configuration"]
    assert [line["step"] for line in records(run) if "loss" in line] == [*range(1, 61)]
    every_line(run)


@pytest.mark.ulfm
@pytest.mark.usefixtures("_with_ulfm")
@pytest.mark.parametrize(
    ("consensus", "dead"),
    [
        (("consensus.name=averaging", "consensus.period=7 steps"), 1),
        (("consensus.name=averaging", "consensus.period=7 steps", "consensus.score=inverse_gradient_norm"), 0),
        (("consensus.name=gossip",), 3),
        (("consensus.name=gossip", "consensus.form=combine_then_adapt"), 0),
        (("consensus.name=outer", "consensus.period=7 steps", "optimizer.name=adam"), 2),
    ],
)
def test_replicas_that_differ_go_on_with_weights_of_their_own(
    consensus: tuple[str, ...], dead: int, tmp_path: Path
) -> None:
    run, oracle = tmp_path / "run", tmp_path / "oracle"
    settings = (*LONGER, *consensus)
    job = dying(4, run, {dead: KILLED}, *settings)
    assert job.returncode == 0, job.stderr
    (death,) = deaths(run)
    assert train(4, oracle, *settings, "--stop-after", str(death["resumed"])) == STOPPED
    bereave(oracle, dead)
    assert train(3, oracle, *settings) == 0
    assert differences(run / "latest", oracle / "latest") == ["configuration"]
    every_line(run)


@pytest.mark.ulfm
@pytest.mark.usefixtures("_with_ulfm")
@pytest.mark.parametrize(("schedule", "behind"), [("1f1b", 0), ("fdg", 2), ("ddg", 1), ("parareal", 0)])
def test_a_replica_without_all_its_stages_retires(schedule: str, behind: int, tmp_path: Path) -> None:
    run, oracle = tmp_path / "run", tmp_path / "oracle"
    settings = (*GRADIENTS, "model.widths=[12,12,12]", "grid.replicas=2", "grid.stages=2", f"schedule.name={schedule}")
    job = dying(4, run, {1: KILLED}, *settings)
    assert job.returncode == 0, job.stderr
    assert "rank 0 retires: without all its stages a replica cannot go on\n" in job.stdout
    (death,) = deaths(run)
    assert (death["dead"], death["retired"], death["replicas"]) == ([1], [0], [0])
    assert (death["before"], death["after"]) == ([2, 2, 1], [1, 2, 1])
    assert train(4, oracle, *settings, "--stop-after", str(death["resumed"] + behind)) == STOPPED
    assert train(2, oracle, *settings, "grid.replicas=1") == 0
    assert differences(run / "latest", oracle / "latest") == ["configuration"]
    every_line(run)


@pytest.mark.ulfm
@pytest.mark.usefixtures("_with_ulfm")
def test_a_rank_that_dies_among_the_survivors_is_survived_too(tmp_path: Path) -> None:
    run, oracle = tmp_path / "run", tmp_path / "oracle"
    job = dying(4, run, {0: KILLED, 2: 41, 1: 50}, *GRADIENTS)
    assert job.returncode == 0, job.stderr
    found = deaths(run)
    assert [death["dead"] for death in found] == [[0], [2], [1]]
    for ranks, death in zip((4, 3, 2), found, strict=True):
        assert train(ranks, oracle, *GRADIENTS, "--stop-after", str(death["resumed"])) == STOPPED
    assert train(1, oracle, *GRADIENTS) == 0
    assert differences(run / "latest", oracle / "latest") == ["configuration"]
    every_line(run)


@pytest.mark.ulfm
@pytest.mark.usefixtures("_with_ulfm")
@pytest.mark.parametrize("step", [30, 60])
def test_a_writer_that_dies_while_it_saves_leaves_nothing_half_done(step: int, tmp_path: Path) -> None:
    run, oracle = tmp_path / "run", tmp_path / "oracle"
    settings = (*GRADIENTS, "checkpoint.every=15 steps")
    job = surviving(4, run, SAVING.replace("STEP", str(step)), *settings)
    assert job.returncode == 0, job.stderr
    (death,) = deaths(run)
    assert (death["dead"], death["noticed"], death["resumed"]) == ([0], step, step)
    assert list(run.glob(".*.partial")) == []
    assert train(4, oracle, *settings, "--stop-after", str(min(step, 59))) == STOPPED
    assert train(3 if step < 60 else 4, oracle, *settings) == 0
    found = newest(run, pytest.fail)
    assert found is not None
    expected = ["configuration"] if step < 60 else ["configuration", "@grid"]
    assert differences(found, oracle / "latest") == expected
    every_line(run)


@pytest.mark.ulfm
@pytest.mark.usefixtures("_with_ulfm")
def test_what_a_writer_has_not_written_any_more_another_writes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = (*LONGER, "train.log=3 steps", "consensus.period=7 steps")
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
    job = dying(4, run, {1: KILLED, 2: KILLED}, *settings)
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
    settings = (*long, "checkpoint.every=15 steps", "run.survive=true", "run.patience=5")
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


@pytest.mark.ulfm
@pytest.mark.usefixtures("_with_ulfm")
@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (("grid.stages=2", "schedule.name=1f1b"), "there is one replica, and without all its ranks none can go on"),
        (
            ("model.name=population", "consensus.name=gradients"),
            "no copy is kept of which members a population has left: only false goes",
        ),
    ],
)
def test_what_cannot_survive_is_refused(settings: tuple[str, ...], why: str, tmp_path: Path) -> None:
    job = ulfm(2, *arguments(tmp_path / "run", "run.survive=true", *settings))
    assert (job.returncode, job.stderr) == (2, f"mpinn: run.survive: {why}\n")
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
