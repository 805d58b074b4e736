"""No consensus: every replica is a run of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel
from mpinn.config import Deal
from mpinn.consensus.consensus import Measure, Meeting
from mpinn.datasets.batches import Batch
from mpinn.nn.layout import Layout
from mpinn.nn.part import Part


@dataclass(frozen=True, kw_only=True)
class IndependentOptions:
    """Replicas never meet; there is nothing to choose."""

    deal: ClassVar[Deal] = "fixed"

    def build(self, channel: Channel, steps_per_epoch: int) -> "Independent":
        """The consensus of the replicas that ``channel`` joins."""
        return Independent(channel)


class Independent:
    """Replicas never exchange anything. The model of the run is replica 0."""

    masks = False
    bucket = 0

    def __init__(self, channel: Channel):
        self.agreed = channel.size == 1
        self.merge: Array = np.eye(1, channel.size)[0]
        self.memory: Mapping[str, tuple[Layout, Array]] = {}

    def prepare(self, parts: Mapping[str, Part]) -> None:
        """Nothing is kept of a part."""

    def ready(self, part: Part, span: slice) -> None:
        """Nothing leaves."""

    def gradients(self, part: Part, batch: Batch) -> int:
        """The replica's own samples are all there are."""
        return batch.count

    def combine(self, part: Part) -> None:
        """Nothing is combined."""

    def adapted(self, part: Part) -> None:
        """Nothing is combined."""

    def drains(self, step: int, last: bool) -> bool:
        """Nobody meets."""
        return False

    def weights(self, parts: Mapping[str, Part], step: int, measure: Measure, last: bool) -> Meeting | None:
        """Nobody meets."""
        return None

    def close(self) -> None:
        """Nothing is under way."""
