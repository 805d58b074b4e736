"""Throughput of the schedules that cut the depth into stages, one on each rank, beside one rank alone and PyTorch's.

All take turns in one run: a ratio is that of two turns of the same round. Pipelines stay filled from turn to turn, and
the first step of a turn is not counted, so that a step is one among many. Wall time is that of the slowest rank;
processor time is that of each rank without waiting for messages, so it tells how even the stages are, and what the
speed-up could be at most, on a machine that others use too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpinn.array.device import choose_kernels
from mpinn.bench.peer import bordered, connect_gloo, images, import_torch
from mpinn.bench.replay import Journal
from mpinn.bench.timing import Spread, ratio_text, seconds_text
from mpinn.bench.turns import Contestant, in_turns
from mpinn.bench.work import (
    CLASSES,
    DTYPE,
    LAYOUT,
    NETWORKS,
    OPTIMIZER,
    Work,
    part_of,
    stepping,
    torch_stage,
    torch_training,
    whole_model,
)
from mpinn.comm.grid import World
from mpinn.partition.costs import SCHEDULES as FORECAST
from mpinn.partition.costs import Link, forecast, stages_of
from mpinn.partition.cuts import Cuts, whole
from mpinn.partition.demands import demands
from mpinn.partition.profile import measure
from mpinn.partition.split import BANDWIDTH, LATENCY, partition
from mpinn.schedules.registry import SCHEDULES
from mpinn.schedules.stage import Place
from mpinn.trace import SILENT

ROUNDS, SAMPLE = 7, 0.6
"""Rounds, and about how many seconds a turn of one rank alone lasts."""
MICRO_BATCHES = 4
PEERS = {"PyTorch, gpipe": "ScheduleGPipe", "PyTorch, 1f1b": "Schedule1F1B"}
PEER = "PyTorch, 1f1b"


@dataclass(frozen=True)
class Planned:
    """Where the depth is cut for a schedule, and how many times as fast as one rank it should be."""

    bounds: tuple[int, ...]
    speedup: float


@dataclass(frozen=True, slots=True)
class Row:
    """One program at one work.

    Seconds of a step; those of one rank alone over them, and those of PyTorch's 1F1B, round by round; the processor
    time of a step on each rank without waiting; and what the plan says of the ratio.
    """

    work: str
    program: str
    batch: int
    seconds: Spread
    ratio: Spread
    peer: Spread | None
    processor: tuple[float, ...]
    planned: float | None
    starts: str

    @property
    def samples(self) -> float:
        """Samples in a second."""
        return self.batch / self.seconds.median


def run(world: World, works: tuple[Work, ...] = NETWORKS, rounds: int = ROUNDS, sample: float = SAMPLE) -> list[Row]:
    """Measure on all ranks; called by all, and the same rows come back on all. One rank has no rows."""
    if world.size == 1:
        return []
    with connect_gloo(world) as gloo:
        return [row for work in works for row in _measured(work, world, gloo, rounds, sample)]


def print_rows(rows: list[Row]) -> None:
    """Print a table; called on rank 0 only."""
    if not rows:
        print("one rank: there is no depth to share (start with mpirun -n 2 or more)")
        return
    head = f"{'wall time, median (25-75 %)':28}  {'a step':>26}  {'samples/s':>9}  {'times one rank':>18}"
    print(f"{head}  {'times PyTorch 1f1b':>18}  {'at most':>7}  {'plan':>4}  processor time")
    work, alone = "", 0.0
    for row in rows:
        if row.work != work:
            work, alone = row.work, max(row.processor)
            print(work)
        peer = "" if row.peer is None else ratio_text(row.peer)
        planned = "" if row.planned is None else f"{row.planned:.2f}"
        times = " + ".join(f"{1e3 * seconds:.3g}" for seconds in row.processor if seconds)
        starts = f", from {row.starts}" if row.starts else ""
        print(
            f"  {row.program:26}  {seconds_text(row.seconds):>26}  {row.samples:9.1f}  {ratio_text(row.ratio):>18}  "
            f"{peer:>18}  {alone / max(row.processor):7.2f}  {planned:>4}  {times} ms{starts}"
        )


def _measured(work: Work, world: World, gloo: Any, rounds: int, sample: float) -> list[Row]:
    plans = _planned(work, world)
    contestants = {"one rank": Contestant() if world.rank else whole_model(work)}
    for schedule, plan in plans.items():
        contestants[schedule] = _scheduled(schedule, plan, work, world)
    if gloo is not None:
        contestants |= _peers(work, world, Cuts(plans["gpipe"].bounds))
    names = list(contestants)
    samples = in_turns(world, list(contestants.values()), rounds, sample)
    for contestant in contestants.values():
        contestant.end()
    walls = samples[:, :, :, 0].max(axis=2)
    title = f"{work.name}, batch {work.batch}, {world.size} stages, {MICRO_BATCHES} micro-batches"
    return [
        Row(
            title,
            name,
            work.batch,
            Spread.of(walls[:, number]),
            Spread.of(walls[:, 0] / walls[:, number]),
            Spread.of(walls[:, names.index(PEER)] / walls[:, number]) if PEER in names else None,
            tuple(np.median(samples[:, number, :, 1], axis=0).tolist()),
            plans[name].speedup if name in plans else None,
            Cuts(plans[name].bounds[1:]).starts(work.model) if name in plans else "",
        )
        for number, name in enumerate(names)
    ]


def _planned(work: Work, world: World) -> dict[str, Planned]:
    """The measured partition for each schedule; rank 0 measures, the others sleep."""

    def plan() -> bytes:
        costs, plans = measure(work.model, work.batch, DTYPE, choose_kernels("auto")[0]), {}
        link = Link(BANDWIDTH, LATENCY)
        for schedule in FORECAST:
            if schedule == "serial":
                continue
            rule = demands(schedule, SCHEDULES[schedule](), MICRO_BATCHES)
            cut = partition(costs, world.size, slots=len(OPTIMIZER.slots), in_flight=rule)
            stages = stages_of(costs, cut)
            one, many = (
                forecast(name, SCHEDULES[name](), stages, link, MICRO_BATCHES).seconds for name in ("serial", schedule)
            )
            plans[schedule] = (cut.bounds, one / many)
        return json.dumps(plans).encode()

    told = json.loads(world.verdict(plan))
    return {schedule: Planned(tuple(bounds), speedup) for schedule, (bounds, speedup) in told.items()}


def _scheduled(schedule: str, plan: Planned, work: Work, world: World) -> Contestant:
    cuts, rank = Cuts(plan.bounds), world.rank
    channel = Journal(world.channel(schedule))
    edges = (cuts.shape(work.model, rank), cuts.shape(work.model, rank + 1))
    place = Place(channel, world.channel("aside"), *edges, SILENT, (CLASSES,))
    return replace(stepping(schedule, part_of(work, cuts, rank), place, work), waited=lambda: channel.seconds)


def _peers(work: Work, world: World, cuts: Cuts) -> Mapping[str, Contestant]:
    """PyTorch on one rank, and its pipelines, cut where ours are."""
    found = {"PyTorch, one rank": Contestant()}
    if world.rank == 0:
        found["PyTorch, one rank"] = torch_training(*torch_stage(work, whole(work.model), 0), work)
    for name, kind in PEERS.items():
        found[name] = _torch_pipeline(kind, work, cuts, world)
    return found


def _torch_pipeline(kind: str, work: Work, cuts: Cuts, world: World) -> Contestant:
    from torch.distributed import pipelining

    torch, batch = import_torch(), work.data()
    first, last = world.rank == 0, world.rank == world.size - 1
    module, optimizer = torch_stage(work, cuts, world.rank)
    module = bordered(module, not first, not last, torch)
    stage = pipelining.PipelineStage(module, world.rank, world.size, torch.device("cpu"))
    schedule = getattr(pipelining, kind)(stage, MICRO_BATCHES, loss_fn=torch.nn.CrossEntropyLoss())
    inputs = [images(batch.x, LAYOUT, torch)] if first else []
    target = torch.from_numpy(batch.target) if last else None

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        schedule.step(*inputs, target=target)
        optimizer.step()

    return Contestant(step)
