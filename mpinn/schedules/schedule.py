"""The contract of a schedule: how a batch passes through the depth of one replica."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mpinn.array.typing import Array
from mpinn.datasets.batches import Batch
from mpinn.nn.layer import Tree
from mpinn.nn.part import Part


@dataclass(frozen=True, slots=True)
class Measured:
    """The loss of a batch, summed over its ``count`` samples of this replica, as an array that nobody has read yet."""

    index: int
    loss: Array
    count: int


@dataclass(slots=True)
class Staleness:
    """How many updates lie between the weights of a forward pass and those that its gradient is applied to.

    ``formula`` is the age that the schedule's definition gives to every gradient once all stages have work.
    """

    formula: float = 0.0
    updates: int = 0
    total: int = 0
    most: int = 0

    def add(self, age: int) -> None:
        """One more update, with a gradient of weights that were ``age`` updates old."""
        self.updates += 1
        self.total += age
        self.most = max(self.most, age)

    @property
    def mean(self) -> float:
        """0 without updates."""
        return self.total / self.updates if self.updates else 0.0


@dataclass(slots=True)
class Flight:
    """What is under way between two steps, for a checkpoint: ``facts`` for JSON, and arrays by name."""

    facts: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)


class Update(Protocol):
    """What a schedule calls while and when a part's gradient is computed."""

    @property
    def bucket(self) -> int:
        """In pieces of how many bytes the gradient is wanted as soon as it is there; 0 for all at once."""
        ...

    def ready(self, part: Part, span: slice) -> None:
        """The gradient of this slice is complete and will not be written again in this step."""
        ...

    def __call__(self, part: Part, batch: Batch) -> None:
        """The gradient of the whole part is complete: agree on it, clip it, and step the optimizer."""
        ...


class Schedule(Protocol):
    """Carries batches through the parts that this rank owns; it knows nothing of replicas.

    All ranks of a replica call its methods in the same order. What is predicted or measured goes over a channel of its
    own and never disturbs what is in flight.
    """

    staleness: Staleness

    @property
    def parts(self) -> Mapping[str, Part]:
        """What this rank owns, by name."""
        ...

    @property
    def behind(self) -> int:
        """Of the batches handed in, how many have not been applied by all stages."""
        ...

    def step(self, batch: Batch, update: Update) -> Sequence[Measured]:
        """One training step; the losses that became known in it on this rank."""
        ...

    def drain(self, update: Update) -> Sequence[Measured]:
        """Finish what is in flight; nothing is afterwards."""
        ...

    def met(self, anew: bool) -> None:
        """A meeting has changed the weights; if the replica begins ``anew``, nothing that is in flight counts."""
        ...

    def predict(self, x: Array, weights: Tree | None = None, state: Tree | None = None) -> Array | None:
        """Forward only, with the rank's own weights unless others are given; None where the depth does not end.

        x: (B, *shape), of which the ranks that the depth does not begin on use B alone.
        """
        ...

    def gradient(self, batch: Batch) -> None:
        """Write the gradient of the batch's summed loss to the parts, with running statistics; nothing is updated."""
        ...

    def across(self, values: Array) -> Array:
        """The sum of ``values`` over the ranks of this replica, on all of them; the array is written."""
        ...

    def chained(self, values: Sequence[float]) -> Sequence[float]:
        """A number for each layer of this rank, in order: those of all layers whose gradients are applied together."""
        ...

    def flight(self) -> Flight | None:
        """What is in flight, to be saved; None where that is never anything."""
        ...

    def resume(self, flight: Flight, batch: Callable[[int], Batch]) -> None:
        """Go on with what was in flight; ``batch`` gives the batches again, by index and in rising order."""
        ...
