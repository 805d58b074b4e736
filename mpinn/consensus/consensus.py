"""The contract of a consensus: how replicas of the same weights are kept in agreement."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mpinn.array.typing import Array
from mpinn.datasets.batches import Batch
from mpinn.nn.layout import Layout
from mpinn.nn.part import Part


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a replica's model is on some samples: mean loss and share of right predictions."""

    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Qualities:
    """That of each group of a replica, (G,): of a network, which is one, or of the members of a population."""

    loss: Array
    accuracy: Array


class Measure(Protocol):
    """What a score may ask about this replica, as it is after its local steps. Nothing is measured unless asked for."""

    def validation(self) -> Qualities:
        """On the validation split, which all replicas share."""
        ...

    def shard(self) -> Qualities:
        """On the replica's own training samples."""
        ...

    def fisher(self, part: Part, out: Array, samples: int) -> None:
        """Write the diagonal of the Fisher information, estimated with ``samples`` samples, in the part's layout."""
        ...

    def across(self, values: Array) -> Array:
        """The sum of ``values`` over the ranks that hold this replica, on all of them; the array is written."""
        ...


@dataclass(frozen=True, slots=True)
class Meeting:
    """What happened when the replicas met: scores and weights, both (R,), and the replicas that were re-seeded.

    ``weights`` is None when no replica, or no score, was finite, so that there was nothing to combine. Of a population
    both are means over the members that some replica has as they should be, and ``members`` counts those that were
    re-seeded, once for each replica on which they were.
    """

    scores: Array
    weights: Array | None
    reseeded: tuple[int, ...] = ()
    members: int = 0


class Consensus(Protocol):
    """Keeps replicas in agreement; it knows nothing of depth."""

    masks: bool
    """Whether a replica that is not finite is left out at the next meeting, so that the run may go on."""

    bucket: int
    """Bytes in which the gradient leaves while the rest of it is still computed; 0 if no piece ever does."""

    @property
    def agreed(self) -> bool:
        """Whether all replicas hold equal weights at this step boundary (running statistics may differ)."""
        ...

    @property
    def merge(self) -> Array:
        """The weights, (R,) and adding up to 1, with which replicas that differ are merged to one model.

        (R, M), if each member of this rank's part of a population has weights of its own.
        """
        ...

    @property
    def memory(self) -> Mapping[str, tuple[Layout, Array]]:
        """What the consensus remembers between steps, which a checkpoint keeps."""
        ...

    def prepare(self, parts: Mapping[str, Part]) -> None:
        """Make room for what is kept of ``parts``; before training, and before ``memory`` is saved or restored.

        Once more when a population has lost members: what was remembered of each of them is forgotten.
        """
        ...

    def ready(self, part: Part, span: slice) -> None:
        """A piece of the gradient is complete: a bucket may leave."""
        ...

    def gradients(self, part: Part, batch: Batch) -> int:
        """Complete the summed gradient that this replica will apply; how many samples it is over (0: apply nothing)."""
        ...

    def combine(self, part: Part) -> None:
        """Between gradient and optimizer (combine-then-adapt gossip); also where there is nothing to apply."""
        ...

    def adapted(self, part: Part) -> None:
        """The optimizer has moved the weights (adapt-then-combine gossip), or had nothing to apply."""
        ...

    def drains(self, step: int, last: bool) -> bool:
        """Whether nothing may be in flight in the replicas when `weights` is called for this step."""
        ...

    def weights(self, parts: Mapping[str, Part], step: int, measure: Measure, last: bool) -> Meeting | None:
        """At the boundary after ``step`` steps: meet if it is time, or if this was the last step."""
        ...

    def close(self) -> None:
        """Training ends here, on all replicas: complete what is under way."""
        ...


class Passive:
    """What a consensus does at the moments that do not concern it: nothing."""

    masks = False
    bucket = 0

    def prepare(self, parts: Mapping[str, Part]) -> None:
        """Nothing is kept of a part."""

    def ready(self, part: Part, span: slice) -> None:
        """Gradients stay at home."""

    def gradients(self, part: Part, batch: Batch) -> int:
        """The replica's own samples are all there are."""
        return batch.count

    def combine(self, part: Part) -> None:
        """Nothing is mixed."""

    def adapted(self, part: Part) -> None:
        """Nothing is mixed."""

    def drains(self, step: int, last: bool) -> bool:
        """Nobody meets."""
        return False

    def weights(self, parts: Mapping[str, Part], step: int, measure: Measure, last: bool) -> Meeting | None:
        """Nobody meets."""
        return None

    def close(self) -> None:
        """Nothing is under way."""
