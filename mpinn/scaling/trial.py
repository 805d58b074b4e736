"""Steps of configured runs on the ranks of a job: what they take, send and hold. ``python -m mpinn.scaling.trial``.

Started by `mpinn.scaling.check` with a file of trials; rank 0 writes what was measured to another one.
"""

import gc
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from mpinn.array.pool import Pool
from mpinn.array.typing import Array
from mpinn.bench.messages import measure, ping_pong, summing
from mpinn.comm.grid import World, connect
from mpinn.partition.costs import Link
from mpinn.partition.split import BANDWIDTH, LATENCY
from mpinn.run.checks import Request, Start, check
from mpinn.run.experiment import Experiment, build
from mpinn.scaling.cluster import Cluster
from mpinn.scaling.collectives import all_reduce
from mpinn.signals import Signals
from mpinn.storage.directory import write_text

LARGE = 2**20
"""Bytes of the message and of the sum from which bandwidths are taken."""
WARM = 2
"""Rounds that are not timed."""


@dataclass(frozen=True)
class Trial:
    """The configuration of a run, how many steps it does, and how many of them are a round."""

    config: Mapping[str, Any]
    """As `mpinn.config.Config.tables` gives it."""
    steps: int
    period: int


@dataclass(frozen=True)
class Found:
    """Of a trial: seconds of a step, the median over its rounds, of the slowest rank; and of every rank what it has
    sent altogether, (channel, operation, calls, bytes), and the bytes of the arrays that it holds.

    ``others``: the share of all cores that other programs had meanwhile, 0 where the system does not say.
    """

    seconds: float
    others: float
    sent: list[list[tuple[str, str, int, int]]]
    memory: list[int]


def run(world: World, trials: Sequence[Trial]) -> list[Found]:
    """Do all of them; called by all ranks, and the same comes back on all."""
    return [_run(world, trial) for trial in trials]


def _run(world: World, trial: Trial) -> Found:
    start = Start.decode(world.verdict(lambda: check(Request(trial.config), world.size).encode()))
    try:
        experiment = build(world, start, Signals())
        begun, before, own = perf_counter(), busy_seconds(), process_time()
        seconds = np.array([timed(experiment, trial.steps, trial.period)])
        used = np.array([process_time() - own])
        world.control.all_max(seconds).wait()
        world.control.all_sum(used).wait()
        others = (busy_seconds() - before - used[0]) / (perf_counter() - begun) / (os.cpu_count() or 1)
        told = [json.loads(text) for text in world.gather_text(json.dumps([sent(experiment), memory(experiment)]))]
    finally:
        start.lock.release()
    return Found(
        float(seconds[0]), min(1.0, max(0.0, float(others))), [one for one, _ in told], [size for _, size in told]
    )


def busy_seconds() -> float:
    """Seconds that the cores of this machine have worked since it was started, for whom ever; 0 if it does not say."""
    try:
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def timed(experiment: Experiment, steps: int, period: int) -> float:
    """Train for so many steps as the trainer does, without log and evaluation; seconds of a step, by rounds."""
    trainer, ended = experiment.trainer, [perf_counter()]
    for step in range(1, steps + 1):
        last = step == steps
        trainer.schedule.step(trainer.batches.batch(step - 1), trainer.update)
        if last or trainer.consensus.drains(step, last):
            trainer.schedule.drain(trainer.update)
        trainer.consensus.weights(trainer.schedule.parts, step, trainer.replica_measure(step), last)
        ended.append(perf_counter())
    trainer.consensus.close()
    # the last round ends the run, and may drain what is in flight
    rounds = np.diff(ended[: steps - period + 1 : period])[WARM:] / period
    return float(np.median(rounds))


def sent(experiment: Experiment) -> list[tuple[str, str, int, int]]:
    """(channel, operation, calls, bytes) of all that this rank has sent; a receive answers a send."""
    channels = {"stages": experiment.grid.stages, "replicas": experiment.grid.replicas}
    return [
        (name, operation, calls, size)
        for name, channel in channels.items()
        for operation, (calls, size) in sorted(channel.meter.counts.items())
        if operation != "receive"
    ]


OTHERS = (type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)
"""What leads everywhere."""


def memory(experiment: Experiment) -> int:
    """Bytes of the arrays of the schedule and the consensus: vectors, buffers of passes, and of messages."""
    trainer = experiment.trainer
    owners = {id(array): array for array in _arrays([trainer.schedule, trainer.consensus], experiment)}
    return sum(array.nbytes for array in owners.values())


def _arrays(roots: Sequence[object], experiment: Experiment) -> Iterator[Array]:
    """All that can be reached, each as the array that owns the memory."""
    library = experiment.device.kernels.LIBRARY.ndarray
    seen, waiting = {id(channel) for channel in experiment.channels}, list(roots)
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, OTHERS):
            continue
        seen.add(id(found))
        if isinstance(found, library):
            while isinstance(found.base, library):
                found = found.base
            yield found
        elif isinstance(found, Pool):
            yield from found
        else:
            waiting += gc.get_referents(found)


def network(world: World) -> Cluster:
    """This machine as the ranks of the job find it: messages between the first two, and sums over all of them."""
    link, reduction = Link(BANDWIDTH, LATENCY), float("inf")
    if world.size > 1:
        channel = world.channel("network")
        few, many = np.zeros(8, np.uint8), np.zeros(LARGE // 4, np.float32)
        work = [ping_pong(channel, few), ping_pong(channel, many), summing(channel, np.zeros(LARGE // 4, np.float32))]
        short, long, total = np.median(measure(channel, work), axis=0).tolist()
        link = Link(LARGE / max(long / 2 - short / 2, 1e-9), short / 2)
        rest = total - all_reduce(link, world.size, LARGE, reduction)
        if rest > 0:
            reduction = (world.size - 1) / world.size * LARGE / rest
    told = f"measured: {world.size} rank{'s' if world.size > 1 else ''} on {world.host}, {world.library}"
    return Cluster("local", told, max(world.size, world.cores), world.cores, link, link, reduction)


def main(arguments: Sequence[str]) -> None:
    """Read trials from a file, and write what was found to another one."""
    from mpinn.comm.abort import install_abort_hook

    install_abort_hook()
    world = connect()
    trials = [Trial(**trial) for trial in json.loads(Path(arguments[0]).read_text(encoding="utf-8"))]
    cluster, found = network(world), run(world, trials)
    if world.rank == 0:
        told: Mapping[str, Any] = {"cluster": asdict(cluster), "found": [asdict(one) for one in found]}
        write_text(Path(arguments[1]), json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1:])
