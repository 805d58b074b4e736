"""What every schedule with stages is told, and says: where the depth is cut, and what a stage owns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, TypeAlias

from mpinn.array.typing import Shape
from mpinn.models.model import Model, ModelOptions
from mpinn.nn.network import Whole

Bounds: TypeAlias = Sequence[int]
"""The layers ``bounds[k]`` up to ``bounds[k + 1]`` are piece k of the depth."""
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

    sampled: ClassVar[bool] = False
    """Whether the samples enter every stage, not only the first one."""

    def settled(self, stages: int) -> Self:
        """The options as they are used on so many stages."""
        return self

    def pieces(self, stages: int) -> int:
        """Into how many pieces the depth is cut."""
        return stages

    def frame(self, model: Model) -> Model:
        """The model with the stem and the head that no cut separates from themselves."""
        return model

    def network(self, options: ModelOptions, model: Model, bounds: Bounds) -> Whole:
        """What is trained, altogether."""
        return model.network

    def share(self, network: Whole, model: Model, bounds: Bounds, stage: int, stages: int) -> tuple[Whole, Shape]:
        """What a stage owns of it, and the shape of a sample that enters there."""
        layers = model.network
        return layers[bounds[stage] : bounds[stage + 1]], layers[: bounds[stage]].output_shape(model.shape)
