"""Measuring models on one rank; tests/mpi has what several ranks do together."""

from dataclasses import replace

import numpy as np
import pytest
from oracles import Problem, Replica, clusters, fisher, judge, serial

from mpinn.comm.channel import NullChannel
from mpinn.consensus.independent import Independent
from mpinn.consensus.scores import SCORES, Local
from mpinn.models.mlp import MLP
from mpinn.nn.loss import SquaredError
from mpinn.schedules.serial import Serial
from mpinn.training.measure import EVALUATION_BATCH, ReplicaMeasure, RunMeasure, quality

NORMED = Problem(model=MLP(widths=(9, 7), norm="batch", dropout=0.5), deal="fixed")
MANY = Problem(source=clusters(2 * EVALUATION_BATCH + 3), batch=100, deal="fixed")


def measure(problem: Problem, step: int, replicas: int = 1, replica: int = 0):
    part = serial(problem, step, replicas, replica)
    schedule = Serial(part, problem.loss, problem.seed)
    batches = problem.batches(replicas, replica)
    return part, ReplicaMeasure(schedule, problem.loss, batches, step, problem.seed, replica)


@pytest.mark.parametrize("problem", [NORMED, MANY], ids=["batch norm and dropout", "several batches"])
def test_validation_is_that_of_the_whole_split(problem: Problem) -> None:
    part, measured = measure(problem, 3)
    split = problem.source.splits["validation"]
    found, (loss, accuracy) = measured.validation(), judge(problem, part, split.x, split.target)
    assert (found.loss, found.accuracy) == (pytest.approx(loss, rel=1e-12), accuracy)


@pytest.mark.parametrize("problem", [NORMED, MANY], ids=["batch norm and dropout", "several batches"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_run_is_measured_on_whole_splits(problem: Problem, split: str) -> None:
    part = serial(problem, 3)
    schedule, channel = Serial(part, problem.loss, problem.seed), NullChannel("control")
    run = RunMeasure(schedule, problem.loss, problem.batches(1, 0), channel, Independent(channel))
    samples = problem.source.splits[split]
    loss, accuracy = judge(problem, part, samples.x, samples.target)
    found = run.quality(split)
    assert (found.loss, found.accuracy) == (pytest.approx(loss, rel=1e-12), accuracy)
    assert run.merge_weights().tolist() == [1]


@pytest.mark.parametrize("replica", [0, 2])
@pytest.mark.parametrize("step", [1, 5, 6])
def test_a_shard_is_what_the_replica_trains_on(step: int, replica: int) -> None:
    part, measured = measure(NORMED, step, 3, replica)
    train = NORMED.source.splits["train"]
    batches = NORMED.batches(3, replica)
    own = np.concatenate([batches.batch(index).samples.copy() for index in range(batches.steps_per_epoch)])
    assert len(own) in (16, 17)
    loss, accuracy = judge(NORMED, part, train.x[own], train.target[own])
    found = measured.shard()
    assert found.accuracy == pytest.approx(accuracy, abs=1e-15)
    assert found.loss == pytest.approx(loss, rel=1e-12)


def test_a_replica_without_samples_is_finite_and_has_nothing_to_bring() -> None:
    problem = replace(NORMED, source=clusters(2), batch=2)
    for replica, samples in enumerate((1, 1, 0)):
        _, measured = measure(problem, 2, 3, replica)
        assert problem.batches(3, replica).batch(0).count == samples
        assert SCORES["accuracy_shard"].ask(measured, Local(0.0, samples)) in ((0.0, 1.0) if samples else (0.0,))


def test_without_samples_nothing_is_known() -> None:
    nothing = quality(np.zeros(3))
    assert np.isnan([nothing.loss, nothing.accuracy]).all()


@pytest.mark.parametrize("loss", [NORMED.loss, SquaredError()], ids=["cross entropy", "squared error"])
@pytest.mark.parametrize(("step", "samples"), [(1, 1), (3, 20), (6, 10_000)])
def test_fisher_is_the_mean_of_squared_gradients(step: int, samples: int, loss) -> None:
    problem = Problem(model=NORMED.model, deal="fixed", loss=loss)
    part, measured = measure(problem, step, 2, 1)
    state, out = part.state.copy(), np.full_like(part.weights, np.nan)
    measured.fisher(part, out, samples)
    wanted = fisher(problem, Replica(1, part, problem.batches(2, 1)), samples, step)
    np.testing.assert_allclose(out, wanted, rtol=1e-12, atol=1e-15)
    assert out.max() > 0
    assert part.state.tobytes() == state.tobytes()


def test_fisher_draws_new_labels_at_each_meeting_and_the_same_ones_again() -> None:
    part, _ = measure(NORMED, 2)
    schedule = Serial(part, NORMED.loss, NORMED.seed)
    found = []
    for step in (2, 2, 3):
        out = np.empty_like(part.weights)
        ReplicaMeasure(schedule, NORMED.loss, NORMED.batches(1, 0), step, NORMED.seed, 0).fisher(part, out, 9)
        found.append(out)
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])
