"""How good each member of a population is on the validation split, and which of them still learn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpinn.array.typing import Array
from mpinn.consensus.consensus import Quality
from mpinn.nn.packed import Member, Packed, arranged

PREFIX = "member_"


def population_in(scalars: Mapping[str, Any], members: Sequence[Member], outputs: int) -> Packed:
    """The members that are still there, in the panels in which a checkpoint has them."""
    numbers, places = (np.asarray(scalars[PREFIX + name]) for name in ("panel", "place"))
    panels: dict[int, list[Member]] = {}
    for number in np.lexsort((places, numbers)).tolist():
        if numbers[number] >= 0:
            panels.setdefault(int(numbers[number]), []).append(members[number])
    return arranged(panels.values(), outputs)


class Ranking:
    """One row for each member by its number, the same on all ranks.

    ``loss`` and ``accuracy`` (M,) on the validation split, NaN before the first evaluation, and the accuracy of values
    always: the newest ones, or, if members have ``patience``, the best so far. ``left`` is the step after which a
    member left, ``stopped`` the one after which it learnt no more; 0 for members that are there, or learn. ``waited``:
    evaluations without improvement.
    """

    columns = ("loss", "accuracy", "left", "stopped", "waited")

    def __init__(self, members: int, classes: int, patience: int = 0):
        self.loss: Array = np.full(members, np.nan)
        self.accuracy: Array = np.full(members, np.nan)
        self.left, self.stopped, self.waited = np.zeros((3, members), np.int64)
        self.classes = classes
        self._patience = patience

    def arrays(self) -> dict[str, Array]:
        """All columns, for a checkpoint."""
        return {PREFIX + name: getattr(self, name) for name in self.columns}

    def restore(self, scalars: Mapping[str, Array | float]) -> None:
        """From what `arrays` gave."""
        for name in self.columns:
            getattr(self, name)[:] = scalars[PREFIX + name]

    @property
    def alive(self) -> Array:
        """Numbers of the members that have not left."""
        return np.flatnonzero(self.left == 0)

    def score(self) -> Array:
        """(M,), higher is better; of members that are not finite, or not measured, -inf."""
        score = self.accuracy if self.classes else -self.loss
        return np.where(np.isfinite(self.loss), score, -np.inf)

    def order(self) -> Array:
        """Numbers of the members that are there, from the best on: by score, then by loss, then by number."""
        members = self.alive
        loss = np.where(np.isfinite(self.loss), self.loss, np.inf)[members]
        best: Array = members[np.lexsort((members, loss, -self.score()[members]))]
        return best

    def take(self, sums: Array, step: int) -> tuple[Array, Array]:
        """Note an evaluation after ``step``. sums (M, 3): loss, right predictions, samples.

        Returns the numbers of the members that are better than ever, and of those that learn no more.
        """
        measured = np.flatnonzero((sums[:, 2] > 0) & (self.left == 0) & (self.stopped == 0))
        before = self.score()
        loss, accuracy = sums[measured, 0] / sums[measured, 2], sums[measured, 1] / sums[measured, 2]
        new = np.where(np.isfinite(loss), accuracy if self.classes else -loss, -np.inf)
        better = new > before[measured]
        taken = better if self._patience else np.ones_like(better)
        # a member that is not finite any more says so, unless it keeps its best weights
        self.loss[measured[taken]] = loss[taken]
        if self.classes:
            self.accuracy[measured[taken]] = accuracy[taken]
        if not self._patience:
            return measured[better], measured[:0]
        self.waited[measured] = np.where(better, 0, self.waited[measured] + 1)
        ended = measured[self.waited[measured] >= self._patience]
        self.stopped[ended] = step
        return measured[better], ended

    def worst(self, survive: float) -> Array:
        """Numbers of the members that are not among the best ``survive`` of those that are there; one always is."""
        order = self.order()
        return order[max(1, int(np.ceil(len(order) * survive - 1e-9))) :]

    def quality(self, number: int) -> Quality:
        """Of a member."""
        return Quality(float(self.loss[number]), float(self.accuracy[number]))

    def best(self) -> int:
        """The number of the best member."""
        return int(self.order()[0])
