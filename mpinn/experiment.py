"""The composition root: from a configuration to the objects that train it. The only file that knows them all."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mpinn.agreement import Agreement, Signals
from mpinn.comm.channel import Channel
from mpinn.comm.grid import Grid, World, shape_of
from mpinn.comm.transport import choose_transport
from mpinn.config import MAY_CHANGE, Config, InputError, difference, load, read_toml
from mpinn.consensus.registry import CONSENSUSES
from mpinn.datasets.batches import Batches
from mpinn.datasets.samples import Source
from mpinn.datasets.source import check_source, open_source
from mpinn.keeper import RunKeeper, grid_vectors, model_vectors, resume
from mpinn.measure import ReplicaMeasure, RunMeasure
from mpinn.models.model import Model
from mpinn.models.registry import MODELS
from mpinn.nn.loss import LOSSES
from mpinn.nn.optimizer import OPTIMIZERS
from mpinn.nn.part import build_part
from mpinn.reporter import Reporter
from mpinn.schedules.registry import SCHEDULES
from mpinn.storage.directory import RunDirectory, move_aside, write_text
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import newest
from mpinn.tally import Stopwatch, Tally
from mpinn.trainer import Plan, Trainer
from mpinn.update import OptimizerUpdate

CHOICES: Mapping[str, Mapping[str, type]] = {
    "model": MODELS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "consensus": CONSENSUSES,
}
DEFAULTS = {
    "model": "mlp",
    "loss": "cross_entropy",
    "optimizer": "sgd",
    "schedule": "serial",
    "consensus": "averaging",
}


@dataclass(frozen=True)
class Request:
    """What the user asked for: a configuration file or none, overrides, and what becomes of a run that is there."""

    file: str | None = None
    overrides: tuple[str, ...] = ()
    resume: bool = False
    fresh: bool = False
    stop_after: int = 0


@dataclass(frozen=True)
class Start:
    """What one rank has checked and all ranks begin with."""

    config: Config
    checkpoint: Path | None
    notes: tuple[str, ...]

    def encode(self) -> bytes:
        """As bytes, for the other ranks."""
        path = None if self.checkpoint is None else str(self.checkpoint)
        return json.dumps([self.config.tables(), path, self.notes]).encode()

    @classmethod
    def decode(cls, told: bytes) -> "Start":
        """The inverse of `encode`."""
        tables, path, notes = json.loads(told)
        return cls(load(tables, (), CHOICES, DEFAULTS), None if path is None else Path(path), tuple(notes))


def read_config(file: str | None, overrides: tuple[str, ...]) -> Config:
    """The configuration of a file, or the default one, with overrides; raises InputError."""
    return load({} if file is None else read_toml(file), overrides, CHOICES, DEFAULTS)


def build_model(config: Config, sample_shape: tuple[int, ...], outputs: int) -> Model:
    """The model that the configuration describes; InputError if it can't take such samples."""
    model: Model = config.model.build(sample_shape, outputs)
    try:
        model.network.output_shape(sample_shape)
    except ValueError as problem:
        raise InputError("model", str(problem)) from None
    return model


def outputs_of(summary: Mapping[str, Any]) -> int:
    """How many outputs a model needs for data with this summary."""
    return int(summary["classes"]) or prod(summary["target_shape"])


def check(request: Request, ranks: int) -> Start:
    """Everything that can be wrong with what the user gave, checked before anything is written; raises InputError.

    For one rank, which tells the others. Then the run directory is made ready: an old run is moved aside if a fresh
    start was asked for, and config.toml says what is about to run.
    """
    config = read_config(request.file, request.overrides)
    shape_of(ranks, config.grid.replicas, config.grid.stages, config.grid.shards)
    summary = check_source(config.data)
    check_together(config, summary)
    model = build_model(config, tuple(summary["sample_shape"]), outputs_of(summary))
    notes = [summary["note"]] if summary["note"] else []
    directory = RunDirectory(config.run.directory)
    if request.fresh and request.resume:
        raise InputError("--fresh", "start anew or --resume, not both")
    checkpoint = None if request.fresh else newest(directory.path, notes.append)
    if checkpoint is not None:
        notes += check_resume(checkpoint, config, model)
    elif request.resume:
        raise InputError("--resume", f"there is no checkpoint in {directory.path}")
    if request.fresh and (aside := move_aside(directory.path)):
        notes.append(f"the run that was in {directory.path} is now in {aside}")
    directory.create()
    directory.requeue.unlink(missing_ok=True)
    write_text(directory.config, config.toml())
    return Start(config, checkpoint, tuple(notes))


def check_together(config: Config, summary: Mapping[str, Any]) -> None:
    """Choices that are each right but do not fit each other."""
    if summary["classes"]:
        return
    if config.names["loss"] == "cross_entropy":
        raise InputError(
            "loss.name", "cross_entropy needs class numbers, but the targets are values: use squared_error"
        )
    score = getattr(config.consensus, "score", "")
    if score in ("accuracy", "accuracy_shard", "inverse_error", "best"):
        raise InputError("consensus.score", f"{score} needs classes, but the targets are values: use inverse_loss")


def check_resume(path: Path, config: Config, model: Model) -> list[str]:
    """What a resumed run must agree on with the one that was saved; returns what has changed, to be said."""
    with Checkpoint(path) as checkpoint:
        changes = difference(checkpoint.configuration, config.tables())
        forbidden = [f"{key} ({old} -> {new})" for key, old, new in changes if key not in MAY_CHANGE]
        if forbidden:
            hint = "go back to the old values, choose another run.directory, or start anew with --fresh"
            raise InputError(
                str(path.parent), f"this run was started with other values: {', '.join(forbidden)}; {hint}"
            )
        part = build_part("network", model.network, model.shape, np.dtype(config.run.dtype), ())
        checkpoint.check(part.layout, "model/network")
    said = [f"{key} was {old} and is {new}" for key, old, new in changes if key != "run.directory"]
    if any(key == "train.epochs" for key, _, _ in changes) and config.optimizer.decay == "cosine":
        said.append("with the length of the run the course of the cosine rate has changed")
    return said


@dataclass(eq=False)
class Experiment:
    """A run, ready to train: built on every rank from the same configuration."""

    config: Config
    grid: Grid
    trainer: Trainer
    keeper: RunKeeper
    measure: RunMeasure
    transport: str
    resumed: tuple[str, ...]

    @property
    def channels(self) -> list[Channel]:
        """The channels that training uses."""
        return [self.grid.replicas, self.grid.stages, self.grid.shards]


def build(world: World, start: Start, reporter: Reporter, signals: Signals, stop_after: int = 0) -> Experiment:
    """Build a run, and restore it if there is something to go on from; called by all ranks."""
    config = start.config
    transport, reason = choose_transport(config.run.transport, world.library)
    wanted = config.grid
    grid = Grid(world, wanted.replicas, wanted.stages, wanted.shards, transport, ordered=config.run.deterministic)
    source = open_source(config.data)
    batches = _batches(config, source, grid, ahead=world.cores > world.local_size)
    consensus = config.consensus.build(grid.replicas, batches.steps_per_epoch)
    dtype = np.dtype(config.run.dtype)
    model = build_model(config, source.sample_shape, outputs_of(source.summary()))
    part = build_part("network", model.network, model.shape, dtype, config.optimizer.slots)
    part.initialize(config.run.seed)
    schedule = config.schedule.build(part, config.loss, config.run.seed)
    tally = Tally()
    model_kinds, grid_kinds = model_vectors(schedule.parts), grid_vectors(consensus, tally)
    keeper = RunKeeper(
        RunDirectory(config.run.directory), config, grid.shape, batches.steps_per_epoch, grid.control,
        [*model_kinds, *grid_kinds],
    )  # fmt: skip
    step, samples, seconds = 0, 0, 0.0
    notes: tuple[str, ...] = ()
    if start.checkpoint is not None:
        resumed = resume(start.checkpoint, model_kinds, grid_kinds, grid.shape, grid.replica)
        step, samples, seconds, notes = resumed.step, resumed.samples, resumed.seconds, tuple(resumed.notes)
    keeper.rewind(step)
    plan = _plan(config, batches.steps_per_epoch, step, stop_after)
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
        replica_measure=lambda after: ReplicaMeasure(
            schedule, config.loss, batches, after, config.run.seed, grid.replica
        ),
        agreement=Agreement(world.channel("agreement"), step),
        signals=signals,
        tally=tally,
        stopwatch=Stopwatch([grid.replicas], grid.control),
        keeper=keeper,
        reporter=reporter,
        samples=samples,
        seconds=seconds,
    )
    return Experiment(config, grid, trainer, keeper, measure, f"{config.run.transport}: {reason}", notes)


def _batches(config: Config, source: Source, grid: Grid, ahead: bool) -> Batches:
    deal = config.consensus.deal if config.data.deal == "auto" else config.data.deal
    return Batches(
        source, config.run.seed, config.data.batch, grid.replicas.size, grid.replica, deal, config.run.dtype, ahead
    )


def _plan(config: Config, steps_per_epoch: int, start: int, stop_after: int) -> Plan:
    every = config.checkpoint.every
    minutes = every.unit == "minute"
    return Plan(
        start=start,
        total=config.train.epochs * steps_per_epoch,
        log=config.train.log.steps(steps_per_epoch),
        evaluate=config.train.evaluate.steps(steps_per_epoch),
        save=0 if minutes else every.steps(steps_per_epoch),
        save_seconds=float(every.number) * 60 if minutes else 0.0,
        stop_after=stop_after,
    )
