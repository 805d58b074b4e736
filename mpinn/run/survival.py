"""Training that goes on when ranks have died: who is left, from which step they go on, and what is said of it."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

import numpy as np

from mpinn.comm.grid import World, shape_of
from mpinn.comm.launch import speak
from mpinn.config import Config
from mpinn.errors import FatalError, InputError
from mpinn.partition.cuts import Cuts
from mpinn.run.binding import numbers
from mpinn.run.checks import Start
from mpinn.run.keeper import RunKeeper
from mpinn.run.watchdog import Watchdog
from mpinn.storage.directory import RunDirectory
from mpinn.storage.history import Record
from mpinn.storage.lock import Lock
from mpinn.training.boundary import Boundaries, Boundary

Shape = tuple[int, int, int]
"""Replicas, stages, shards."""


def left(shape: Shape, living: Sequence[int]) -> tuple[int, ...]:
    """Those of the living whose replica has lost no rank."""
    each = shape[1] * shape[2]
    counts = np.bincount([rank // each for rank in living], minlength=shape[0])
    return tuple(rank for rank in living if counts[rank // each] == each)


@dataclass
class Death:
    """What became of a run when ranks died; ranks and replicas by the numbers with which the job began.

    retired: living ranks of the replicas that lost one. noticed: the last step that one of the others had done, and
    resumed: the one after which they go on, -1 for the beginning; seconds: from that step to when they do.
    """

    dead: tuple[int, ...]
    retired: tuple[int, ...]
    replicas: tuple[int, ...]
    before: Shape
    after: Shape
    noticed: int = -1
    resumed: int = -1
    seconds: float = 0.0

    def sentences(self, batch: int) -> list[str]:
        """For the log."""
        are = "has" if len(self.dead) == 1 else "have"
        said = [f"{_ranks(self.dead)} ({_replicas(self.replicas)}) {are} died, noticed after step {self.noticed}"]
        if self.retired:
            retire = "retires" if len(self.retired) == 1 else "retire"
            said.append(f"{_ranks(self.retired)} {retire}: without all its stages a replica cannot go on")
        before, after = (" x ".join(map(str, shape)) for shape in (self.before, self.after))
        said.append(f"the grid was {before} and is {after} (replicas x stages x shards); the batch stays {batch}")
        ago = f"step {self.resumed}, which was {self.seconds:.2f} s ago" if self.resumed >= 0 else "the beginning"
        return [*said, f"training goes on from {ago}"]


def outline(death: Mapping[str, Any]) -> str:
    """A `Death`, as a summary has it, in few words."""
    died = f"{_ranks(death['dead'])} {_replicas(death['replicas'])} died after step {death['noticed']}"
    return f"{died}, {death['after'][0]} of {death['before'][0]} replicas went on from step {max(0, death['resumed'])}"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {numbers(ranks)}"


def _replicas(replicas: Sequence[int]) -> str:
    return f"of replica{'s' * (len(replicas) > 1)} {numbers(replicas)}"


class Survival:
    """What outlives an attempt at training on this rank."""

    def __init__(self, shape: Shape):
        self.ranks = tuple(range(shape[0] * shape[1] * shape[2]))
        """Those that are left, as the job numbered them when it began."""
        self.deaths: list[Death] = []
        self.begin: Boundary | None = None
        """What an attempt begins with; None for what the start begins with."""
        self.cuts: Cuts | None = None
        """Those of the attempt before, on all ranks or on none."""
        self.prepared = False
        """Whether the run directory is ready."""
        self.records: list[Record] = []
        """What the attempts have recorded, whoever wrote it, after the step ``since`` with which the first began."""
        self.since: int | None = None
        self._shape = shape
        self._keeper: RunKeeper | None = None
        self._boundaries: Boundaries | None = None
        self._step: Callable[[], int] = lambda: 0
        self._moment = 0.0
        self._told = 0

    @property
    def replicas(self) -> tuple[int, ...]:
        """The replicas that are left, as the job numbered them."""
        each = self._shape[1] * self._shape[2]
        return tuple(dict.fromkeys(rank // each for rank in self.ranks))

    @property
    def resumes(self) -> bool:
        """Whether an attempt goes on where another was, which has said how the run began."""
        return bool(self.deaths) and self.deaths[-1].resumed >= 0

    def adapted(self, config: Config) -> Config:
        """With the replicas that there are, if the configuration gives their number."""
        replicas = len(self.replicas) if config.grid.replicas else 0
        return replace(config, grid=replace(config.grid, replicas=replicas))

    def stay(self, living: Sequence[int]) -> list[int]:
        """Those of the living that go on; all are counted among those that there were."""
        chosen = left(self._shape, [self.ranks[place] for place in living])
        return [place for place in living if self.ranks[place] in chosen]

    def track(self, keeper: RunKeeper, boundaries: Boundaries, cuts: Cuts, step: Callable[[], int]) -> None:
        """An attempt is built, and this would be left of it; ``step``: the last one that this rank has done."""
        self._keeper, self._boundaries, self.cuts, self._step = keeper, boundaries, cuts, step
        self.begin = None
        if self.since is None:
            self.since = boundaries.latest

    def end(self) -> None:
        """End an attempt that has failed; without any message."""
        if self._keeper is not None:
            self._keeper.drop()
            last = max([self.since or 0, *(record["step"] for record in self.records)])
            self.records += [record for record in self._keeper.records if record["step"] > last]
            self._keeper = None
        done = self._step()
        self._step = lambda: done
        gc.collect()

    def bury(self, living: Sequence[int]) -> Death:
        """Only the ``living`` are left, counted as in `stay`, and of them those that do."""
        ranks, replicas, before = self.ranks, self.replicas, self._grid()
        alive = [ranks[place] for place in living]
        self.ranks = left(self._shape, alive)
        dead = tuple(rank for rank in ranks if rank not in alive)
        retired = tuple(rank for rank in alive if rank not in self.ranks)
        lost = tuple(replica for replica in replicas if replica not in self.replicas)
        self.deaths.append(Death(dead, retired, lost, before, self._grid()))
        return self.deaths[-1]

    def _grid(self) -> Shape:
        return len(self.replicas), self._shape[1], self._shape[2]

    @property
    def _latest(self) -> int:
        """The step of the last boundary, -1 without one; where an attempt was not yet built, that with which it began.

        Others may have been built, and have that one: it is where they stood when nothing was in flight.
        """
        if self.begin is not None:
            return self.begin.standing.resumed
        return -1 if self._boundaries is None else self._boundaries.latest

    def agree(self, world: World) -> None:
        """Find the step from which those that are left go on: all have it, and so had those that died."""
        told = np.array([-self._latest, self._step(), self.prepared], np.int64)
        world.control.all_max(told).wait()
        step, self.prepared, resumed = -int(told[0]), bool(told[2]), -1
        if self._boundaries is None or step < 0:
            # one was not yet built, and all ask for the cuts again
            self.begin, self._boundaries, self.since, self.cuts = None, None, None, None
        else:
            self.begin = self.begin or self._boundaries.at(step)
            resumed, self._moment = self.begin.standing.resumed, self.begin.standing.moment
        self.records = [record for record in self.records if record["step"] <= resumed]
        for death in self.deaths[self._told :]:
            death.noticed, death.resumed = int(told[1]), resumed

    def say(self, batch: int) -> list[str]:
        """What is to be said of the last deaths; training goes on now. Called by all ranks."""
        fresh, self._told = self.deaths[self._told :], len(self.deaths)
        for death in fresh:
            death.seconds = monotonic() - self._moment if death.resumed >= 0 else 0.0
        return [said for death in fresh for said in death.sentences(batch)]


def survive(world: World, start: Start, watchdog: Watchdog, work: Callable[[World, Survival], int]) -> int:
    """What ``work`` returns, called again with those that are left as often as ranks have died meanwhile.

    0 on a rank whose replica has lost another. Raises FatalError when no replica is whole.
    """
    if world.job is None:
        raise AssertionError("refused at the door: one rank alone")
    grid, own = start.config.grid, world.rank
    survival = Survival(shape_of(world.size, grid.replicas, grid.stages, grid.shards))

    def attempt() -> int:
        there = world.reopened()
        watchdog.follow(there)
        if survival.deaths:
            survival.agree(there)
        return work(there, survival)

    while (code := world.job.attempt(attempt)) is None:
        watchdog.step = None
        survival.end()
        start.lock.release()
        death = survival.bury(world.job.shrink(survival.stay))
        if own == min(survival.ranks or death.retired):
            speak()
        if not survival.ranks:
            told = f"{_ranks(death.dead)} died, and no replica has all its ranks"
            raise FatalError(f"{told}: the same command goes on from the newest checkpoint, if there is one")
        if own in death.retired:
            return 0
    return code


def take_over(directory: RunDirectory, lock: Lock) -> bytes:
    """The first that is written by those that are left, by one rank; returns what `mpinn.run.checks.prepare` does."""
    try:
        said = lock.take(directory.lock)
        directory.summary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError("run.directory", f"{directory.path} cannot be written: {error.strerror}") from error
    return said.encode()
