"""Gossip against the oracle, what mixing does, and which messages it sends."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
from consensus_oracles import gossip as oracle
from consensus_oracles import mixing
from oracles import Problem, clusters, serial, synchronous, write_gradient
from replicated import NORMED, ROUNDED, SHARDS, STEPS, everywhere, train
from train_jobs import SMALL, datasets

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel
from mpinn.comm.grid import World
from mpinn.commands.train import train as run
from mpinn.config import Period
from mpinn.consensus.gossip import Gossip, GossipOptions
from mpinn.consensus.graphs import GRAPHS
from mpinn.datasets.batches import Batch
from mpinn.models.mlp import MLP
from mpinn.nn.optimizer import SGD, Adam, Optimizer
from mpinn.nn.part import Part
from mpinn.run.checks import Request
from mpinn.schedules.serial import Serial
from mpinn.storage.restore import newest
from mpinn.training.trainer import DivergedError

pytestmark = pytest.mark.mpi

FORMS = ("adapt_then_combine", "combine_then_adapt")
EVEN = Problem(source=clusters(48))
"""48 samples in batches of 12: on 1 to 4 replicas all have equally many."""


@pytest.fixture
def channel(world: World) -> Channel:
    return world.channel("replicas")


def build(channel: Channel, graph: str = "ring", form: str = FORMS[0], period: int = 1) -> Gossip:
    return GossipOptions(graph=graph, form=form, period=Period(f"{period} steps")).build(channel, 1)


def degree(channel: Channel, graph: str) -> int:
    return len(GRAPHS[graph](channel.size, channel.rank))


def assert_same_bits(part: Part, wanted: Part) -> None:
    assert part.weights.tobytes() == wanted.weights.tobytes()
    assert part.state.tobytes() == wanted.state.tobytes()
    for name, slot in part.slots.items():
        assert slot.tobytes() == wanted.slots[name].tobytes()
    assert part.counters[0] == wanted.counters[0]


# The oracle


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize("optimizer", [SGD(rate=0.1), Adam(rate=1e-2, weight_decay=1e-2)], ids=["momentum", "adam"])
def test_every_bit_is_the_oracle_s(channel: Channel, graph: str, form: str, period: int, optimizer: Optimizer) -> None:
    problem = replace(NORMED, optimizer=optimizer)
    trained = train(problem, channel, build(channel, graph, form, period), STEPS)
    assert_same_bits(trained.part, oracle(problem, channel.size, graph, form, period, STEPS)[channel.rank])
    assert trained.meetings == []


@pytest.mark.parametrize("form", FORMS)
def test_late_neighbours_and_long_messages_change_no_bit(channel: Channel, form: str) -> None:
    problem = replace(SHARDS, model=MLP(widths=(150, 150)))

    def dawdle(step: int, replica: int, part: Part) -> None:
        sleep(0.01 * (step % channel.size == replica))

    trained = train(problem, channel, build(channel, "ring", form), STEPS, dawdle)
    assert_same_bits(trained.part, oracle(problem, channel.size, "ring", form, 1, STEPS)[channel.rank])


@pytest.mark.parametrize("form", FORMS)
def test_a_replica_without_samples_still_mixes(channel: Channel, form: str) -> None:
    problem = Problem(source=clusters(channel.size * 2 - 1), batch=channel.size, deal="fixed")
    trained = train(problem, channel, build(channel, "complete", form), 6)
    assert_same_bits(trained.part, oracle(problem, channel.size, "complete", form, 1, 6)[channel.rank])
    last = channel.rank == channel.size - 1 and channel.size > 1
    assert trained.part.counters[0] == (3 if last else 6)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_clipped(channel: Channel, form: str) -> None:
    problem = replace(SHARDS, clip=0.2)
    trained = train(problem, channel, build(channel, "ring", form), STEPS)
    assert_same_bits(trained.part, oracle(problem, channel.size, "ring", form, 1, STEPS)[channel.rank])


# Synchronous SGD, and what differs from it


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_adapt_then_combine_on_a_complete_graph_is_the_mean_gradient(channel: Channel, momentum: float) -> None:
    problem = replace(EVEN, optimizer=SGD(rate=0.1, momentum=momentum))
    trained = train(problem, channel, build(channel, "complete"), STEPS)
    np.testing.assert_allclose(trained.part.weights, synchronous(problem, channel.size, STEPS).weights, **ROUNDED)
    rows = everywhere(channel, trained.part.weights)
    assert all(row.tobytes() == rows[0].tobytes() for row in rows)


@pytest.mark.parametrize(
    ("graph", "form", "optimizer"),
    [
        ("complete", "combine_then_adapt", SGD(rate=0.1)),
        ("complete", "adapt_then_combine", Adam(rate=1e-2)),
        ("ring", "adapt_then_combine", SGD(rate=0.1)),
    ],
    ids=["combine first", "adam", "ring"],
)
def test_anything_else_is_not(channel: Channel, graph: str, form: str, optimizer: Optimizer) -> None:
    problem = replace(EVEN, optimizer=optimizer)
    trained = train(problem, channel, build(channel, graph, form), STEPS)
    apart = np.abs(trained.part.weights - synchronous(problem, channel.size, STEPS).weights).max()
    # a ring of up to three replicas is complete
    differs = channel.size > (3 if graph == "ring" else 1)
    assert (apart > 1e-5) == differs


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decay_all", [False, True])
def test_where_the_gradient_and_the_weight_decay_are_taken(channel: Channel, form: str, decay_all: bool) -> None:
    decay = 0.3
    problem = replace(SHARDS, optimizer=SGD(rate=0.1, momentum=0.0, weight_decay=decay, decay_all=decay_all))
    rows = np.random.default_rng(1).normal(size=(channel.size, problem.part().weights.size))
    gradients, decayed = [], np.zeros_like(rows[0])
    for r, row in enumerate(rows):
        one, batch = problem.part(), problem.batches(channel.size, r).batch(0)
        one.weights[:] = row
        write_gradient(problem, one, batch)
        gradients.append(one.grads / batch.count)
    for entry in one.layout:
        decayed[entry.slice] = decay * (decay_all or entry.path[-1] == "weight")
    matrix, eta = mixing("ring", channel.size), problem.rate(0)
    mean = matrix @ rows
    if form == "adapt_then_combine":
        wanted = matrix @ (rows - eta * (gradients + decayed * rows))
    else:
        wanted = mean - eta * (gradients + decayed * mean)

    def start(step: int, replica: int, part: Part) -> None:
        part.weights[:] = rows[channel.rank]

    trained = train(problem, channel, build(channel, "ring", form), 1, start)
    own = np.concatenate([trained.part.weights[entry.slice] for entry in trained.part.layout])
    np.testing.assert_allclose(
        own, np.concatenate([wanted[channel.rank][entry.slice] for entry in one.layout]), **ROUNDED
    )


# What a mix does


def mix(channel: Channel, graph: str, vector: Array, times: int = 1) -> Array:
    """The vector of this replica after a number of mixes; vector: (weights of `SHARDS`,)."""
    part, consensus = SHARDS.part(), build(channel, graph)
    part.weights[:] = vector
    consensus.prepare({part.name: part})
    for _ in range(times):
        consensus.gradients(part, SHARDS.batches(1, 0).batch(0))
        consensus.adapted(part)
    return part.weights.copy()


@pytest.mark.parametrize("graph", GRAPHS)
def test_mixing_preserves_the_mean(channel: Channel, graph: str) -> None:
    size = SHARDS.part().weights.size
    before = np.random.default_rng(channel.rank).normal(size=size)
    after = mix(channel, graph, before, 5)
    old, new = everywhere(channel, before), everywhere(channel, after)
    slack = 8 * np.finfo(float).eps * np.abs(old).max(axis=0)
    assert (np.abs(new.mean(axis=0) - old.mean(axis=0)) <= slack).all()
    assert (np.abs(after - before).max() > 1e-2) == (channel.size > 1)


@pytest.mark.parametrize("graph", GRAPHS)
def test_disagreement_contracts_by_the_second_singular_value(channel: Channel, graph: str) -> None:
    matrix = mixing(graph, channel.size)
    left, sigma, _ = np.linalg.svd(matrix)
    size = SHARDS.part().weights.size
    old = everywhere(channel, np.random.default_rng(channel.rank).normal(size=size))
    new = everywhere(channel, mix(channel, graph, old[channel.rank]))
    second = sigma[1] if channel.size > 1 else 0.0
    apart, left_apart = (np.linalg.norm(rows - rows.mean(axis=0)) for rows in (old, new))
    assert left_apart <= second * apart + 1e-13 * np.linalg.norm(old)
    if channel.size > 1:
        # along its singular vector exactly so
        slowest = np.full(size, left[channel.rank, 1])
        mixed = everywhere(channel, mix(channel, graph, slowest, 3))
        assert np.linalg.norm(mixed) == pytest.approx(second**3 * np.sqrt(size), rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("name", ["adapt_then_combine", "combine_then_adapt"])
def test_replicas_that_differ_are_merged_equally(channel: Channel, name: str) -> None:
    consensus = build(channel, "ring", name)
    np.testing.assert_array_equal(consensus.merge, np.full(channel.size, 1 / channel.size))
    assert consensus.agreed == (channel.size == 1)
    assert not consensus.masks
    assert consensus.memory == {}


@dataclass(frozen=True, kw_only=True)
class Diminishing(Problem):
    """A rate that falls as 1 / t^0.75: its sum is infinite, that of its squares is not; ``power`` 0 keeps it."""

    power: float = 0.75

    def rate(self, step: int) -> float:
        return self.optimizer.rate / (1 + step / 8) ** self.power


@pytest.mark.parametrize("form", FORMS)
def test_diminishing_steps_find_a_stationary_point_of_the_mean_loss(channel: Channel, form: str) -> None:
    # every replica has other classes than the others, so that each alone would go elsewhere
    falling = Diminishing(
        source=clusters(48),
        model=MLP(widths=()),
        deal="skewed",
        batch=48,
        optimizer=SGD(rate=0.5, momentum=0.0, weight_decay=0.2),
    )
    soon, late, kept = (
        everywhere(channel, train(problem, channel, build(channel, "ring", form), steps).part.weights)
        for problem, steps in ((falling, 100), (falling, 400), (replace(falling, power=0.0), 400))
    )
    start, *sizes = (slope(falling, rows.mean(axis=0)) for rows in (falling.part().weights[None], soon, late, kept))
    assert sizes[1] < 0.5 * sizes[0]
    assert sizes[1] < 0.02 * start
    if channel.size > (3 if form == "adapt_then_combine" else 1):
        # steps that stay large keep the replicas apart, and their mean off the point; up to three are a complete graph
        spreads = [np.abs(rows - rows.mean(axis=0)).max() for rows in (soon, late, kept)]
        assert spreads[1] < 0.5 * spreads[0]
        assert spreads[2] > 10 * spreads[1]
        assert sizes[2] > 5 * sizes[1]


def slope(problem: Problem, weights: Array) -> float:
    """The norm of the gradient, with weight decay, of the mean loss of all samples."""
    part = problem.part()
    part.weights[:] = weights
    whole = replace(problem, deal="redealt").batches(1, 0).batch(0)
    write_gradient(problem, part, whole)
    decayed = np.zeros_like(weights)
    for first, last, decay, _ in problem.optimizer.segments(part.layout).pieces():
        decayed[first:last] = decay * weights[first:last]
    return float(np.linalg.norm(part.grads / whole.count + decayed))


# The loop


@pytest.mark.parametrize("form", FORMS)
def test_a_loss_that_is_not_finite_stops_the_run(
    world: World, mpi_tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step: Callable[..., Any] = Serial.step

    def poisoned(self: Serial, batch: Batch, update: Any) -> Any:
        if world.rank == 0 and batch.index == 5:
            (part,) = self.parts.values()
            part.weight_views["output"]["weight"][...] = np.nan
        return step(self, batch, update)

    monkeypatch.setattr(Serial, "step", poisoned)
    settings = (f"run.directory={mpi_tmp_path / 'run'}", "consensus.name=gossip", f"consensus.form={form}", *SMALL)
    with pytest.raises(DivergedError, match="step 6, rank 0: the loss is not finite"):
        run(world, Request(overrides=settings))
    world.control.barrier()
    assert newest(mpi_tmp_path / "run", lambda line: None) is None


def test_a_stopped_run_leaves_nothing_under_way(
    world: World, mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Channel, int]] = []
    close = Gossip.close

    def noted(self: Gossip) -> None:
        channel = self._channel
        made.append((channel, len(channel.under_way) if channel.size > 1 else 0))
        close(self)

    monkeypatch.setattr(Gossip, "close", noted)
    form = "consensus.form=combine_then_adapt"
    settings = (
        f"run.directory={mpi_tmp_path / 'run'}",
        "consensus.name=gossip",
        form,
        "model.widths=[300]",
        *SMALL[1:],
    )
    assert run(world, Request(overrides=settings, stop_after=7)) == 75
    channel, under_way = made[-1]
    if world.size > 1:
        assert under_way > 0  # long messages for a step that did not come
        assert not channel.under_way
    world.control.barrier()


def test_the_saved_model_is_the_mean_of_the_replicas(world: World, mpi_tmp_path: Path) -> None:
    form = "consensus.form=combine_then_adapt"  # the other one ends with equal replicas if all are neighbours
    settings = (f"run.directory={mpi_tmp_path / 'run'}", "consensus.name=gossip", form, "run.dtype=float64", *SMALL)
    assert run(world, Request(overrides=settings)) == 0
    world.control.barrier()
    found = datasets(mpi_tmp_path / "run" / "checkpoint-00000018.h5")
    name = "model/network/hidden1/weight"
    if world.size > 1:
        rows = np.array([found[f"replica/{r}/{name}"] for r in range(world.size)])
        np.testing.assert_allclose(found[name], rows.mean(axis=0), rtol=1e-14, atol=1e-16)
        assert np.ptp(rows, axis=0).max() > 1e-6
    world.control.barrier()


def test_one_replica_is_serial_bit_for_bit(world: World) -> None:
    alone = world.channel("alone", color=world.rank)
    for form in FORMS:
        for graph in GRAPHS:
            trained = train(NORMED, alone, build(alone, graph, form), STEPS)
            assert_same_bits(trained.part, serial(NORMED, STEPS))
    assert alone.meter.counts == {}
