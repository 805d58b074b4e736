"""The layer-wise method (Akintoye et al., arXiv 2207.11019), read as FDG on the measured partition.

Stages keep only their inputs and run the forward pass again. The forward pass of a new batch and the backward pass of
an older one need the same weights, and neither needs what the other makes, so they may run side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mpinn.errors import InputError
from mpinn.nn.loss import Loss
from mpinn.nn.network import Whole
from mpinn.nn.part import Part
from mpinn.schedules.beside import Beside
from mpinn.schedules.decoupled import Decoupled, DecoupledOptions
from mpinn.schedules.stage import Place, Stage


@dataclass(frozen=True, kw_only=True)
class LayerwiseOptions(DecoupledOptions):
    """fdg that keeps inputs only (arXiv 2207.11019)."""

    order: Literal["forward_first", "backward_first"] = "forward_first"
    versions: Literal["stash", "mixed"] = "mixed"
    recompute: bool = True
    overlap: Literal["auto", "always", "never"] = "auto"
    """Whether the forward pass of an iteration runs beside its backward pass, in a thread of its own with buffers of
    its own; ``auto`` if every rank of the machine has a second core. Results are the same to the last bit."""

    def __post_init__(self) -> None:
        if self.overlap == "always" and self.order == "backward_first":
            why = "with order = backward_first the forward pass needs the weights that the backward pass leads to"
            raise InputError("schedule.overlap", f"always: {why}; choose forward_first, or overlap = auto")

    def build(self, part: Part, loss: Loss, seed: int, place: Place) -> "Decoupled":
        """The schedule of one stage."""
        stage = Stage(part, loss, seed, place)
        overlaps = self._overlaps(place.second_core)[0] and not stage.last
        return Decoupled(stage, self, Beside() if overlaps else None)

    def remarks(self, second_core: bool, network: Whole, size: int) -> Sequence[str]:
        """Whether passes overlap, and why."""
        overlaps, why = self._overlaps(second_core)
        return (f"forward and backward passes {'run side by side' if overlaps else 'take turns'}: {why}",)

    def _overlaps(self, second_core: bool) -> tuple[bool, str]:
        if self.overlap != "auto":
            return self.overlap == "always", f"schedule.overlap is {self.overlap}"
        if self.order == "backward_first":
            return False, "the forward pass needs the weights that the backward pass leads to"
        return second_core, "every rank has a second core" if second_core else "not every rank has a second core"
