"""What every schedule is told, and says: where the depth is cut, and what a rank owns of it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, TypeAlias

from mpinn.array.typing import Shape
from mpinn.models.model import Model, ModelOptions
from mpinn.nn.loss import Loss
from mpinn.nn.network import Whole
from mpinn.nn.part import Part
from mpinn.partition.abreast import Wanted
from mpinn.schedules.schedule import Schedule
from mpinn.schedules.stage import Place

Bounds: TypeAlias = Sequence[int]
"""The layers ``bounds[k]`` up to ``bounds[k + 1]`` are piece k of the depth."""
Cut: TypeAlias = Literal["measured", "estimated"] | tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions(ABC):
    """Of a schedule that keeps the whole depth on one rank, unless it says otherwise."""

    staged: ClassVar[bool] = False
    """Whether the depth may be cut into stages."""
    sampled: ClassVar[bool] = False
    """Whether the samples enter every stage, not only the first one."""
    warm: ClassVar[str] = ""
    """Of which trained network the fine blocks are to be."""

    @abstractmethod
    def build(self, part: Part, loss: Loss, seed: int, place: Place) -> Schedule:
        """The schedule of one stage."""

    def remarks(self, second_core: bool, network: Whole, size: int) -> Sequence[str]:
        """What the log says of the schedule besides its name and cuts; see `network` and `share`."""
        return ()

    def delay(self, stages: int, stage: int = 1) -> float:
        """Updates by which the gradients of a stage, counted from 1, are old once all stages have work."""
        return 0.0

    def settled(self, stages: int) -> Self:
        """The options as they are used on so many stages."""
        return self

    def pieces(self, stages: int) -> int:
        """Into how many pieces the depth is cut."""
        return stages

    def frame(self, model: Model) -> Model:
        """The model with the stem and the head that no cut separates from themselves."""
        return model

    def wanted(self, slots: int) -> Wanted | None:
        """The parareal network that is made of the pieces; None where they follow one another. As settled."""
        return None

    def network(self, options: ModelOptions, model: Model, bounds: Bounds) -> Whole:
        """What is trained, altogether."""
        return model.network

    def share(
        self, network: Whole, model: Model, bounds: Bounds, stage: int, stages: int, size: int
    ) -> tuple[Whole, Shape]:
        """What a stage owns of it, and the shape of a sample that enters there.

        ``size``: bytes of one number of every sample of a replica's batch.
        """
        return network, model.shape

    def held(self, stages: int) -> int:
        """How many batches must stay valid besides the one in use."""
        return 0


@dataclass(frozen=True, kw_only=True)
class StagedOptions(ScheduleOptions):
    """Of a schedule whose stages stand on ranks of their own."""

    cut: Cut = "measured"
    """Where the depth is cut: so that the slowest stage is as fast as can be, by times that were measured on this
    machine and are kept (measured) or by counts of operations (estimated); or before the layers of this list, with
    which the second and later stages begin."""

    staged: ClassVar[bool] = True

    def share(
        self, network: Whole, model: Model, bounds: Bounds, stage: int, stages: int, size: int
    ) -> tuple[Whole, Shape]:
        """A run of its layers."""
        layers = model.network
        return layers[bounds[stage] : bounds[stage + 1]], layers[: bounds[stage]].output_shape(model.shape)
