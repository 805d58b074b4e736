"""The state of a run in its directory: what is saved, and how it is found again."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpinn.array import ops as plain
from mpinn.array.precision import BFLOAT16, bfloat16
from mpinn.array.typing import Array
from mpinn.comm.channel import Channel
from mpinn.config import Config
from mpinn.consensus.consensus import Consensus, Quality
from mpinn.consensus.statistics import merge_layer
from mpinn.models.model import Model
from mpinn.models.population import with_members
from mpinn.nn.layout import Layout
from mpinn.nn.packed import population_of
from mpinn.nn.part import COUNTERS, Part
from mpinn.population.ranking import population_in
from mpinn.run.stored import stored_tables
from mpinn.schedules.schedule import Flight, Schedule
from mpinn.storage.checkpoint import SaveError, Saver
from mpinn.storage.damage import reading
from mpinn.storage.directory import RunDirectory
from mpinn.storage.history import Metrics, Record, columns, read
from mpinn.storage.merge import Shares
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import restore
from mpinn.storage.schema import Scalar, Snapshot, VectorSpec
from mpinn.training.tally import Tally
from mpinn.training.trainer import Moment

FREE = {"cut", "overlap"}
"""Keys of a schedule that do not change what a stage computes, once it is known which layers it has."""
FACTS = "facts"
"""The name of what is known about a flight, among its arrays."""
BITS = "bfloat16"
"""Among the facts: which arrays are stored as the bits of numbers that HDF5 has no type for."""


def model_vectors(parts: Mapping[str, Part], stage: int = 0) -> list[VectorSpec]:
    """What makes the model and its optimizer; on another grid the merged ones serve.

    Stages have applied equally many gradients only when nothing is in flight, so each has a count of its own; on
    another grid that of the first stage serves for all.
    """
    found = []
    for name, part in parts.items():
        found.append(VectorSpec(f"model/{name}", part.layout, part.weights))
        found.append(VectorSpec(f"state/{name}", part.state_layout, part.state))
        found += [VectorSpec(f"optimizer/{slot}/{name}", part.layout, vector) for slot, vector in part.slots.items()]
        counter = f"counters/{name}" if stage == 0 else f"counters/stage{stage}/{name}"
        found.append(VectorSpec(counter, COUNTERS, part.counters))
    return found


def grid_vectors(consensus: Consensus, tally: Tally, stage: int = 0) -> list[VectorSpec]:
    """What has a meaning on the same grid only."""
    place = f"stage{stage}/" if stage else ""
    memory = [VectorSpec(f"consensus/{place}{name}", *pair) for name, pair in consensus.memory.items()]
    return [*memory, VectorSpec(f"tally/{place}replica", tally.layout, tally.vector)]


def flight_vectors(flight: Flight | None, kind: str) -> list[VectorSpec]:
    """What is in flight on this rank, an array each, and what is known about it."""
    if flight is None:
        return []
    # HDF5 has no bfloat16
    short = [name for name, array in flight.arrays.items() if array.dtype.char == BFLOAT16]
    arrays = {name: array.view(np.uint16) if name in short else array for name, array in flight.arrays.items()}
    facts = np.frombuffer(json.dumps({**flight.facts, BITS: short} if short else flight.facts).encode(), np.uint8)
    return [
        VectorSpec(kind, Layout({name: array.shape}, array.dtype), array.reshape(-1))
        for name, array in {FACTS: facts, **arrays}.items()
    ]


def read_flight(checkpoint: Checkpoint, kind: str) -> Flight | None:
    """The inverse of `flight_vectors`; None where nothing was in flight."""
    names = [parameter.name for parameter in checkpoint.parameters(kind)]
    if FACTS not in names:
        return None
    arrays = {name: checkpoint.weights(name, kind) for name in names}
    facts = json.loads(arrays.pop(FACTS).tobytes())
    for name in facts.pop(BITS, ()):
        arrays[name] = arrays[name].view(bfloat16())
    return Flight(facts, arrays)


def flight_kind(replica: int, stage: int) -> str:
    """Where what is in flight on a rank stands."""
    return f"flight/{replica}/{stage}"


@dataclass(eq=False)
class RunKeeper:
    """Saves the run's state, and keeps its metrics on rank 0."""

    directory: RunDirectory
    config: Config
    grid: tuple[int, int, int]
    steps_per_epoch: int
    control: Channel
    vectors: Sequence[VectorSpec]
    schedule: Schedule
    replica: int = 0
    stage: int = 0
    bounds: Sequence[int] = ()
    """The layers at which the stages begin, and the number of layers."""
    data: Mapping[str, Scalar | Sequence[float]] = field(default_factory=dict)
    """What describes the data, to be saved with the position in it."""
    records: list[Record] = field(default_factory=list)
    facts: Callable[[], Mapping[str, Array]] = dict
    """More to be saved as scalars."""
    shares: Callable[[Array], Shares] = lambda merge: lambda name: None
    """From weights for each member of a population, (R, M), to those of the elements of a parameter."""
    since: int = 0
    """The step of the checkpoint from which this start goes on."""
    saved: int = 0
    """That of the last one that it has saved."""
    ops: Any = plain
    """The kernels that work on the vectors, which know where these are."""
    heir: bool = False
    """Whether this rank remembers the records too, should it have to write them in the place of rank 0."""

    def __post_init__(self) -> None:
        keep = self.config.checkpoint.keep
        self._saver = Saver(
            self.directory.path, self.control, replica=self.replica, keep=keep, merges={"state": merge_layer},
            host=self.ops.on_host,
        )  # fmt: skip
        self._failure: OSError | None = None
        self._metrics = self._open_metrics() if self.control.rank == 0 else None

    def rewind(self, step: int, known: Sequence[Record] = (), since: int = 0) -> None:
        """Go on from ``step``: later lines of the metrics are dropped, earlier ones are the history so far.

        ``known`` are the records after the step ``since``, of which a rank that died may not have written the last.
        Raises SaveError, on all ranks, if they cannot be written.
        """
        if self._metrics is not None:
            try:
                self._metrics.rewind(step)
                written = list(read(self.directory.metrics))
                missing = known[sum(record["step"] > since for record in written) :]
                for record in missing:
                    self._metrics.append(record)
                self.records = [*written, *missing]
            except OSError as error:
                self._failure = error
        self._check_metrics()

    def record(self, record: Record) -> None:
        """Append to the metrics. The other ranks hear at the next save if that failed: now they are in messages."""
        if self._metrics is not None or self.heir:
            self.records.append(record)
        if self._metrics is None:
            return
        try:
            self._metrics.append(record)
        except OSError as error:
            self._failure = self._failure or error

    def last_meeting(self) -> list[float] | None:
        """On rank 0 the weights of the replicas when they last met, if they did and are still as many."""
        found = next((list(r["meeting_weights"]) for r in reversed(self.records) if "meeting_weights" in r), [])
        return found if len(found) == self.grid[0] else None

    def save(self, moment: Moment) -> None:
        """Start saving a checkpoint; raises SaveError if the one before it, or the metrics, could not be written."""
        self._check_metrics()
        merge, shares = self._merge(moment)
        self._saver.save(self._snapshot(moment), moment.score, merge, shares)
        self.saved = moment.step

    def inspection(self, moment: Moment) -> str:
        """Save a file to look at, from which no run resumes."""
        return str(self._saver.inspection(self._snapshot(moment), self._merge(moment)[0]))

    def _merge(self, moment: Moment) -> tuple[Array | None, Shares | None]:
        """The weights with which replicas that differ are merged, or of a population those of each parameter."""
        return (moment.merge, None) if moment.merge.ndim == 1 else (None, self.shares(moment.merge))

    def _open_metrics(self) -> Metrics | None:
        try:
            return Metrics(self.directory.metrics)
        except OSError as error:
            self._failure = error
            return None

    def _check_metrics(self) -> None:
        failed = np.array([float(self._failure is not None)])
        self.control.all_max(failed).wait()
        if failed[0]:
            reason = self._failure.strerror if self._failure else "rank 0 says why"
            raise SaveError(f"{self.directory.metrics}: the metrics were not written: {reason}")

    def _snapshot(self, moment: Moment) -> Snapshot:
        meetings = [record for record in self.records if "meeting_weights" in record]
        behind = self.schedule.behind
        scalars: dict[str, Any] = {"samples": moment.samples, "seconds": moment.seconds, "behind": behind}
        scalars["behind_samples"] = moment.behind_samples
        scalars["bounds"] = np.array(self.bounds, np.int64)
        scalars |= self.facts()
        if moment.quality is not None:
            scalars["validation"] = np.array([moment.quality.loss, moment.quality.accuracy])
        if meetings:
            scalars["meeting_step"] = np.array([record["step"] for record in meetings])
            scalars["meeting_weights"] = _table([record["meeting_weights"] for record in meetings])
        epoch, batch = divmod(moment.step, self.steps_per_epoch)
        return Snapshot(
            step=moment.step,
            epoch=epoch,
            seed=self.config.run.seed,
            grid=self.grid,
            dtype=self.config.run.dtype,
            configuration=self.config.tables(),
            vectors=self.vectors,
            data={"name": self.config.data.name, **self.data, "epoch": epoch, "batch": batch},
            random={"seed": self.config.run.seed, "step": moment.step},
            scalars=scalars,
            history=columns(self.records),
            alone=flight_vectors(self.schedule.flight(), flight_kind(self.replica, self.stage)),
        )

    def wait(self) -> None:
        """Return when everything is durable."""
        self._saver.wait()

    def close(self) -> None:
        """Return when everything is durable, and close the files; raises SaveError if the metrics are not."""
        self._saver.close()
        if self._metrics is not None:
            try:
                self._metrics.close()
            except OSError as error:
                self._failure = error
            self._metrics = None
        self._check_metrics()

    def abandon(self) -> None:
        """Close the files of a run that has failed; what is still on its way to the disk may get there or not."""
        with suppress(OSError):
            self._saver.close()
        if self._metrics is not None:
            with suppress(OSError):
                self._metrics.close()

    def drop(self) -> None:
        """Close the files without any message: other ranks have died."""
        self._saver.drop()
        if self._metrics is not None:
            with suppress(OSError):
                self._metrics.close()
            self._metrics = None


def _table(rows: Sequence[Sequence[float]]) -> Array:
    """Rows of one number per replica as (rows, R), with NaN where there were fewer replicas, on another grid."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return table


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on, and what had to be said about it; ``flight`` is what this rank had under way."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    quality: Quality | None = None
    notes: Sequence[str] = ()
    flight: Flight | None = None
    scalars: Mapping[str, Any] = field(default_factory=dict)


def bounds_of(path: Path, stages: int) -> tuple[int, ...]:
    """Where the depth of a saved run was cut, if it was cut into so many stages; else nothing."""
    with Checkpoint(path) as checkpoint:
        bounds = tuple(np.asarray(checkpoint.scalars.get("bounds", ())).tolist())
    return bounds if len(bounds) == stages + 1 else ()


def saved_model(path: Path, model: Model) -> Model:
    """The model as it is in a file: a population may have lost members."""
    population = population_of(model.network)
    if population is None:
        return model
    with Checkpoint(path) as checkpoint:
        members = sorted(population.members, key=lambda member: member.number)
        return with_members(model, population_in(checkpoint.scalars, members, population.outputs))


@dataclass(frozen=True)
class Stand:
    """Where a rank stands: in the grid, in the depth, and in which schedule. A flight goes on only where all agree."""

    grid: tuple[int, int, int]
    replica: int
    stage: int
    bounds: tuple[int, ...]
    schedule: Mapping[str, Any]
    fill: Callable[[Array, Array], None] = plain.fill
    """Copies values to where the vectors are."""

    def agrees(self, checkpoint: Checkpoint) -> bool:
        """Whether the file was saved by ranks that stood as these do."""
        return checkpoint.grid == self.grid and self.agrees_in_depth(checkpoint)

    def agrees_in_depth(self, checkpoint: Checkpoint) -> bool:
        """Whether it was saved by stages that were these, of however many replicas."""
        bounds = tuple(np.asarray(checkpoint.scalars.get("bounds", ())).tolist())
        same_cuts = checkpoint.grid[1] == self.grid[1] and (self.grid[1] == 1 or bounds == self.bounds)
        schedule = stored_tables(checkpoint)["schedule"]
        return same_cuts and all(schedule.get(key) == self.schedule[key] for key in self.schedule.keys() - FREE)


def resume(path: Path, parts: Mapping[str, Part], local: Sequence[VectorSpec], stand: Stand) -> Resumed:
    """Fill this rank's vectors from a checkpoint; ``local`` ones, and what was in flight, only if nothing has moved.

    Otherwise replicas that differ are merged, since what they are to agree on at the next meeting is not known any
    more; what was in flight is dropped, and the run goes back to the oldest batch that not all stages had applied.
    """
    with reading(path), Checkpoint(path) as checkpoint:
        step, was, scalars = checkpoint.step, checkpoint.grid, checkpoint.scalars
        same = stand.agrees(checkpoint)
        flight = read_flight(checkpoint, flight_kind(stand.replica, stand.stage)) if same else None
        keeps_heads = stand.agrees_in_depth(checkpoint)
        # a run of before gossip remembered anything goes on too
        local = [spec for spec in local if "/gossip" not in spec.kind or checkpoint.parameters(spec.kind)]
    heads = {name: part for name, part in parts.items() if part.auxiliary}
    model = {name: part for name, part in parts.items() if not part.auxiliary}
    vectors = [*model_vectors(parts, stand.stage), *local] if same else model_vectors(model)
    if keeps_heads and not same:
        vectors += model_vectors(heads, stand.stage)
    own = stand.replica if same else None
    notes = restore(path, vectors, stand.grid, own, whole=stand.grid[1] * stand.grid[2] == 1, fill=stand.fill)
    if was != stand.grid:
        before, now = (" x ".join(map(str, shape)) for shape in (was, stand.grid))
        notes = [f"the grid was {before} and is {now} (replicas x stages x shards)", *notes]
    if not same and any("/outer/momentum/" in spec.kind for spec in local):
        notes.append("the momentum of the outer optimizer begins at 0")
    if heads and not keeps_heads:
        notes.append("the auxiliary heads are drawn anew: those of the checkpoint are of other stages")
    behind = 0 if same else int(scalars.get("behind", 0))
    if behind:
        notes.append(f"what was in flight is dropped: the run goes back {behind} batches, from step {step}")
    samples = int(scalars["samples"]) - (int(scalars["behind_samples"]) if behind else 0)
    quality = Quality(*scalars["validation"].tolist()) if "validation" in scalars else None
    return Resumed(step - behind, samples, float(scalars["seconds"]), quality, notes, flight, scalars)
