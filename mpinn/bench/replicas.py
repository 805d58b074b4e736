"""Throughput of replicas with every consensus, beside one rank alone and PyTorch's DistributedDataParallel over gloo.

Each rank has a replica and a batch of its own. All take turns in one run, as in `mpinn.bench.depth`; wall time is that
of the slowest rank. What messages cost is seen beside ``none``: the same ranks computing at once without any.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpinn.bench.peer import connect_gloo
from mpinn.bench.timing import Spread, ratio_text, seconds_text
from mpinn.bench.turns import Contestant, in_turns
from mpinn.bench.work import CLASSES, NETWORKS, Work, torch_stage, torch_training, whole_model
from mpinn.comm.channel import Channel
from mpinn.comm.grid import World
from mpinn.config import Period
from mpinn.consensus.averaging import AveragingOptions
from mpinn.consensus.consensus import Consensus
from mpinn.consensus.gossip import GossipOptions
from mpinn.consensus.gradients import GradientsOptions
from mpinn.consensus.independent import IndependentOptions
from mpinn.consensus.outer import OuterOptions
from mpinn.models.mlp import MLP
from mpinn.partition.cuts import whole

ROUNDS, SAMPLE = 9, 0.6
"""Rounds, and about how many seconds a turn of one rank alone lasts."""
PERIOD = Period("10 steps")
ALONE, SILENT, PEER = "one rank", "none", "PyTorch DDP"
WORKS = (Work("MLP 784-512-512-10", MLP(widths=(512, 512)).build((784,), CLASSES), 128), *NETWORKS)
CONSENSUSES: dict[str, Callable[[Channel], Consensus]] = {
    SILENT: lambda channel: IndependentOptions().build(channel, 1),
    "gradients": lambda channel: GradientsOptions().build(channel, 1),
    "gradients, one bucket": lambda channel: GradientsOptions(bucket=1024).build(channel, 1),
    "gossip": lambda channel: GossipOptions().build(channel, 1),
    f"averaging, every {PERIOD}": lambda channel: AveragingOptions(score="uniform", period=PERIOD).build(channel, 1),
    f"outer, every {PERIOD}": lambda channel: OuterOptions(period=PERIOD).build(channel, 1),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One program at one work.

    Seconds of a step, and samples of all ranks in it; how many times as many samples a second as one rank alone, as
    PyTorch's replicas, and as replicas without messages, round by round.
    """

    work: str
    program: str
    samples: int
    seconds: Spread
    ratio: Spread
    peer: Spread | None
    silent: Spread

    @property
    def rate(self) -> float:
        """Samples in a second."""
        return self.samples / self.seconds.median


def run(world: World, works: tuple[Work, ...] = WORKS, rounds: int = ROUNDS, sample: float = SAMPLE) -> list[Row]:
    """Measure on all ranks; called by all, and the same rows come back on all. One rank has no rows."""
    if world.size == 1:
        return []
    with connect_gloo(world) as gloo:
        return [row for work in works for row in _measured(work, world, gloo, rounds, sample)]


def print_rows(rows: list[Row]) -> None:
    """Print a table; called on rank 0 only."""
    if not rows:
        print("one rank: there are no replicas to agree (start with mpirun -n 2 or more)")
        return
    head = f"{'wall time, median (25-75 %)':28}  {'a step':>26}  {'samples/s':>9}  {'times one rank':>18}"
    print(f"{head}  {f'times {PEER}':>18}  {'times no messages':>18}")
    work = ""
    for row in rows:
        if row.work != work:
            work = row.work
            print(work)
        peer = "" if row.peer is None else ratio_text(row.peer)
        print(
            f"  {row.program:26}  {seconds_text(row.seconds):>26}  {row.rate:9,.0f}  {ratio_text(row.ratio):>18}  "
            f"{peer:>18}  {ratio_text(row.silent):>18}"
        )


def _measured(work: Work, world: World, gloo: Any, rounds: int, sample: float) -> list[Row]:
    contestants = {ALONE: Contestant() if world.rank else whole_model(work)}
    for name, build in CONSENSUSES.items():
        contestants[name] = whole_model(work, build(world.channel(name)))
    if gloo is not None:
        contestants["PyTorch, one rank"] = Contestant() if world.rank else _torch(work, False)
        contestants[PEER] = _torch(work, True)
    names = list(contestants)
    walls = in_turns(world, list(contestants.values()), rounds, sample)[:, :, :, 0].max(axis=2)
    for contestant in contestants.values():
        contestant.end()
    samples = np.array([work.batch * (1 if name.endswith(ALONE) else world.size) for name in names])
    rates = samples / walls
    title = f"{work.name}, batch {work.batch} on each of {world.size} ranks"
    return [
        Row(
            title,
            name,
            int(samples[number]),
            Spread.of(walls[:, number]),
            Spread.of(rates[:, number] / rates[:, 0]),
            Spread.of(rates[:, number] / rates[:, names.index(PEER)]) if PEER in names else None,
            Spread.of(rates[:, number] / rates[:, names.index(SILENT)]),
        )
        for number, name in enumerate(names)
    ]


def _torch(work: Work, replicated: bool) -> Contestant:
    module, optimizer = torch_stage(work, whole(work.model), 0)
    if replicated:
        from torch.nn.parallel import DistributedDataParallel

        module = DistributedDataParallel(module)
    return torch_training(module, optimizer, work)
