"""The contract of a schedule: how a batch passes through the depth of one replica."""

from collections.abc import Mapping
from typing import Protocol

from mpinn.array.typing import Array
from mpinn.datasets.batches import Batch
from mpinn.nn.layer import Tree
from mpinn.nn.part import Part


class Update(Protocol):
    """What a schedule calls while and when a part's gradient is computed."""

    def ready(self, part: Part, span: slice) -> None:
        """The gradient of this slice is complete and will not be written again in this step."""
        ...

    def __call__(self, part: Part, batch: Batch) -> None:
        """The gradient of the whole part is complete: agree on it, clip it, and step the optimizer."""
        ...


class Schedule(Protocol):
    """Carries batches through the parts that this rank owns; it knows nothing of replicas."""

    @property
    def parts(self) -> Mapping[str, Part]:
        """What this rank owns, by name."""
        ...

    def step(self, batch: Batch, update: Update) -> Array | None:
        """One training step; the loss summed over the batch's samples where this rank computes it, unread."""
        ...

    def gradient(self, batch: Batch) -> Array | None:
        """Write the gradient of the batch's summed loss to the parts, with running statistics; nothing is updated."""
        ...

    def drain(self, update: Update) -> None:
        """Finish what is in flight."""
        ...

    def predict(self, x: Array, weights: Tree | None = None, state: Tree | None = None) -> Array:
        """Forward only, on x: (B, *shape), with the rank's own weights unless others are given.

        Never disturbs what is in flight.
        """
        ...
