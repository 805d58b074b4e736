"""No consensus: every replica is a run of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel
from mpinn.config import Deal
from mpinn.consensus.consensus import Passive
from mpinn.nn.layout import Layout


@dataclass(frozen=True, kw_only=True)
class IndependentOptions:
    """Replicas never meet; there is nothing to choose."""

    deal: ClassVar[Deal] = "fixed"

    def build(self, channel: Channel, steps_per_epoch: int) -> "Independent":
        """The consensus of the replicas that ``channel`` joins."""
        return Independent(channel)


class Independent(Passive):
    """Replicas never exchange anything. The model of the run is replica 0."""

    def __init__(self, channel: Channel):
        self.agreed = channel.size == 1
        self.merge: Array = np.eye(1, channel.size)[0]
        self.memory: Mapping[str, tuple[Layout, Array]] = {}
