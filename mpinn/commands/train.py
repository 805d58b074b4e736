"""The command ``train``: check, build or resume, train, sum up."""

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from mpinn import __version__
from mpinn.comm.grid import World
from mpinn.comm.launch import say
from mpinn.config import Config
from mpinn.errors import FatalError, InputError
from mpinn.nn.layout import Layout
from mpinn.nn.packed import population_of
from mpinn.partition.cuts import size_of, trained
from mpinn.population.standing import SHOWN, csv_text
from mpinn.run.assembly import second_core
from mpinn.run.binding import binding
from mpinn.run.checks import Request, Start, check
from mpinn.run.experiment import Experiment, build
from mpinn.run.remarks import remarks
from mpinn.run.summary import add_unsaved, collect, lines, may_meet
from mpinn.run.survival import Death, Survival, survive
from mpinn.run.timeline import common_zero, write_timeline
from mpinn.run.watchdog import Watchdog
from mpinn.signals import STOPPED, Signals
from mpinn.storage.directory import RunDirectory, write_text
from mpinn.storage.history import plain
from mpinn.training.course import rare, unreached
from mpinn.training.reporter import open_reporter
from mpinn.training.trainer import Outcome


def train(world: World, request: Request, signals: Signals | None = None) -> int:
    """Train, or go on training; the exit code.

    Raises, on all ranks together, InputError before anything is written, and FatalError for a run that diverged or
    cannot be saved.
    """
    signals = signals or Signals()
    signals.listen()  # also when it did before: an MPI library may have put a handler of its own there
    mortal = world.job.mortal if world.job else lambda: "without MPI there is one rank, and none to survive it"
    start = Start.decode(world.verdict(lambda: check(request, world.size, mortal).encode()))
    if start.summary is not None:
        _tell_again(world, start)
        return 0
    run = start.config.run
    try:
        with Watchdog(world, run.patience, Path(run.directory)) as watchdog:
            if not run.survive:
                return _train(world, start, signals, request.stop_after, watchdog)

            def work(there: World, survival: Survival) -> int:
                adapted = replace(start, config=survival.adapted(start.config))
                return _train(there, adapted, signals, request.stop_after, watchdog, survival)

            return survive(world, start, watchdog, work)
    finally:
        start.lock.release()


def _train(
    world: World,
    start: Start,
    signals: Signals,
    stop_after: int,
    watchdog: Watchdog,
    survival: Survival | None = None,
) -> int:
    experiment = build(world, start, signals, stop_after, survival)
    watchdog.step = lambda: experiment.trainer.agreement.step
    gc.enable()
    try:
        outcome = _run(world, experiment, start, survival)
        _write_trace(experiment)
        if outcome is Outcome.STOPPED:
            return _stop(world, experiment)
        return _finish(world, experiment, outcome, survival.deaths if survival else ())
    except FatalError:
        experiment.keeper.abandon()
        raise


def _run(world: World, experiment: Experiment, start: Start, survival: Survival | None) -> Outcome:
    trainer = experiment.trainer
    trainer.reporter = open_reporter(world.rank, trainer.plan.total, trainer.plan.start)
    try:
        for text in _opening(world, experiment, start, survival):
            trainer.reporter.line(text)
        experiment.trace.zero = common_zero(world)
        # a loss that is not finite is noticed and named by the trainer
        with np.errstate(all="ignore"), trainer.signals.heeded():
            return trainer.run()
    finally:
        trainer.reporter.close()


def _tell_again(world: World, start: Start) -> None:
    if world.rank == 0 and start.summary is not None:
        place = start.config.run.directory
        said = f"{place} is a finished run; --fresh starts it anew, a longer train.epochs continues it"
        say("\n".join([*start.notes, said, *lines(start.summary)]))


def _opening(world: World, experiment: Experiment, start: Start, survival: Survival | None) -> list[str]:
    lost = survival.say(start.config.data.batch) if survival else []
    if survival and survival.resumes:
        return [*lost, *experiment.notes]
    config, trainer, device = experiment.config, experiment.trainer, experiment.device
    shared = binding(world, device.bus, device.uuid)
    shape = " x ".join(map(str, experiment.grid.shape))
    said = [
        *lost,
        f"mpinn {__version__}: {world.size} rank{'s' if world.size > 1 else ''} on {world.host}, {world.library}",
        *([world.note] if world.note else []),
        f"grid {shape} (replicas x stages x shards), {experiment.transport}",
        f"device {device.said}",
        *shared,
        *_depth(world, experiment),
        f"{_model(experiment)} on {config.data.name}, "
        f"{_consensus(config, experiment.grid.replicas.size)}{config.names['optimizer']}, {config.run.dtype}",
        *remarks(config, experiment.model, experiment.grid.replicas.size, experiment.grid.stages.size),
        *unreached(config.optimizer, trainer.batches.steps_per_epoch, trainer.plan.total),
        *rare(config.consensus, experiment.grid.replicas.size, trainer.batches.steps_per_epoch, trainer.plan.total),
        *start.notes,
        *experiment.notes,
    ]
    if start.checkpoint is not None:
        said.append(f"resumed from {start.checkpoint} at step {trainer.plan.start}")
    said.append(f"run directory {config.run.directory}")
    return said


def _model(experiment: Experiment) -> str:
    """The whole model, and how large it is."""
    model, config = experiment.model, experiment.config
    count = Layout(trained(config, model, experiment.cuts).parameters(model.shape), config.run.dtype).count
    population = population_of(model.network)
    members = f" of {len(population.members):,} members" if population else ""
    return f"{config.names['model']}{members} with {count:,} parameters"


def _depth(world: World, experiment: Experiment) -> list[str]:
    """How the depth is cut, and why so."""
    cuts, config = experiment.cuts, experiment.config
    if len(cuts.bounds) == 2:
        return []
    begin, pieces = cuts.starts(experiment.model), "stages" if experiment.grid.stages.size > 1 else "blocks"
    said = f"schedule {config.names['schedule']}, {pieces} begin at {begin}: {cuts.reason}"
    if experiment.grid.stages.size == 1:
        return [said]
    size = size_of(config, experiment.grid.replicas.size)
    network = trained(config, experiment.model, cuts)
    return [said, *config.schedule.remarks(second_core(world, experiment.device.kernels), network, size)]


def _consensus(config: Config, replicas: int) -> str:
    """The consensus with the choices that make it what it is, and a comma; nothing where none can play a part."""
    if not may_meet(config.names["model"], replicas):
        return ""
    name, options = config.names["consensus"], config.consensus
    if name == "gossip":
        return f"consensus gossip on a {options.graph} graph, {options.form.replace('_', ' ')}, "
    score = getattr(options, "score", None)
    return f"consensus {name}{f' by {score}' if score else ''}, "


def _write_trace(experiment: Experiment) -> None:
    """The timeline of all ranks, if it was asked for; called by all ranks."""
    grid, trace = experiment.grid, experiment.trace
    if not trace.wanted:
        return
    label = f"rank {grid.control.rank}: replica {grid.replica}, stage {grid.stage}"
    write_timeline(experiment.keeper.directory.path / "trace.json", grid.control, trace, label)


def _stop(world: World, experiment: Experiment) -> int:
    """The marker asks a batch script to requeue its job, which for ever makes no progress if this start made none."""
    keeper = experiment.keeper
    directory: RunDirectory = keeper.directory
    keeper.close()
    said = f"stopped with the state saved; the same command goes on from {directory.latest}"
    if keeper.saved > keeper.since:
        _conclude(world, said, {directory.requeue: ""})
    else:
        _conclude(world, f"{said}\nthat is no further than the start before this one has come: no requeue")
    return STOPPED


def _finish(world: World, experiment: Experiment, outcome: Outcome, deaths: Sequence[Death]) -> int:
    summary = collect(experiment, outcome.value, deaths)
    experiment.keeper.close()
    if world.rank == 0:
        add_unsaved(summary, experiment.keeper.directory, experiment.keeper.records)
    directory, texts = experiment.keeper.directory, {}
    said = "\n".join(lines(summary))
    if summary["population"]:
        texts[directory.ranking] = csv_text(summary["population"]["ranking"])
        del summary["population"]["ranking"][SHOWN:]
    texts[directory.summary] = json.dumps(plain(summary), indent=1, allow_nan=False) + "\n"
    _conclude(world, said, texts)
    return 0


def _conclude(world: World, said: str, texts: Mapping[Path, str] = MappingProxyType({})) -> None:
    """Rank 0 writes files and prints what is to be said last; if it can't, all ranks raise the same FatalError."""

    def write() -> bytes:
        where = ""
        try:
            for path, text in texts.items():
                where = str(path)
                write_text(path, text)
            where = "standard output"
            say(said)
        except OSError as error:
            raise InputError(where, f"cannot be written: {error.strerror}") from error
        return b""

    try:
        world.verdict(write)
    except InputError as error:
        raise FatalError(f"{error}; the state is saved, the same command goes on from it") from None
