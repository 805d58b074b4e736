"""Gossip of replicas whose stages are decoupled, against a simulator in one process, bit for bit."""

import numpy as np
import pytest
from consensus_oracles import mixed, mixing
from depth import Depth, Staged
from oracles import Problem, apply
from staged import grids, options_of, place_of

from mpinn.comm.channel import Channel
from mpinn.comm.grid import Grid, World
from mpinn.config import Period
from mpinn.consensus.gossip import GossipOptions
from mpinn.consensus.graphs import GRAPHS
from mpinn.models.mlp import MLP
from mpinn.training.update import OptimizerUpdate

pytestmark = pytest.mark.mpi

PROBLEM = Problem(model=MLP(widths=(9, 8, 7, 6), activation="tanh"), deal="fixed")


class Gossiping(Staged):
    """Replicas x stages, where every stage of a replica mixes with the same stage of its neighbours."""

    form: str
    period: int

    def _update(self, k: int) -> None:
        groups = self._summed.pop(k, [])
        if not groups:
            return
        index = groups[-1][0][0].index
        covered = [found[0][0].index for found in groups]
        due = len(self.replicas) > 1 and any((batch + 1) % self.period == 0 for batch in covered)
        parts = [stages.parts[k - 1] for stages in self.replicas]
        matrix, old = mixing("ring", len(parts)), [part.weights.copy() for part in parts]
        for r, part in enumerate(parts):
            part.grads[:] = sum((found[r][1] for found in groups[1:]), groups[0][r][1])
            if due and self.form == "combine_then_adapt":
                part.weights[:] = mixed(matrix, old, r)
            apply(self.problem, part, index, sum(found[r][0].count for found in groups))
            self.replicas[r].updates[k] += 1
        new = [part.weights.copy() for part in parts]
        for r, part in enumerate(parts if due and self.form == "adapt_then_combine" else ()):
            part.weights[:] = mixed(matrix, new, r)


@pytest.mark.parametrize("form", ["adapt_then_combine", "combine_then_adapt"])
@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize(
    "depth",
    [
        Depth(),
        Depth(versions="mixed", order="forward_first"),
        Depth(kind="ddg"),
        Depth(accumulate=2),
        Depth(kind="ddg", accumulate=5),
    ],
    ids=["fdg", "fdg, mixed", "ddg", "accumulate", "accumulate more"],
)
def test_every_bit_is_the_simulator_s(world: World, form: str, period: int, depth: Depth) -> None:
    for grid in grids(world):
        part, place, bounds = place_of(PROBLEM, grid)
        options, stages, replicas = options_of(depth), grid.stages.size, grid.replicas.size
        schedule = options.build(part, PROBLEM.loss, PROBLEM.seed, place)
        batches = PROBLEM.batches(replicas, grid.replica, held=options.held(stages))
        consensus = GossipOptions(form=form, period=Period(f"{period} steps")).build(grid.replicas, 1)
        consensus.prepare(schedule.parts)
        update = OptimizerUpdate(consensus, PROBLEM.optimizer, PROBLEM.rate, 0.0, schedule.parts, schedule.chained)
        oracle = Gossiping(PROBLEM, bounds, depth, replicas)
        oracle.form, oracle.period = form, period
        steps = 3 * stages + 11
        for step in range(steps):
            list(schedule.step(batches.batch(step), update))
            consensus.weights(schedule.parts, step + 1, None, last=step + 1 == steps)
            oracle.step()
        list(schedule.drain(update))
        consensus.close()
        oracle.drain()
        wanted = oracle.replicas[grid.replica].parts[grid.stage]
        assert part.weights.tobytes() == wanted.weights.tobytes()
        assert part.slots["momentum"].tobytes() == wanted.slots["momentum"].tobytes()
        assert grid.replicas.meter.counts.keys() <= {"send", "receive"}
        assert mixes(grid.replicas) == (replicas > 1) * len(mixing_updates(steps, depth.accumulate, period))


def mixes(channel: Channel) -> int:
    """How often this replica has mixed, by the vectors that it has sent to every neighbour."""
    sent, _ = channel.meter.counts.get("send", (0, 0))
    return sent // max(1, len(GRAPHS["ring"](channel.size, channel.rank)))


def mixing_updates(steps: int, accumulate: int, period: int, start: int = 0) -> set[int]:
    """The updates, by number, that have a ``period``-th batch."""
    return {(batch - start) // accumulate for batch in range(start, steps) if (batch + 1) % period == 0}


@pytest.mark.parametrize("form", ["adapt_then_combine", "combine_then_adapt"])
@pytest.mark.parametrize(
    ("start", "known", "steps", "expected"),
    [(0, np.nan, 24, 8), (5, np.nan, 11, 2), (5, 9.0, 11, 2), (8, np.nan, 10, 1)],
    ids=["from the first batch", "from a later one", "from one that had been passed", "one update"],
)
def test_an_update_of_several_batches_mixes_if_one_of_them_is_due(
    world: World, form: str, start: int, known: float, steps: int, expected: int
) -> None:
    """Two gradients for an update, every third batch due; ``known``: what was remembered of the next update."""
    grid = Grid(world, world.size, 1)
    part, place, _ = place_of(PROBLEM, grid)
    schedule = options_of(Depth(accumulate=2)).build(part, PROBLEM.loss, PROBLEM.seed, place)
    consensus = GossipOptions(form=form, period=Period("3 steps")).build(grid.replicas, 1)
    consensus.prepare(schedule.parts)
    for _, vector in consensus.memory.values():
        vector.fill(known)
    update = OptimizerUpdate(consensus, PROBLEM.optimizer, PROBLEM.rate, 0.0, schedule.parts, schedule.chained)
    batches = PROBLEM.batches(world.size, world.rank)
    for step in range(start, steps):
        list(schedule.step(batches.batch(step), update))
        consensus.weights(schedule.parts, step + 1, None, last=step + 1 == steps)
    list(schedule.drain(update))
    consensus.close()
    assert len(mixing_updates(steps, 2, 3, start)) == expected
    assert mixes(grid.replicas) == (expected if world.size > 1 else 0)
