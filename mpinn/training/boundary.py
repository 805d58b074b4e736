"""What a rank keeps of its state, so that it can go on from there when others have died: copies, in memory."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpinn.array.typing import Array, Shape
from mpinn.config import KEPT
from mpinn.consensus.consensus import Quality
from mpinn.storage.schema import VectorSpec


@dataclass(frozen=True)
class Standing:
    """Where a run stands after ``step`` steps, of which the last ``behind`` are not yet applied by all stages.

    samples, seconds: of training since the run began, of them ``behind_samples`` in the steps that are behind.
    moment: when that was, on the clock of this rank.
    """

    step: int
    samples: int
    seconds: float
    quality: Quality | None
    behind: int
    behind_samples: int
    moment: float

    @property
    def resumed(self) -> int:
        """The step after which a run goes on from here, without what was in flight."""
        return self.step - self.behind


@dataclass(frozen=True)
class Boundary:
    """The state of this rank; ``replicas`` are those that there were, by the numbers with which the job began."""

    standing: Standing
    replicas: tuple[int, ...]
    specs: Sequence[VectorSpec]
    """The copies, with their kinds and layouts."""

    def fill(self, specs: Sequence[VectorSpec], replicas: Sequence[int]) -> None:
        """Give the vectors of this rank back what they held, for those of the replicas that are left.

        What has a share for each replica, as the weights of a merge have, keeps the shares of those; they sum to 1.
        """
        kept = {spec.kind: spec for spec in self.specs}
        for spec in specs:
            source = kept[spec.kind]
            if _shapes(spec) == _shapes(source):
                np.copyto(spec.vector, source.vector)
                continue
            for entry, other in zip(spec.layout, source.layout, strict=True):
                values = source.vector[other.slice].reshape(other.shape)
                if entry.shape != other.shape:
                    values = self._left(values, replicas)
                np.copyto(spec.vector[entry.slice].reshape(entry.shape), values)

    def _left(self, shares: Array, replicas: Sequence[int]) -> Array:
        left = shares[[self.replicas.index(replica) for replica in replicas]]
        total = left.sum()
        return left / total if total > 0 else np.full(len(replicas), 1 / len(replicas))


def _shapes(spec: VectorSpec) -> list[Shape]:
    return [entry.shape for entry in spec.layout]


class Boundaries:
    """The last boundaries of this rank.

    Boundaries are steps that are the same on all ranks, and no rank goes on from one before all have come to the one
    before it. So all that live hold the one that is the latest of the last of them.
    """

    def __init__(self, specs: Sequence[VectorSpec], replicas: tuple[int, ...]):
        self._specs = specs
        self._replicas = replicas
        self._kept: deque[Boundary] = deque(maxlen=KEPT)

    def keep(self, standing: Standing) -> None:
        """Copy the state; the oldest copy is written over."""
        if self._kept and self._kept[-1].standing.step == standing.step:
            return
        full = len(self._kept) == KEPT
        copies = self._kept.popleft().specs if full else [_like(spec) for spec in self._specs]
        for spec, copy in zip(self._specs, copies, strict=True):
            np.copyto(copy.vector, spec.vector)
        self._kept.append(Boundary(standing, self._replicas, copies))

    @property
    def latest(self) -> int:
        """The step of the last one."""
        return self._kept[-1].standing.step

    def at(self, step: int) -> Boundary:
        """That of a step, which must be among the last."""
        return next(boundary for boundary in self._kept if boundary.standing.step == step)


def _like(spec: VectorSpec) -> VectorSpec:
    return VectorSpec(spec.kind, spec.layout, np.empty_like(spec.vector))
