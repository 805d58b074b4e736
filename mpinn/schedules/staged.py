"""What every stage does alike, whatever its schedule: it predicts and measures aside, in turn with its neighbours."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from mpinn.array.typing import Array
from mpinn.datasets.batches import Batch
from mpinn.nn.layer import Tree
from mpinn.nn.part import Part
from mpinn.schedules.schedule import Flight, Measured, Staleness, Update
from mpinn.schedules.stage import Stage


class Staged(ABC):
    """One stage that trains in steps of its own: as it stands, nothing is in flight between two of them."""

    def __init__(self, stage: Stage):
        self.parts: Mapping[str, Part] = {stage.part.name: stage.part}
        self.staleness = Staleness()
        self._stage = stage

    @property
    def behind(self) -> int:
        """Of the batches handed in, how many have not been applied by all stages."""
        return 0

    @abstractmethod
    def step(self, batch: Batch, update: Update) -> Sequence[Measured]:
        """One training step; the losses that became known in it on this rank."""

    def drain(self, update: Update) -> Sequence[Measured]:
        """Finish what is in flight."""
        return ()

    def met(self, anew: bool) -> None:  # noqa: B027
        """Nothing is in flight that was made with other weights."""

    def predict(self, x: Array, weights: Tree | None = None, state: Tree | None = None) -> Array | None:
        """Forward only, with the weights that the stages have now unless others are given."""
        return self._stage.predict(x, weights, state)

    def gradient(self, batch: Batch) -> None:
        """The gradient of the batch's summed loss, with running statistics and no update."""
        self._stage.gradient(batch)

    def across(self, values: Array) -> Array:
        """The sum of ``values`` over the stages."""
        return self._stage.across(values)

    def chained(self, values: Sequence[float]) -> Sequence[float]:
        """All stages apply the gradient of the same batch."""
        return self._stage.chained(values)

    def flight(self) -> Flight | None:
        """What is in flight, to be saved."""
        return None

    def resume(self, flight: Flight, batch: Callable[[int], Batch]) -> None:
        """Go on with what was in flight."""
        raise ValueError("nothing of this schedule is ever in flight")
