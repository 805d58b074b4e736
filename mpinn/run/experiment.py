"""The composition root: from a configuration to the objects that train it. The only file that knows them all."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np

from mpinn.array.device import Device, choose_device
from mpinn.array.precision import activations
from mpinn.array.typing import Shape
from mpinn.comm.channel import Channel
from mpinn.comm.choice import choose_transports
from mpinn.comm.findings import findings
from mpinn.comm.grid import Grid, World
from mpinn.config import Config
from mpinn.consensus.consensus import Consensus
from mpinn.datasets.batches import Batches
from mpinn.datasets.source import open_source
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.models.population import shard_of
from mpinn.nn.packed import population_of
from mpinn.nn.part import BEST, Part, build_part, in_memory
from mpinn.partition.cuts import Cuts, cut, size_of, trained
from mpinn.population.measure import MemberMeasure, MemberReplicaMeasure
from mpinn.population.ranking import Ranking
from mpinn.population.selection import Selection
from mpinn.population.update import MemberUpdate
from mpinn.run.binding import choose_nccl, numbers
from mpinn.run.checks import Start, prepare
from mpinn.run.fit import warm_checkpoint, warm_start
from mpinn.run.keeper import Resumed, RunKeeper, Stand, bounds_of, grid_vectors, model_vectors, resume, saved_model
from mpinn.run.survival import Survival, take_over
from mpinn.run.warm import Subject, warm
from mpinn.schedules.members import Members
from mpinn.schedules.schedule import Schedule
from mpinn.schedules.stage import Place
from mpinn.signals import Signals
from mpinn.storage.directory import RunDirectory, step_of
from mpinn.trace import Trace
from mpinn.training.agreement import Agreement
from mpinn.training.boundary import Boundaries, Standing
from mpinn.training.choices import build_model, outputs_of
from mpinn.training.measure import ReplicaMeasure, RunMeasure
from mpinn.training.tally import Stopwatch, Tally
from mpinn.training.trainer import Plan, Trainer
from mpinn.training.update import OptimizerUpdate

TRACED = 200_000
"""Events of one rank that a trace keeps."""


@dataclass(eq=False)
class Experiment:
    """A run, ready to train: built on every rank from the same configuration."""

    config: Config
    grid: Grid
    trainer: Trainer
    keeper: RunKeeper
    measure: RunMeasure
    transport: str
    device: Device
    model: Model
    cuts: Cuts
    trace: Trace
    notes: tuple[str, ...]

    @property
    def channels(self) -> list[Channel]:
        """The channels that training uses."""
        return [self.grid.replicas, self.grid.stages, self.grid.shards]


def build(
    world: World, start: Start, signals: Signals, stop_after: int = 0, survival: Survival | None = None
) -> Experiment:
    """Build a run, and restore it if there is something to go on from; called by all ranks.

    With a ``survival`` it is to survive the death of ranks, and goes on from what is left if some have died.

    The run directory is first written when all that can raise InputError is done.
    """
    config, run = start.config, start.config.run
    device = world.everywhere(lambda: choose_device(run.device, run.kernels, world.local_rank, run.tf32, run.bf16))
    _check_alike(world, device)
    ops = device.kernels
    found = findings(world, device.name)
    groups, said = choose_nccl(world, device) if run.collectives == "nccl" else (None, "")
    transports, transport = choose_transports(
        run.transport, world.library, found, device.memory, world.size, groups is not None and groups.made
    )
    transports, transport = replace(transports, nccl=groups), "; ".join(filter(None, [transport, said]))
    wanted = config.grid
    grid = Grid(world, wanted.replicas, wanted.stages, wanted.shards, transports, ordered=run.deterministic)
    kept = survival.begin if survival else None
    cuts = survival.cuts if survival and survival.cuts else _cuts(world, start, grid, ops)
    column = grid.replicas.split(0, grid.replica, "column")
    trace = Trace(TRACED if start.trace else 0, ops.synchronize)
    warmth = None if kept else _warmth(world, start)
    loaded = world.everywhere(lambda: _load(world, start, grid, ops, cuts, warmth))
    batches = loaded.batches
    place = _place(grid, loaded.model, cuts, trace, second_core(world, ops))
    schedule = _schedule(config, loaded, place, grid)
    warm(world, config, _subjects(schedule, place, loaded))
    consensus = config.consensus.build(grid.replicas, batches.steps_per_epoch)
    consensus.prepare(schedule.parts)
    tally = Tally()
    grid_kinds = grid_vectors(consensus, tally, grid.place)
    begin = Resumed()
    path = start.checkpoint
    if kept is not None and survival is not None:
        kept.fill([*model_vectors(schedule.parts, grid.place), *grid_kinds], survival.replicas)
        begin = restored(kept.standing, schedule.parts, grid.stages)
    elif path is not None:
        stand = Stand(grid.shape, grid.replica, grid.place, cuts.bounds, config.tables()["schedule"], ops.fill)
        begin = world.everywhere(lambda: resume(path, schedule.parts, grid_kinds, stand))
        if begin.flight is not None:
            schedule.resume(begin.flight, batches.batch)
    plan = plan_of(config, batches.steps_per_epoch, begin.step, stop_after)
    if survival is None or not survival.prepared:
        _check_stop(plan)
    moved = _take(world, start, survival)
    keeper = RunKeeper(
        RunDirectory(run.directory), config, grid.shape, batches.steps_per_epoch, grid.control,
        [*model_vectors(schedule.parts, grid.place), *grid_kinds], schedule, grid.replica, grid.place, cuts.bounds,
        start.data, since=step_of(path) if path is not None else 0, ops=ops, heir=survival is not None,
    )  # fmt: skip
    keeper.rewind(begin.step, *((survival.records, survival.since or 0) if survival else ()))
    rate = config.optimizer.course(batches.steps_per_epoch, plan.total)
    clip = config.train.clip
    update = OptimizerUpdate(consensus, config.optimizer, rate, clip, schedule.parts, schedule.chained, trace)
    measure = RunMeasure(schedule, config.loss, batches, grid.control, consensus, column)
    selection = None
    if isinstance(schedule, Members):
        update = MemberUpdate(consensus, config.optimizer, rate, clip, schedule.parts, trace)
        ranking = Ranking(len(config.model.members()), loaded.classes, config.model.patience)
        measure = MemberMeasure(schedule, batches, grid.control, consensus, column, ranking)
        selection = _selection(config, loaded, measure, grid, plan)
        selection.changes = _changes(schedule.part, consensus, update, keeper, grid, tally)
        selection.resume(begin.scalars)
        keeper.facts, keeper.shares = selection.facts, selection.shares
    trainer = Trainer(
        plan=plan,
        control=grid.control,
        schedule=schedule,
        consensus=consensus,
        update=update,
        rate=rate,
        batches=batches,
        measure=measure,
        replica_measure=_replica_measure(config, schedule, batches, grid),
        agreement=Agreement(world.channel("agreement"), begin.step),
        signals=signals,
        tally=tally,
        stopwatch=Stopwatch(grid.replicas, grid.stages, column),
        keeper=keeper,
        classes=loaded.classes,
        trace=trace,
        ranks_per_replica=grid.stages.size * grid.shards.size,
        selection=selection,
        samples=begin.samples,
        seconds=begin.seconds,
        quality=begin.quality,
    )
    if survival is not None:
        trainer.boundaries = Boundaries(keeper.vectors, survival.replicas)
        trainer.keep(begin.step)
        survival.track(keeper, trainer.boundaries, cuts, lambda: trainer.agreement.step)
    fitted = [] if warmth is None else [f"fine blocks of {warmth}; what is beside them was fitted to it"]
    notes = (*begin.notes, *fitted, *([moved] if moved else []))
    return Experiment(config, grid, trainer, keeper, measure, transport, device, loaded.model, cuts, trace, notes)


def restored(stood: Standing, parts: Mapping[str, Part], stages: Channel) -> Resumed:
    """Go on from a boundary, with which the parts are filled, as from a file of another grid: nothing is in flight.

    The stages have then applied equally many gradients, as the first one has counted them.
    """
    for part in parts.values():
        if stood.behind and not part.auxiliary:
            stages.broadcast(part.counters, 0).wait()
    dropped = f"what was in flight is dropped: the run goes back {stood.behind} batches, from step {stood.step}"
    return Resumed(
        stood.resumed, stood.samples - stood.behind_samples, stood.seconds, stood.quality,
        [dropped] if stood.behind else [],
    )  # fmt: skip


def _take(world: World, start: Start, survival: Survival | None) -> str:
    """Make the run directory ready; returns sentences for the log."""
    if survival is not None and survival.prepared:
        return world.verdict(lambda: take_over(RunDirectory(start.config.run.directory), start.lock)).decode()
    said = world.verdict(lambda: prepare(start)).decode()
    if survival is not None:
        survival.prepared = True
    return said


def _check_alike(world: World, device: Device) -> None:
    """Kernels of a CPU and of a GPU round differently: replicas that are to stay equal would drift apart.

    Called by all ranks; raises InputError on all of them.
    """
    names = world.gather_text(device.name)
    without = [rank for rank, name in enumerate(names) if not name]
    if 0 < len(without) < world.size:
        who = f"rank{'s' * (len(without) > 1)} {numbers(without)}"
        raise InputError("run.device", f"{who} found no GPU, and the others did: choose cpu, or gpu to hear why")


def _schedule(config: Config, loaded: "_Loaded", place: Place, grid: Grid) -> Schedule:
    population = population_of(loaded.model.network)
    if population is None:
        schedule: Schedule = config.schedule.build(loaded.part, config.loss, config.run.seed, place)
        return schedule
    share = grid.shards.size / len(population.members)
    return Members(loaded.part, config.loss, config.run.seed, share, place.trace)


def _replica_measure(
    config: Config, schedule: Schedule, batches: Batches, grid: Grid
) -> Callable[[int], ReplicaMeasure]:
    """What a score may ask after so many steps."""
    seed = config.run.seed
    if isinstance(schedule, Members):
        return lambda step: MemberReplicaMeasure(schedule, batches, step, seed, grid.replica, grid.shards)
    return lambda step: ReplicaMeasure(schedule, config.loss, batches, step, seed, grid.replica)


def _selection(config: Config, loaded: "_Loaded", measure: MemberMeasure, grid: Grid, plan: Plan) -> Selection:
    population = population_of(loaded.model.network)
    if population is None:
        raise TypeError("only members of a population are selected")
    return Selection(measure, grid.shards, population, loaded.shape, plan.rungs, config.model.survive)


def _changes(
    part: Part, consensus: Consensus, update: MemberUpdate, keeper: RunKeeper, grid: Grid, tally: Tally
) -> Callable[[Part, frozenset[int]], None]:
    """What must know of it when the members of this rank, now those of ``part``, change, or some learn no more."""

    held = part

    def changes(part: Part, stopped: frozenset[int]) -> None:
        nonlocal held
        parts = {part.name: part}
        update.prepare(part, stopped)
        if part is not held:
            consensus.prepare(parts)
            held = part
        keeper.vectors = [*model_vectors(parts, grid.place), *grid_vectors(consensus, tally, grid.place)]

    return changes


def _cuts(world: World, start: Start, grid: Grid, ops: ModuleType) -> Cuts:
    """Where the depth is cut, found by one rank; a run that goes on keeps the cuts that it has."""
    config = start.config

    def find() -> bytes:
        pieces = config.schedule.pieces(grid.stages.size)
        if start.checkpoint is not None and (kept := bounds_of(start.checkpoint, pieces)):
            cuts = Cuts(kept, "as before")
        else:
            source = open_source(config.data)
            outputs = outputs_of(source.summary())
            model = build_model(config, source.sample_shape, outputs)
            cuts = cut(config, model, outputs, grid.replicas.size, ops)
        return json.dumps([cuts.bounds, cuts.reason]).encode()

    bounds, reason = json.loads(world.verdict(find))
    return Cuts(tuple(bounds), reason)


def _warmth(world: World, start: Start) -> Path | None:
    """The checkpoint with whose fine blocks a new run begins; found by one rank."""
    if start.checkpoint is not None or not start.config.schedule.warm:
        return None
    return Path(world.verdict(lambda: str(warm_checkpoint(start.config, lambda said: None)).encode()).decode())


def second_core(world: World, ops: ModuleType) -> bool:
    """Whether every rank of this machine has a core for a second thread that computes there."""
    return ops.LIBRARY is np and world.cores >= 2 * world.local_size


def _place(grid: Grid, model: Model, cuts: Cuts, trace: Trace, second_core: bool) -> Place:
    stage = grid.stage
    aside = grid.stages.split(0, stage, "aside")
    final = model.network.output_shape(model.shape)
    return Place(grid.stages, aside, cuts.shape(model, stage), cuts.shape(model, stage + 1), trace, final, second_core)


def _subjects(schedule: Schedule, place: Place, loaded: "_Loaded") -> list[Subject]:
    """What a step computes with on this rank: a loss ends the depth, and every auxiliary part."""
    last, target = place.channel.rank == place.channel.size - 1, loaded.target_shape
    return [
        (part, place.outputs, target) if part.auxiliary else (part, loaded.shape, target if last else None)
        for part in schedule.parts.values()
    ]


@dataclass(frozen=True)
class _Loaded:
    part: Part
    batches: Batches
    model: Model
    shape: Shape
    """Of a sample where it enters this rank."""
    classes: int
    target_shape: Shape


def _load(world: World, start: Start, grid: Grid, ops: ModuleType, cuts: Cuts, warmth: Path | None) -> _Loaded:
    """The data and the model, without any message."""
    config = start.config
    source = open_source(config.data)
    replicas, dtype = grid.replicas.size, np.dtype(config.run.dtype)
    compute = activations(config.run.dtype, config.run.bf16)
    spare = world.cores > world.local_size
    batches = Batches(
        source, config.run.seed, config.data.batch, replicas, grid.replica, config.deal, dtype, ahead=spare,
        held=config.schedule.held(grid.stages.size),
        samples=grid.stage == 0 or config.schedule.sampled, ops=ops, compute=compute,
    )  # fmt: skip
    summary = source.summary()
    model = build_model(config, source.sample_shape, outputs_of(summary))
    slots = config.optimizer.slots
    if start.checkpoint is not None:
        model = saved_model(start.checkpoint, model)
    whole = trained(config, model, cuts)
    if population_of(model.network) is None:
        stages = grid.stages.size
        network, shape = config.schedule.share(whole, model, cuts.bounds, grid.stage, stages, size_of(config, replicas))
    else:
        network, shape = shard_of(model, grid.shard, grid.shards.size), model.shape
        slots = (*slots, *((BEST,) if config.model.patience else ()))
    with in_memory(network, shape):
        part = build_part("network", network, shape, dtype, slots, ops=ops, compute_dtype=compute)
    part.initialize(config.run.seed)
    if warmth is not None:
        warm_start(warmth, config, model, whole, part, source)
    return _Loaded(part, batches, model, shape, source.classes, tuple(summary["target_shape"]))


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
        rungs=[rung.steps(steps_per_epoch) for rung in getattr(config.model, "rungs", ())],
    )


def _check_stop(plan: Plan) -> None:
    """A step after which a run is to stop must lie before it; raises InputError on all ranks."""
    if 0 < plan.stop_after <= plan.start:
        raise InputError("--stop-after", f"{plan.stop_after} lies behind: the run is at step {plan.start}")
