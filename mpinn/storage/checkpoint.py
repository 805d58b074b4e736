"""Saving checkpoints while training goes on."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mpinn.array.typing import Array
from mpinn.errors import FatalError
from mpinn.storage import writer
from mpinn.storage.collect import Collection, send
from mpinn.storage.directory import RunDirectory
from mpinn.storage.merge import MergeLayer, Shares, mean_weights
from mpinn.storage.schema import Snapshot
from mpinn.storage.survey import Channel, Host, encode, survey, survey_alone
from mpinn.storage.writer import Header, Queue

BUDGET = 256 << 20
"""Bytes that may wait for the disk before the main thread does."""

RUNNING, DURABLE, FAILED = range(3)
MESSAGE = 1000


class SaveError(FatalError, OSError):
    """A checkpoint could not be written; the ones before it are as they were."""


class Saver:
    """Writes snapshots into a run directory; every method is collective over the control channel.

    Each rank holds (its part of) one replica, by default that of its own number. Vectors that agree are written once;
    where they differ, each is written below ``/replica/<r>``, their mean under the ordinary path. ``merges`` maps the
    first name of a kind (``state``) to the function that merges its layers in place of the mean; rank 0 then holds
    one layer of all replicas, else one block. All messages are sent within ``save``, from the calling thread; a thread
    of rank 0 does the disk's work, and at most ``budget`` bytes wait for it.
    """

    def __init__(
        self,
        directory: Path,
        channel: Channel,
        *,
        replica: int | None = None,
        keep: int = 3,
        merges: Mapping[str, MergeLayer] | None = None,
        host: Host = np.asarray,
        budget: int = BUDGET,
    ):
        if keep < 1:
            raise ValueError(f"at least one checkpoint is kept, not {keep}")
        self._directory = RunDirectory(directory)
        self._channel = channel
        self._replica = channel.rank if replica is None else replica
        self._keep = keep
        self._merges = merges or {}
        self._host = host
        self._budget = budget
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._future: Future[None] | None = None
        self._pending = False
        self._saving = ""
        if channel.rank == 0:
            self._directory.remove_partial()

    def save(
        self, snapshot: Snapshot, score: float | None = None, merge: Array | None = None, shares: Shares | None = None
    ) -> None:
        """Take the snapshot; returns when the vectors may change again, waits first for a save that is under way.

        ``score`` decides which checkpoint is the best (higher is better); ``merge`` (R,) are the weights of the mean of
        replicas that differ, which sum to 1; without it each has 1 / R. ``shares`` says of which parameters elements
        have weights of their own.
        """
        header = Header.of(snapshot, score)
        self._collect(
            self._directory.checkpoint(snapshot.step),
            snapshot,
            mean_weights(merge, snapshot.grid[0]),
            lambda queue: writer.save(self._directory, header, queue, self._keep),
            shares,
        )

    def inspection(self, snapshot: Snapshot, merge: Array | None = None) -> Path:
        """Save a file to look at, which no run resumes from; returns its path when it is durable.

        Weights that give no mean, because no replica is finite, are taken as uniform.
        """
        path, header = self._directory.inspection(snapshot.step), Header.of(snapshot, None)
        if merge is not None and not (np.isfinite(merge).all() and np.any(merge)):
            merge = None
        self._collect(
            path,
            snapshot,
            mean_weights(merge, snapshot.grid[0]),
            lambda queue: writer.save_aside(path, header, queue),
        )
        self.wait()
        return path

    def wait(self) -> None:
        """Return when the last save is durable; raises SaveError, on all ranks, if it failed."""
        if self._pending:
            if self._future is not None:
                self._future.exception()
            self._agree()

    def poll(self) -> bool:
        """As ``wait``, without waiting: whether there is no save under way."""
        if self._pending:
            self._agree()
        return not self._pending

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def drop(self) -> None:
        """End the thread, without any message: other ranks have died. A file that is not complete is removed."""
        self._thread.shutdown()

    def _collect(
        self,
        path: Path,
        snapshot: Snapshot,
        weights: Array,
        job: Callable[[Queue], None],
        shares: Shares | None = None,
    ) -> None:
        self.wait()
        self._saving = path.name
        shared = survey(self._channel, self._replica, snapshot.vectors, self._host)
        alone = survey_alone(self._channel, self._replica, snapshot.alone)
        self._pending = True
        if self._channel.rank != 0:
            for columns, specs in ((shared, snapshot.vectors), (alone, snapshot.alone)):
                for column in columns:
                    if self._channel.rank in column.ranks:
                        send(self._channel, column, encode(specs), specs, self._host)
            return
        with Queue(self._budget) as queue:
            self._future = self._thread.submit(job, queue)
            for columns, specs in ((shared, snapshot.vectors), (alone, snapshot.alone)):
                collection = Collection(self._channel, specs, weights, self._merges, self._host, queue, shares)
                for column in columns:
                    collection.column(column, encode(specs))

    def _agree(self) -> None:
        outcome = np.zeros(1 + MESSAGE, dtype=np.uint8)
        error = self._outcome(outcome)
        self._channel.broadcast(outcome, 0).wait()
        self._pending = outcome[0] == RUNNING
        if not self._pending:
            self._future = None
        if outcome[0] == FAILED:
            raise SaveError(outcome[1:].tobytes().rstrip(b"\0").decode("utf-8", errors="ignore")) from error

    def _outcome(self, outcome: Array) -> BaseException | None:
        if self._future is None or not self._future.done():
            outcome[0] = RUNNING
            return None
        error = self._future.exception()
        outcome[0] = DURABLE if error is None else FAILED
        if error is not None:
            said = f"{self._directory.path}: the checkpoint was not saved: {self._saving}: {_reason(error)}"
            text = said.encode()[:MESSAGE]
            outcome[1 : 1 + len(text)] = np.frombuffer(text, dtype=np.uint8)
        return error


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
