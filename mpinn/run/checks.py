"""What the user gave, checked by one rank before the first step and before anything is written."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mpinn.array import ops as plain
from mpinn.array.device import check_bf16, choose_kernels, count_devices
from mpinn.array.precision import bfloat16
from mpinn.comm.grid import shape_of
from mpinn.config import Config, load
from mpinn.consensus.scores import MEMBER_SCORES
from mpinn.datasets.source import check_source
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.nn.packed import population_of
from mpinn.partition.cuts import cut
from mpinn.run.fit import check_warm
from mpinn.run.place import begun_here, check_fresh, check_own, check_place, look_back, names_of, note_job
from mpinn.run.resumption import check_resume, check_steps, finished
from mpinn.schedules.registry import SCHEDULES
from mpinn.storage.damage import reading
from mpinn.storage.directory import RunDirectory, move_aside, write_text
from mpinn.storage.lock import Lock, check_free
from mpinn.training.choices import CHOICES, DEFAULTS, build_model, outputs_of, read_config
from mpinn.training.course import check_course


@dataclass(frozen=True)
class Request:
    """What the user asked for: a configuration or none, overrides, and what becomes of a run that is there."""

    file: str | Mapping[str, Any] | None = None
    overrides: tuple[str, ...] = ()
    resume: bool = False
    fresh: bool = False
    stop_after: int = 0
    trace: bool = False


@dataclass(frozen=True)
class Start:
    """What one rank has found, and all ranks begin with; ``summary`` is that of a run with nothing left to do.

    ``data`` describes the data, and ``found`` names the checkpoints that there were. The ``lock`` of the run directory
    is taken by `prepare`, on one rank.
    """

    config: Config
    checkpoint: Path | None
    fresh: bool
    notes: tuple[str, ...]
    summary: Mapping[str, Any] | None
    data: Mapping[str, Any] = field(default_factory=dict)
    found: tuple[str, ...] = ()
    trace: bool = False
    lock: Lock = field(default_factory=Lock, compare=False)

    def encode(self) -> bytes:
        """As bytes, for the other ranks."""
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        told = [
            self.config.tables(),
            checkpoint,
            self.fresh,
            self.notes,
            self.summary,
            self.data,
            self.found,
            self.trace,
        ]
        return json.dumps(told).encode()

    @classmethod
    def decode(cls, told: bytes) -> "Start":
        """The inverse of `encode`."""
        tables, checkpoint, fresh, notes, summary, data, found, trace = json.loads(told)
        path = None if checkpoint is None else Path(checkpoint)
        config = load(tables, (), CHOICES, DEFAULTS)
        return cls(config, path, fresh, tuple(notes), summary, data, tuple(found), trace)


def check(request: Request, ranks: int, mortal: Callable[[], str] = str, here: bool = True) -> Start:
    """Everything that one rank can find wrong with what the user gave; raises InputError and writes nothing.

    ``mortal`` says why no rank survives the death of another, if that is so; ``here``: the run is to be on this
    machine, which else needs neither its GPUs nor its kernels.
    """
    config = read_config(request.file, request.overrides)
    replicas = check_grid(config, ranks)
    data = check_source(config.data)
    config = replace(config, schedule=config.schedule.settled(config.grid.stages))
    check_together(config, data)
    check_survival(config, replicas, mortal)
    if here:
        check_kernels(config)
    model = build_model(config, tuple(data["sample_shape"]), outputs_of(data))
    check_population(config, model, ranks)
    cut(config, model, outputs_of(data), replicas, plain, measure=False)
    notes = [data["note"]] if data["note"] else []
    facts, directory = describe(data), RunDirectory(config.run.directory)
    check_place(directory.path)
    check_free(directory.lock)
    if request.fresh and request.resume:
        raise InputError("--fresh", "start anew or --resume, not both")
    if request.fresh and not begun_here(directory):
        check_fresh(directory)
        check_course(config, data["sizes"]["train"], replicas)
        check_warm(config, model, notes.append)
        return Start(config, None, True, tuple(notes), None, facts, trace=request.trace)
    if request.fresh:
        notes.append("--fresh is done: this job began the run before it was requeued")
    found = names_of(directory)
    checkpoint = look_back(directory, notes)
    if checkpoint is None:
        if request.resume:
            raise InputError("--resume", f"there is no checkpoint in {directory.path}")
        check_own(directory.config)
        check_course(config, data["sizes"]["train"], replicas)
        check_warm(config, model, notes.append)
        return Start(config, None, False, tuple(notes), None, facts, found, request.trace)
    with reading(checkpoint):
        notes += check_resume(checkpoint, config, model, facts)
    with reading(directory.summary):
        summary = finished(directory, checkpoint, config)
    if summary is None:
        with reading(checkpoint):
            check_steps(checkpoint, config, data["sizes"]["train"], replicas)
    return Start(config, checkpoint, False, tuple(notes), summary, facts, found, request.trace)


def describe(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of the data, from a `Source.summary`: a resumed run must find the same, wherever it is."""
    sizes = {f"{split}_samples": size for split, size in summary["sizes"].items()}
    shapes = {name: " x ".join(map(str, summary[name])) for name in ("sample_shape", "target_shape") if summary[name]}
    return {**sizes, **shapes, "classes": summary["classes"], "mean": summary["mean"], "std": summary["std"]}


def check_grid(config: Config, ranks: int) -> int:
    """The grid must fit the ranks, and the choices must be able to use each of its axes; the number of replicas."""
    grid, names = config.grid, config.names
    replicas, _, _ = shape_of(ranks, grid.replicas, grid.stages, grid.shards)
    if grid.stages > 1 and not config.schedule.staged:
        only = f"the schedule {names['schedule']} keeps the whole depth on one rank"
        others = ", ".join(name for name, options in SCHEDULES.items() if options.staged)
        raise InputError(
            "grid.stages", f"{only}, so this can only be 1, got {grid.stages}; schedules with stages: {others}"
        )
    if grid.shards != 1 and names["model"] != "population":
        only = f"the model {names['model']} is not a population"
        raise InputError("grid.shards", f"{only}, so this can only be 1, got {grid.shards}")
    return replicas


def check_population(config: Config, model: Model, ranks: int) -> None:
    """A population has choices of its own."""
    population, names, grid = population_of(model.network), config.names, config.grid
    if population is None:
        return
    check_types(config)
    replicas, _, shards = shape_of(ranks, grid.replicas, grid.stages, grid.shards)
    if names["schedule"] != "serial":
        raise InputError("schedule.name", f"a population is trained by the schedule serial, not by {names['schedule']}")
    if replicas > 1 and (score := getattr(config.consensus, "score", "uniform")) not in MEMBER_SCORES:
        scores = ", ".join(MEMBER_SCORES)
        raise InputError("consensus.score", f"{score} is not measured for the members of a population; use {scores}")
    if shards > len(population.panels):
        said = f"the {len(population.members):,} members make {len(population.panels)} panels, which are never cut"
        found = f"{grid.shards}, which is {shards} here" if grid.shards != shards else shards
        raise InputError("grid.shards", f"{said}, so this can be at most as many, got {found}")


def check_types(config: Config) -> None:
    """Those in which a population can be trained."""
    if config.run.bf16 and config.names["model"] == "population":
        raise InputError("run.bf16", "a population is trained in float32 or float64: leave this false")


def check_together(config: Config, data: Mapping[str, Any]) -> None:
    """Choices that are each right but do not fit each other."""
    if getattr(config.consensus, "in_flight", "") == "keep" and (lost := overwritten(config)):
        said = f"keep does not go with the score {config.consensus.score}, which measures on"
        raise InputError("consensus.in_flight", f"{said} the batches of training, and would overwrite {lost}")
    if data["classes"]:
        return
    values, wrong = "needs class numbers, but the targets are values", []
    if config.names["loss"] == "cross_entropy":
        wrong.append(f"loss.name: cross_entropy {values}: use squared_error")
    score = getattr(config.consensus, "score", "")
    if score in ("accuracy", "accuracy_shard", "inverse_error", "best"):
        wrong.append(f"consensus.score: {score} {values}: use inverse_loss")
    if wrong:
        raise InputError("", "\n".join(wrong))


def overwritten(config: Config) -> str:
    """What of that which is in flight a score would lose; nothing if it does not measure there, or nothing is."""
    if config.consensus.score not in ("accuracy_shard", "fisher"):
        return ""
    if config.schedule.held(config.grid.stages):
        return "those in flight"
    summed = getattr(config.schedule, "accumulate", 1) > 1
    return "gradients that are added up" if summed and config.consensus.score == "fisher" else ""


def check_survival(config: Config, replicas: int, mortal: Callable[[], str]) -> None:
    """That replicas survive the death of others must be possible, if it is wanted."""
    if not config.run.survive:
        return
    if why := mortal():
        raise InputError("run.survive", why)
    if replicas == 1:
        raise InputError("run.survive", "there is one replica, and without all its ranks none can go on")
    if config.deal == "same":
        raise InputError(
            "run.survive", "with data.deal = same fewer replicas have epochs of fewer steps: only false goes"
        )
    if config.names["model"] == "population":
        raise InputError("run.survive", "no copy is kept of which members a population has left: only false goes")


def check_kernels(config: Config) -> None:
    """Kernels that were asked for must be there, and so must a GPU."""
    run = config.run
    if run.device == "gpu" and not (found := count_devices())[0]:
        raise InputError("run.device", f"gpu: {found[1]}; choose cpu, or auto for a GPU where there is one")
    if getattr(config.schedule, "overlap", "") == "always" and run.device != "cpu" and count_devices()[0]:
        raise InputError(
            "schedule.overlap", "always: a GPU computes one pass at a time; choose auto, or run.device = cpu"
        )
    if run.bf16:
        count, why = (0, "") if run.device == "cpu" else count_devices()
        check_bf16(not count, run.device, why)
        check_bfloat16()
    try:
        choose_kernels(run.kernels)
    except ImportError as error:
        raise InputError("run.kernels", f"numba can't be imported ({error}); auto goes on without") from None


def check_bfloat16() -> None:
    """There must be such a type of numbers."""
    try:
        bfloat16()
    except ImportError as error:
        raise InputError("run.bf16", f"ml_dtypes can't be imported ({error}): it comes with mpinn[gpu]") from None


def prepare(start: Start) -> bytes:
    """The first that is written, by one rank: the lock is taken, an old run moves aside, config.toml says what runs.

    Returns sentences for the log, or nothing. Raises InputError where another job is training in the directory, or
    where it cannot be written.
    """
    directory = RunDirectory(start.config.run.directory)
    try:
        said = [set_aside(directory)] if start.fresh and directory.path.exists() else []
        directory.create()
        said.append(start.lock.take(directory.lock))
        if names_of(directory) != start.found:
            raise InputError("run.directory", f"another job has just trained in {directory.path}: type this again")
        if start.checkpoint is None:
            note_job(directory)
        write_text(directory.config, start.config.toml())
        directory.requeue.unlink(missing_ok=True)
        directory.summary.unlink(missing_ok=True)
    except OSError as error:
        where = error.filename or directory.path
        raise InputError("run.directory", f"{str(where)!r} cannot be written: {error.strerror}") from error
    return "\n".join(filter(None, said)).encode()


def set_aside(directory: RunDirectory) -> str:
    """Move an old run aside, unless a job is training in it; returns a sentence for the log."""
    lock = Lock()
    if directory.path.is_dir():
        lock.take(directory.lock)
    try:
        moved = move_aside(directory.path)
        if moved is not None:
            RunDirectory(moved).lock.unlink(missing_ok=True)
    finally:
        lock.release()
    return f"the run that was in {directory.path} is now in {moved}"
