"""What trains on one rank of a run, whatever it begins with: its data, part, schedule and consensus."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from mpinn.array.precision import activations
from mpinn.array.typing import Shape
from mpinn.comm.channel import Channel
from mpinn.comm.grid import Grid, World
from mpinn.config import Config
from mpinn.consensus.consensus import Consensus
from mpinn.datasets.batches import Batches
from mpinn.datasets.source import open_source
from mpinn.models.model import Model
from mpinn.models.population import shard_of
from mpinn.nn.packed import population_of
from mpinn.nn.part import BEST, Part, build_part, in_memory
from mpinn.partition.cuts import Cuts, cut, size_of, trained
from mpinn.run.checks import Start, describe
from mpinn.run.fit import warm_checkpoint, warm_start
from mpinn.run.keeper import bounds_of, grid_vectors, model_vectors, saved_model
from mpinn.run.resumption import check_same_data
from mpinn.run.warm import Subject, warm
from mpinn.schedules.members import Members
from mpinn.schedules.schedule import Schedule
from mpinn.schedules.stage import Place
from mpinn.storage.schema import VectorSpec
from mpinn.trace import Trace
from mpinn.training.choices import build_model, outputs_of
from mpinn.training.tally import Tally

TRACED = 200_000
"""Events of one rank that a trace keeps."""


@dataclass(frozen=True)
class Loaded:
    """The data of a rank, and its part of the model."""

    part: Part
    batches: Batches
    model: Model
    shape: Shape
    """Of a sample where it enters this rank."""
    classes: int
    target_shape: Shape


@dataclass(frozen=True, eq=False)
class Assembly:
    """What trains on this rank, whatever it begins with."""

    config: Config
    grid: Grid
    column: Channel
    ops: ModuleType
    cuts: Cuts
    trace: Trace
    loaded: Loaded
    schedule: Schedule
    consensus: Consensus
    tally: Tally

    @property
    def batches(self) -> Batches:
        """What it trains on."""
        return self.loaded.batches

    @property
    def grid_vectors(self) -> list[VectorSpec]:
        """What of a state belongs to a place of the grid."""
        return grid_vectors(self.consensus, self.tally, self.grid.place)

    @property
    def vectors(self) -> list[VectorSpec]:
        """All that a state is made of."""
        return [*model_vectors(self.schedule.parts, self.grid.place), *self.grid_vectors]


def find_cuts(world: World, start: Start, grid: Grid, ops: ModuleType) -> Cuts:
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


def find_warmth(world: World, start: Start) -> Path | None:
    """The checkpoint with whose fine blocks a new run begins; found by one rank."""
    if start.checkpoint is not None or not start.config.schedule.warm:
        return None
    return Path(world.verdict(lambda: str(warm_checkpoint(start.config, lambda said: None)).encode()).decode())


def second_core(world: World, ops: ModuleType) -> bool:
    """Whether every rank of this machine has a core for a second thread that computes there."""
    return ops.LIBRARY is np and world.cores >= 2 * world.local_size


def assemble(world: World, start: Start, grid: Grid, ops: ModuleType, cuts: Cuts, warmth: Path | None) -> Assembly:
    """Build all of it, with new weights, or with those of ``warmth``; called by all ranks."""
    config = start.config
    column = grid.replicas.split(0, grid.replica, "column")
    trace = Trace(TRACED if start.trace else 0, ops.synchronize)
    loaded = world.everywhere(lambda: _load(world, start, grid, ops, cuts, warmth))
    place = _place(grid, loaded.model, cuts, trace, second_core(world, ops))
    schedule = _schedule(config, loaded, place, grid)
    warm(world, config, _subjects(schedule, place, loaded))
    consensus = config.consensus.build(grid.replicas, loaded.batches.steps_per_epoch)
    consensus.prepare(schedule.parts)
    return Assembly(config, grid, column, ops, cuts, trace, loaded, schedule, consensus, Tally())


def _load(world: World, start: Start, grid: Grid, ops: ModuleType, cuts: Cuts, warmth: Path | None) -> Loaded:
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
    check_same_data(start.data, describe(summary), config, "rank 0 has found")
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
    return Loaded(part, batches, model, shape, source.classes, tuple(summary["target_shape"]))


def _schedule(config: Config, loaded: Loaded, place: Place, grid: Grid) -> Schedule:
    population = population_of(loaded.model.network)
    if population is None:
        schedule: Schedule = config.schedule.build(loaded.part, config.loss, config.run.seed, place)
        return schedule
    share = grid.shards.size / len(population.members)
    return Members(loaded.part, config.loss, config.run.seed, share, place.trace)


def _place(grid: Grid, model: Model, cuts: Cuts, trace: Trace, second_core: bool) -> Place:
    stage = grid.stage
    aside = grid.stages.split(0, stage, "aside")
    final = model.network.output_shape(model.shape)
    return Place(grid.stages, aside, cuts.shape(model, stage), cuts.shape(model, stage + 1), trace, final, second_core)


def _subjects(schedule: Schedule, place: Place, loaded: Loaded) -> list[Subject]:
    """What a step computes with on this rank: a loss ends the depth, and every auxiliary part."""
    last, target = place.channel.rank == place.channel.size - 1, loaded.target_shape
    return [
        (part, place.outputs, target) if part.auxiliary else (part, loaded.shape, target if last else None)
        for part in schedule.parts.values()
    ]
