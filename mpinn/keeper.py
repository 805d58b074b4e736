"""The state of a run in its directory: what is saved, and how it is found again."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel
from mpinn.config import Config
from mpinn.consensus.consensus import Consensus, Quality
from mpinn.consensus.statistics import merge_layer
from mpinn.nn.part import COUNTERS, Part
from mpinn.storage.checkpoint import SaveError, Saver
from mpinn.storage.directory import RunDirectory
from mpinn.storage.history import Metrics, Record, columns, read
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import restore
from mpinn.storage.schema import Scalar, Snapshot, VectorSpec
from mpinn.tally import Tally
from mpinn.trainer import Moment


def model_vectors(parts: Mapping[str, Part]) -> list[VectorSpec]:
    """What makes the model and its optimizer; on another grid the merged ones serve."""
    found = []
    for name, part in parts.items():
        found.append(VectorSpec(f"model/{name}", part.layout, part.weights))
        found.append(VectorSpec(f"state/{name}", part.state_layout, part.state))
        found += [VectorSpec(f"optimizer/{slot}/{name}", part.layout, vector) for slot, vector in part.slots.items()]
        found.append(VectorSpec(f"counters/{name}", COUNTERS, part.counters))
    return found


def grid_vectors(consensus: Consensus, tally: Tally) -> list[VectorSpec]:
    """What has a meaning on the same grid only."""
    memory = [VectorSpec(f"consensus/{name}", *pair) for name, pair in consensus.memory.items()]
    return [*memory, VectorSpec("tally/replica", tally.layout, tally.vector)]


@dataclass(eq=False)
class RunKeeper:
    """Saves the run's state, and keeps its metrics on rank 0."""

    directory: RunDirectory
    config: Config
    grid: tuple[int, int, int]
    steps_per_epoch: int
    control: Channel
    vectors: Sequence[VectorSpec]
    data: Mapping[str, Scalar] = field(default_factory=dict)
    """What describes the data, to be saved with the position in it."""
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        keep = self.config.checkpoint.keep
        self._saver = Saver(self.directory.path, self.control, keep=keep, merges={"state": merge_layer})
        self._failure: OSError | None = None
        self._metrics = self._open_metrics() if self.control.rank == 0 else None

    def rewind(self, step: int) -> None:
        """Go on from ``step``: later lines of the metrics are dropped, earlier ones are the history so far.

        Raises SaveError, on all ranks, if they cannot be written.
        """
        if self._metrics is not None:
            try:
                self._metrics.rewind(step)
                self.records = list(read(self.directory.metrics))
            except OSError as error:
                self._failure = error
        self._check_metrics()

    def record(self, record: Record) -> None:
        """Append to the metrics. The other ranks hear at the next save if that failed: now they are in messages."""
        if self._metrics is None:
            return
        self.records.append(record)
        try:
            self._metrics.append(record)
        except OSError as error:
            self._failure = self._failure or error

    def last_meeting(self) -> list[float] | None:
        """On rank 0 the weights of the replicas when they last met, if they did."""
        return next((list(r["meeting_weights"]) for r in reversed(self.records) if "meeting_weights" in r), None)

    def save(self, moment: Moment) -> None:
        """Start saving a checkpoint; raises SaveError if the one before it, or the metrics, could not be written."""
        self._check_metrics()
        self._saver.save(self._snapshot(moment), moment.score, moment.merge)

    def inspection(self, moment: Moment) -> str:
        """Save a file to look at, from which no run resumes."""
        return str(self._saver.inspection(self._snapshot(moment), moment.merge))

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
        scalars: dict[str, Any] = {"samples": moment.samples, "seconds": moment.seconds}
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


def _table(rows: Sequence[Sequence[float]]) -> Array:
    """Rows of one number per replica as (rows, R), with NaN where there were fewer replicas, on another grid."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return table


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on, and what had to be said about it."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    quality: Quality | None = None
    notes: Sequence[str] = ()


def resume(
    path: Path, model: Sequence[VectorSpec], local: Sequence[VectorSpec], grid: tuple[int, int, int], replica: int
) -> Resumed:
    """Fill this rank's vectors from a checkpoint; ``local`` ones only if the grid is the one that was saved."""
    with Checkpoint(path) as checkpoint:
        step, was, scalars = checkpoint.step, checkpoint.grid, checkpoint.scalars
    notes = restore(path, [*model, *local] if was == grid else model, grid, replica)
    if was != grid:
        before, now = (" x ".join(map(str, shape)) for shape in (was, grid))
        notes = [f"the grid was {before} and is {now} (replicas x stages x shards)", *notes]
    quality = Quality(*scalars["validation"].tolist()) if "validation" in scalars else None
    return Resumed(step, int(scalars["samples"]), float(scalars["seconds"]), quality, notes)
