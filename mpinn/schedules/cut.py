"""What every schedule with stages is told: where the depth is cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

Cut: TypeAlias = Literal["measured", "estimated"] | tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StagedOptions:
    """``cut``: where the depth is cut into stages.

    ``measured``: so that the slowest stage is as fast as can be, from times that were measured on this machine and are
    kept; ``estimated``: the same from counts of operations; or a list of the layers with which the second and later
    stages begin.
    """

    cut: Cut = "measured"

    staged: ClassVar[bool] = True

    def remarks(self, second_core: bool) -> Sequence[str]:
        """What the log says of the schedule besides its name and cuts."""
        return ()
