"""The composition root: from a configuration to the objects that train it. The only file that knows them all."""

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from mpinn.agreement import Agreement
from mpinn.array.device import choose_kernels
from mpinn.array.typing import Shape
from mpinn.checks import Start, everywhere, prepare
from mpinn.choices import build_model, outputs_of
from mpinn.comm.channel import Channel
from mpinn.comm.grid import Grid, World
from mpinn.comm.transport import choose_transport
from mpinn.config import Config
from mpinn.datasets.batches import Batches
from mpinn.datasets.source import open_source
from mpinn.errors import InputError
from mpinn.keeper import Resumed, RunKeeper, grid_vectors, model_vectors, resume
from mpinn.measure import ReplicaMeasure, RunMeasure
from mpinn.models.model import Model
from mpinn.nn.part import build_part
from mpinn.schedules.schedule import Schedule
from mpinn.signals import Signals
from mpinn.storage.directory import RunDirectory
from mpinn.tally import Stopwatch, Tally
from mpinn.trainer import Plan, Trainer
from mpinn.update import OptimizerUpdate
from mpinn.warm import warm


@dataclass(eq=False)
class Experiment:
    """A run, ready to train: built on every rank from the same configuration."""

    config: Config
    grid: Grid
    trainer: Trainer
    keeper: RunKeeper
    measure: RunMeasure
    transport: str
    kernels: str
    notes: tuple[str, ...]

    @property
    def channels(self) -> list[Channel]:
        """The channels that training uses."""
        return [self.grid.replicas, self.grid.stages, self.grid.shards]


def build(world: World, start: Start, signals: Signals, stop_after: int = 0) -> Experiment:
    """Build a run, and restore it if there is something to go on from; called by all ranks.

    The run directory is first written when all that can raise InputError is done.
    """
    config, run = start.config, start.config.run
    transport, reason = choose_transport(run.transport, world.library)
    wanted = config.grid
    grid = Grid(world, wanted.replicas, wanted.stages, wanted.shards, transport, ordered=run.deterministic)
    ops, kernels = choose_kernels(run.kernels)
    loaded = everywhere(world, lambda: _load(world, config, grid, ops))
    schedule, batches = loaded.schedule, loaded.batches
    (part,) = schedule.parts.values()
    warm(world, config, part, loaded.model.shape, loaded.target_shape)
    consensus = config.consensus.build(grid.replicas, batches.steps_per_epoch)
    consensus.prepare(schedule.parts)
    tally = Tally()
    model_kinds, grid_kinds = model_vectors(schedule.parts), grid_vectors(consensus, tally)
    begin = Resumed()
    if (path := start.checkpoint) is not None:
        begin = everywhere(world, lambda: resume(path, model_kinds, grid_kinds, grid.shape, grid.replica))
    plan = plan_of(config, batches.steps_per_epoch, begin.step, stop_after)
    moved = world.verdict(lambda: prepare(start)).decode()
    keeper = RunKeeper(
        RunDirectory(run.directory), config, grid.shape, batches.steps_per_epoch, grid.control,
        [*model_kinds, *grid_kinds], start.data,
    )  # fmt: skip
    keeper.rewind(begin.step)
    rate = config.optimizer.course(batches.steps_per_epoch, plan.total)
    measure = RunMeasure(schedule, config.loss, batches, grid.control, consensus)
    trainer = Trainer(
        plan=plan,
        control=grid.control,
        schedule=schedule,
        consensus=consensus,
        update=OptimizerUpdate(consensus, config.optimizer, rate, config.train.clip, schedule.parts),
        rate=rate,
        batches=batches,
        measure=measure,
        replica_measure=lambda after: ReplicaMeasure(schedule, config.loss, batches, after, run.seed, grid.replica),
        agreement=Agreement(world.channel("agreement"), begin.step),
        signals=signals,
        tally=tally,
        stopwatch=Stopwatch([grid.replicas], grid.control),
        keeper=keeper,
        classes=loaded.classes,
        samples=begin.samples,
        seconds=begin.seconds,
        quality=begin.quality,
    )
    notes = (*begin.notes, *_past(stop_after, plan), *([moved] if moved else []))
    return Experiment(config, grid, trainer, keeper, measure, f"{transport.name}: {reason}", kernels, notes)


@dataclass(frozen=True)
class _Loaded:
    schedule: Schedule
    batches: Batches
    model: Model
    classes: int
    target_shape: Shape


def _load(world: World, config: Config, grid: Grid, ops: ModuleType) -> _Loaded:
    """The data and the model, without any message."""
    source = open_source(config.data)
    deal = config.consensus.deal if config.data.deal == "auto" else config.data.deal
    replicas, dtype = grid.replicas.size, np.dtype(config.run.dtype)
    spare = world.cores > world.local_size
    batches = Batches(source, config.run.seed, config.data.batch, replicas, grid.replica, deal, dtype, ahead=spare)
    summary = source.summary()
    model = build_model(config, source.sample_shape, outputs_of(summary))
    part = build_part("network", model.network, model.shape, dtype, config.optimizer.slots, ops=ops)
    part.initialize(config.run.seed)
    schedule = config.schedule.build(part, config.loss, config.run.seed)
    return _Loaded(schedule, batches, model, source.classes, tuple(summary["target_shape"]))


def plan_of(config: Config, steps_per_epoch: int, start: int, stop_after: int) -> Plan:
    """The configured lengths and cadences in steps, for a run that goes on from ``start``; raises InputError."""
    every, total = config.checkpoint.every, config.train.epochs * steps_per_epoch
    if start > total:
        done = f"the run has been trained for {start / steps_per_epoch:g} epochs"
        raise InputError("train.epochs", f"{done}, it cannot be cut to {config.train.epochs}; --fresh starts anew")
    minutes = every.unit == "minute"
    return Plan(
        start=start,
        total=total,
        log=config.train.log.steps(steps_per_epoch),
        evaluate=config.train.evaluate.steps(steps_per_epoch),
        save=0 if minutes else every.steps(steps_per_epoch),
        save_seconds=float(every.number) * 60 if minutes else 0.0,
        stop_after=stop_after,
    )


def _past(stop_after: int, plan: Plan) -> list[str]:
    if not 0 < stop_after <= plan.start:
        return []
    return [f"--stop-after {stop_after} lies behind: the run is at step {plan.start} and goes on to its end"]
