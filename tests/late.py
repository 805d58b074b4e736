"""A memory whose copies and computing happen only when somebody waits for them, as they may on a device."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mpinn.array.typing import Array, Dtype, Shape
from mpinn.comm.memory import Event

POISON = 0xAB


class Line:
    """Work in the order in which it was asked for."""

    def __init__(self, name: str, diary: list[str]) -> None:
        self.name = name
        self.diary = diary
        self.work: list[Callable[[], object]] = []
        self.done = 0

    def ask(self, work: Callable[[], object]) -> "Moment":
        self.work.append(work)
        return Moment(self, len(self.work))

    def run(self, until: int) -> None:
        while self.done < until:
            self.done += 1
            self.work[self.done - 1]()


@dataclass(frozen=True)
class Moment:
    line: Line
    count: int

    @property
    def done(self) -> bool:
        """Every question lets one piece of work be done."""
        if self.line.done < self.count:
            self.line.run(self.line.done + 1)
            return False
        return True

    def come(self) -> None:
        self.line.run(self.count)

    def synchronize(self) -> None:
        if self.line.done < self.count:
            self.line.diary.append(f"wait for {self.line.name}")
        self.come()


@dataclass
class LateMemory:
    """Owns all arrays but those in ``host``. ``diary``: what was asked of it, and what the host waited for."""

    diary: list[str] = field(default_factory=list)
    host: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.computing, self.outward, self.inward = (Line(name, self.diary) for name in ("computing", "out", "in"))

    def owns(self, array: Array) -> bool:
        return not any(np.may_share_memory(array, known) for known in self.host)

    def compute(self, work: Callable[[], object]) -> Moment:
        return self.computing.ask(work)

    def now(self, fresh: bool = False) -> Moment:
        return Moment(self.computing, len(self.computing.work))

    def pinned_empty(self, shape: Shape, dtype: Dtype) -> Array:
        self.diary.append("pinned")
        return np.full(shape, POISON, np.uint8).view(dtype)

    def copy_out(self, into: Array, source: Array, after: tuple[Event, ...]) -> Moment:
        return self._copy(self.outward, into, source, after)

    def copy_in(self, into: Array, source: Array, after: tuple[Event, ...]) -> Moment:
        return self._copy(self.inward, into, source, after)

    def _copy(self, line: Line, into: Array, source: Array, after: tuple[Event, ...]) -> Moment:
        self.diary.append(line.name)

        def copy() -> None:
            for event in after:
                if isinstance(event, Moment):
                    event.come()
            np.copyto(into, source)

        return line.ask(copy)

    def follow(self, event: Event) -> None:
        self.diary.append("follow")
        if isinstance(event, Moment):
            self.compute(event.come)

    def finish(self) -> None:
        """All computing that was asked for."""
        self.now().come()
