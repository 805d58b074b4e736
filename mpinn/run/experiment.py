"""The composition root: from a configuration to the objects that train it. The only file that knows them all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mpinn.array.device import Device, choose_device
from mpinn.comm.channel import Channel
from mpinn.comm.choice import choose_transports
from mpinn.comm.findings import findings
from mpinn.comm.grid import Grid, World
from mpinn.config import Config
from mpinn.datasets.batches import Batches
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.nn.packed import population_of
from mpinn.nn.part import Part
from mpinn.partition.cuts import Cuts
from mpinn.population.measure import MemberMeasure, MemberReplicaMeasure
from mpinn.population.ranking import Ranking
from mpinn.population.selection import Selection
from mpinn.population.update import MemberUpdate
from mpinn.run.assembly import Assembly, Loaded, assemble, find_cuts, find_warmth
from mpinn.run.binding import choose_nccl, numbers
from mpinn.run.checks import Start, prepare
from mpinn.run.keeper import Resumed, RunKeeper, Stand, resume
from mpinn.run.survival import Survival, take_over
from mpinn.schedules.members import Members
from mpinn.schedules.schedule import Schedule
from mpinn.signals import Signals
from mpinn.storage.directory import RunDirectory, step_of
from mpinn.trace import Trace
from mpinn.training.agreement import Agreement
from mpinn.training.boundary import Boundaries, Standing
from mpinn.training.measure import ReplicaMeasure, RunMeasure
from mpinn.training.tally import Stopwatch
from mpinn.training.trainer import Plan, Trainer
from mpinn.training.update import OptimizerUpdate


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
    config = start.config
    device, grid, transport = _placed(world, config)
    cuts = survival.cuts if survival and survival.cuts else find_cuts(world, start, grid, device.kernels)
    warmth = None if survival and survival.begin else find_warmth(world, start)
    assembly = assemble(world, start, grid, device.kernels, cuts, warmth)
    begin = _begin(world, start, assembly, survival)
    plan = plan_of(config, assembly.batches.steps_per_epoch, begin.step, stop_after)
    if survival is None or not survival.prepared:
        _check_stop(plan)
    moved = _take(world, start, survival)
    keeper = _keeper(start, assembly, survival)
    keeper.rewind(begin.step, *((survival.records, survival.since or 0) if survival else ()))
    trainer = _trainer(world, assembly, keeper, plan, begin, signals)
    if survival is not None:
        trainer.boundaries = Boundaries(keeper.vectors, survival.replicas)
        trainer.keep(begin.step)
        survival.track(keeper, trainer.boundaries, cuts, lambda: trainer.agreement.step)
    fitted = [] if warmth is None else [f"fine blocks of {warmth}; what is beside them was fitted to it"]
    notes = (*begin.notes, *fitted, *([moved] if moved else []))
    model, trace = assembly.loaded.model, assembly.trace
    return Experiment(config, grid, trainer, keeper, trainer.measure, transport, device, model, cuts, trace, notes)


def _placed(world: World, config: Config) -> tuple[Device, Grid, str]:
    """What this rank computes with, its place, and a sentence about how messages go."""
    run, wanted = config.run, config.grid
    device = world.everywhere(lambda: choose_device(run.device, run.kernels, world.local_rank, run.tf32, run.bf16))
    _check_alike(world, device)
    found = findings(world, device.name)
    groups, said = choose_nccl(world, device) if run.collectives == "nccl" else (None, "")
    transports, transport = choose_transports(
        run.transport, world.library, found, device.memory, world.size, groups is not None and groups.made
    )
    transports, transport = replace(transports, nccl=groups), "; ".join(filter(None, [transport, said]))
    grid = Grid(world, wanted.replicas, wanted.stages, wanted.shards, transports, ordered=run.deterministic)
    return device, grid, transport


def _begin(world: World, start: Start, assembly: Assembly, survival: Survival | None) -> Resumed:
    """Fill the vectors with what there is to go on from: the state that ranks have left, or that of a file."""
    grid, schedule, path = assembly.grid, assembly.schedule, start.checkpoint
    if survival is not None and survival.begin is not None:
        survival.begin.fill(assembly.vectors, survival.replicas)
        return restored(survival.begin.standing, schedule.parts, grid.stages)
    if path is None:
        return Resumed()
    tables = assembly.config.tables()["schedule"]
    stand = Stand(grid.shape, grid.replica, grid.place, assembly.cuts.bounds, tables, assembly.ops.fill)
    begin = world.everywhere(lambda: resume(path, schedule.parts, assembly.grid_vectors, stand))
    if begin.flight is not None:
        schedule.resume(begin.flight, assembly.batches.batch)
    return begin


def _keeper(start: Start, assembly: Assembly, survival: Survival | None) -> RunKeeper:
    config, grid, path = assembly.config, assembly.grid, start.checkpoint
    return RunKeeper(
        RunDirectory(config.run.directory), config, grid.shape, assembly.batches.steps_per_epoch, grid.control,
        assembly.vectors, assembly.schedule, grid.replica, grid.place, assembly.cuts.bounds,
        start.data, since=step_of(path) if path is not None else 0, ops=assembly.ops, heir=survival is not None,
    )  # fmt: skip


def _trainer(
    world: World, assembly: Assembly, keeper: RunKeeper, plan: Plan, begin: Resumed, signals: Signals
) -> Trainer:
    config, grid, batches = assembly.config, assembly.grid, assembly.batches
    schedule, consensus = assembly.schedule, assembly.consensus
    rate = config.optimizer.course(batches.steps_per_epoch, plan.total)
    common = consensus, config.optimizer, rate, config.train.clip, schedule.parts
    update = OptimizerUpdate(*common, schedule.chained, assembly.trace)
    measure = RunMeasure(schedule, config.loss, batches, grid.control, consensus, assembly.column)
    selection = None
    if isinstance(schedule, Members):
        update = MemberUpdate(*common, assembly.trace)
        ranking = Ranking(len(config.model.members()), assembly.loaded.classes, config.model.patience)
        measure = MemberMeasure(schedule, batches, grid.control, consensus, assembly.column, ranking)
        selection = _selection(config, assembly.loaded, measure, grid, plan)
        selection.changes = _changes(assembly, update, keeper)
        selection.resume(begin.scalars)
        keeper.facts, keeper.shares = selection.facts, selection.shares
    return Trainer(
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
        tally=assembly.tally,
        stopwatch=Stopwatch(grid.replicas, grid.stages, assembly.column),
        keeper=keeper,
        classes=assembly.loaded.classes,
        trace=assembly.trace,
        ranks_per_replica=grid.stages.size * grid.shards.size,
        selection=selection,
        samples=begin.samples,
        seconds=begin.seconds,
        quality=begin.quality,
    )


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


def _replica_measure(
    config: Config, schedule: Schedule, batches: Batches, grid: Grid
) -> Callable[[int], ReplicaMeasure]:
    """What a score may ask after so many steps."""
    seed = config.run.seed
    if isinstance(schedule, Members):
        return lambda step: MemberReplicaMeasure(schedule, batches, step, seed, grid.replica, grid.shards)
    return lambda step: ReplicaMeasure(schedule, config.loss, batches, step, seed, grid.replica)


def _selection(config: Config, loaded: Loaded, measure: MemberMeasure, grid: Grid, plan: Plan) -> Selection:
    population = population_of(loaded.model.network)
    if population is None:
        raise TypeError("only members of a population are selected")
    return Selection(measure, grid.shards, population, loaded.shape, plan.rungs, config.model.survive)


def _changes(assembly: Assembly, update: MemberUpdate, keeper: RunKeeper) -> Callable[[Part, frozenset[int]], None]:
    """What must know of it when the members of this rank change, or some learn no more."""
    (held,) = assembly.schedule.parts.values()

    def changes(part: Part, stopped: frozenset[int]) -> None:
        nonlocal held
        update.prepare(part, stopped)
        if part is not held:
            assembly.consensus.prepare({part.name: part})
            held = part
        keeper.vectors = assembly.vectors

    return changes


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
