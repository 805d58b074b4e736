"""The split of a model into contiguous stages: the best one for given costs, or one that is asked for; and its parts.

A stage is a run of units (`mpinn.partition.profile.units`), so a cut never goes through a block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

import numpy as np

from mpinn.array.typing import Array, Shapes
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.nn.layout import Entry, Layout
from mpinn.nn.network import Network
from mpinn.nn.part import Part
from mpinn.partition.profile import Cost, units
from mpinn.words import nearest

BANDWIDTH = 2e9
LATENCY = 2e-5
"""Bytes per second and seconds of a message, where nothing better is known: about those of shared memory."""
STEP = 0.01
"""By which share of the bottleneck one trial is above the one before."""
EQUAL = 1e-9
"""Bottlenecks that differ by less than this share are equal: costs are measured, and their sums are rounded."""


@dataclass(frozen=True)
class Demand:
    """What a schedule asks of one stage.

    Each of ``passes`` in flight holds what its layers keep, with the stage's input; each of ``inputs`` the input alone;
    ``weights`` are copies of old weights; ``forwards`` are forward passes for one backward pass. Pieces of a batch are
    fractions of a pass.
    """

    passes: float = 1
    inputs: float = 0
    weights: int = 0
    forwards: int = 1


Demands: TypeAlias = Callable[[int, int], Demand]
"""What is asked of stage k (from 1) of K."""


@dataclass(frozen=True)
class Partition:
    """Stage k of K, from 1, has the layers from ``bounds[k - 1]`` up to ``bounds[k]``: K + 1 numbers from 0."""

    bounds: tuple[int, ...]

    @property
    def stages(self) -> int:
        """K."""
        return len(self.bounds) - 1

    @property
    def spans(self) -> tuple[slice, ...]:
        """The layers of each stage, as slices of the network."""
        return tuple(slice(start, stop) for start, stop in pairwise(self.bounds))

    def starts(self, network: Network) -> tuple[str, ...]:
        """The layers with which the stages from the second on begin, from which `parse` makes the same partition."""
        return tuple(network.names[bound] for bound in self.bounds[1:-1])


def partition(
    costs: Sequence[Cost],
    stages: int,
    *,
    bandwidth: float = BANDWIDTH,
    latency: float = LATENCY,
    memory: float | None = None,
    slots: int = 0,
    in_flight: Demands = lambda stage, stages: Demand(),
) -> Partition:
    """The partition with the least bottleneck; of equal ones that with the fewest bytes across its cuts.

    The bottleneck is the largest time of a stage: with the units i..j, forward f, backward b, output a, it is

        sum_{l=i..j} (forwards f_l + b_l) + (latency + a_{i-1} / bandwidth) + (latency + a_j / bandwidth)

    without the terms of a side on which there is no cut: the gradient that it sends to the stage before, and the
    activation to the one after. A stage fits into ``memory`` bytes if `stage_bytes` does. Dynamic programme over the
    number of stages and of units, exact, O(K U^2): best[d][j] = min_i max(best[d - 1][i - 1], time of i..j as stage d).

    Raises InputError if there are fewer units than stages, or if no partition fits.
    """
    _enough(costs, stages)
    demands = [in_flight(stage, stages) for stage in range(1, stages + 1)]
    held = [_held(costs, demand, slots) for demand in demands]
    times = [_times(costs, demand, bandwidth, latency) for demand in demands]
    if memory is not None:
        times = [np.where(bytes_ <= memory, time, np.inf) for bytes_, time in zip(held, times, strict=True)]
    least = bottleneck(times)
    if least == np.inf:
        raise _too_large(stages, memory, held)
    crossing = np.array([0, *(cost.output_bytes for cost in costs)], np.float64)[:, None]
    chosen, _ = _least_sum([np.where(time <= least * (1 + EQUAL), crossing, np.inf) for time in times])
    return _partition(costs, chosen)


def partition_abreast(
    costs: Sequence[Cost],
    times: Sequence[Array],
    chained: Sequence[Array],
    memory: float | None = None,
    held: Sequence[Array] = (),
) -> Partition:
    """The partition with the least max_k times_k + sum_k chained_k: stages work at once, but for what they chain.

    Each is one table (U + 1, U + 1) a stage, as are the bytes that are ``held``: its value for the units i..j-1 stands
    at [i, j]. For bottlenecks from the least one upwards, in steps of `STEP`, the least sum is exact.
    """
    _enough(costs, len(times))
    if memory is not None:
        times = [np.where(bytes_ <= memory, time, np.inf) for bytes_, time in zip(held, times, strict=True)]
    least = bottleneck(times)
    if least == np.inf:
        raise _too_large(len(times), memory, held)
    allowed = [np.where(np.isfinite(time), added, np.inf) for time, added in zip(times, chained, strict=True)]
    floor = _least_sum(allowed)[1]
    best, total, bound = [0], np.inf, least * (1 + EQUAL)
    while bound + floor < total:
        cuts, added = _least_sum(
            [np.where(time <= bound, more, np.inf) for time, more in zip(times, chained, strict=True)]
        )
        longest = max(time[i, j] for time, (i, j) in zip(times, pairwise(cuts), strict=True))
        if longest + added < total:
            best, total = cuts, longest + added
        bound *= 1 + STEP
    return _partition(costs, best)


def _enough(costs: Sequence[Cost], stages: int) -> None:
    if stages > len(costs):
        most = f"the model has {len(costs)} units between which it can be cut, so this can be at most {len(costs)}"
        raise InputError("grid.stages", f"{most}, got {stages}")


def _too_large(stages: int, memory: float | None, held: Sequence[Array]) -> InputError:
    return InputError(
        "grid.stages",
        f"no partition into {stages} stages fits into {memory or 0:,.0f} bytes a rank: its largest stage needs "
        f"{bottleneck(held):,.0f} at least",
    )


def stage_bytes(costs: Sequence[Cost], demand: Demand, slots: int) -> float:
    """Bytes that a stage of these units holds: weights, gradients, slots, old weights, and all that is in flight.

    (2 + slots + old weights) sum p_l + passes (a_{i-1} + sum m_l) + inputs a_{i-1}, with what a pass keeps, m, and the
    parameters, p. What a kernel needs only while it runs is not counted.
    """
    parameters = sum(cost.parameter_bytes for cost in costs)
    kept, received = sum(cost.kept_bytes for cost in costs), costs[0].input_bytes
    return (2 + slots + demand.weights) * parameters + demand.passes * (kept + received) + demand.inputs * received


def parse(model: Model, starts: Sequence[str | int], path: str = "schedule.partition") -> Partition:
    """The partition whose stages from the second on begin at these layers, given by name or index; else InputError."""
    names = model.network.names
    allowed = {names[unit.start]: unit.start for unit in units(model)[1:]}
    bounds = [0]
    for start in starts:
        name = names[start] if isinstance(start, int) and 0 <= start < len(names) else start
        if name not in allowed:
            among = f"stages begin at {', '.join(allowed)}" if allowed else "the model has a single unit"
            raise InputError(path, f"no stage can begin at {start!r}{nearest(name, tuple(allowed))}: {among}")
        if allowed[name] <= bounds[-1]:
            raise InputError(path, f"{name} does not come after {names[bounds[-1]]}: stages are given in order")
        bounds.append(allowed[name])
    return Partition((*bounds, len(names)))


def split(part: Part, partition: Partition) -> list[Part]:
    """A copy of the part, one part for each stage: every vector is cut where the layers are."""
    return [_stage(part, part.chain[span]) for span in partition.spans]


def merge(parts: Sequence[Part]) -> Part:
    """One part of the parts of the stages, in order; the inverse of `split`, bit for bit.

    ``counters`` is the largest: stages that are not drained have not seen equally many updates.
    """
    first = parts[0]
    layers = [layer for part in parts for layer in part.chain.layers]
    return replace(
        first,
        network=Network(layers, first.chain.start),
        layout=_layout([entry for part in parts for entry in part.layout], first.layout),
        state_layout=_layout([entry for part in parts for entry in part.state_layout], first.state_layout),
        weights=np.concatenate([part.weights for part in parts]),
        grads=np.concatenate([part.grads for part in parts]),
        state=np.concatenate([part.state for part in parts]),
        slots={name: np.concatenate([part.slots[name] for part in parts]) for name in first.slots},
        counters=np.maximum.reduce([part.counters for part in parts]),
    )


def _stage(part: Part, network: Network) -> Part:
    span, state_span = part.layout.span(network.names), part.state_layout.span(network.names)
    return replace(
        part,
        network=network,
        layout=_layout([entry for entry in part.layout if entry.path[0] in network.names], part.layout),
        state_layout=_layout(
            [entry for entry in part.state_layout if entry.path[0] in network.names], part.state_layout
        ),
        weights=part.weights[span].copy(),
        grads=part.grads[span].copy(),
        state=part.state[state_span].copy(),
        slots={name: slot[span].copy() for name, slot in part.slots.items()},
        counters=part.counters.copy(),
    )


def _layout(entries: Sequence[Entry], like: Layout) -> Layout:
    shapes: dict[str, Any] = {}
    for entry in entries:
        tree = shapes
        for name in entry.path[:-1]:
            tree = tree.setdefault(name, {})
        tree[entry.path[-1]] = entry.shape
    declared: Shapes = shapes
    return Layout(declared, like.dtype)


def sums_of(values: Sequence[float]) -> Array:
    """(U + 1, U + 1): the sum of the values i..j-1 at [i, j]; meaningless for i >= j."""
    total: Array = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return total - total[:, None]


def stages_only(table: Array) -> Array:
    """The table with what is no stage, i >= j, set to infinity."""
    stages: Array = np.where(np.triu(np.ones(table.shape, bool), 1), table, np.inf)
    return stages


def _times(costs: Sequence[Cost], demand: Demand, bandwidth: float, latency: float) -> Array:
    """(U + 1, U + 1): seconds of a stage of the units i..j-1."""
    sent = np.array([0.0, *(latency + cost.output_bytes / bandwidth for cost in costs[:-1]), 0.0])
    computed = sums_of([demand.forwards * cost.forward + cost.backward for cost in costs])
    return stages_only(computed + sent[:, None] + sent)


def _held(costs: Sequence[Cost], demand: Demand, slots: int) -> Array:
    """(U + 1, U + 1): `stage_bytes` of the units i..j-1."""
    kept = sums_of(
        [(2 + slots + demand.weights) * cost.parameter_bytes + demand.passes * cost.kept_bytes for cost in costs]
    )
    received = np.array([*(cost.input_bytes for cost in costs), 0])
    return stages_only(kept + ((demand.passes + demand.inputs) * received)[:, None])


def bottleneck(tables: Sequence[Array]) -> float:
    """The least, over all partitions, of the largest entry of its stages; tables: one (U + 1, U + 1) a stage."""
    best = np.full(len(tables[0]), np.inf)
    best[0] = -np.inf
    for table in tables:
        best = np.maximum(best[:, None], table).min(axis=0)
    return float(best[-1])


def _least_sum(tables: Sequence[Array]) -> tuple[list[int], float]:
    """The cuts (K + 1 numbers of units) with the least sum of the entries of their stages, the earliest such cuts."""
    best = np.full(len(tables[0]), np.inf)
    best[0] = 0
    before = []
    for table in tables:
        sums = best[:, None] + table
        before.append(sums.argmin(axis=0))
        best = sums.min(axis=0)
    cuts = [len(best) - 1]
    for chosen in reversed(before):
        cuts.append(int(chosen[cuts[-1]]))
    return cuts[::-1], float(best[-1])


def _partition(costs: Sequence[Cost], cuts: Sequence[int]) -> Partition:
    layers = [0, *accumulate(cost.layers for cost in costs)]
    return Partition(tuple(layers[cut] for cut in cuts))
