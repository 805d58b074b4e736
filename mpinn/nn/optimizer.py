"""SGD, Adam and AdamW: what they remember, and one step of a part's flat vector."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from mpinn.array.steps import Segments
from mpinn.config import Length
from mpinn.nn import rate as rates
from mpinn.nn.layout import Entry, Layout
from mpinn.nn.part import Part
from mpinn.nn.rate import Decay

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """What all optimizers share: the learning rate, its course over the run, and the weight decay."""

    rate: Positive = 0.1
    """The learning rate, which is reached after the warmup."""
    decay: Decay = "cosine"
    """The course of the rate after the warmup: ``constant``, multiplied by ``factor`` at each of the ``milestones``
    (step), or along half a cosine to ``floor`` at the end of the run (cosine)."""
    warmup: Length = Length("1 epoch")
    """For how long the rate rises linearly at the start; "0 steps" for none."""
    milestones: tuple[Length, ...] = ()
    """Where the decay ``step`` multiplies the rate by ``factor``, counted from the start of the run."""
    factor: Positive = 0.1
    """By what the decay ``step`` multiplies the rate at each of the ``milestones``."""
    floor: Share = 0.0
    """The share of the rate at which the decay ``cosine`` ends."""
    weight_decay: NotNegative = 0.0
    """How strongly weights are drawn to zero: the factor of a weight in its gradient, or, of adamw, in its step, which
    the learning rate multiplies."""
    decay_all: bool = False
    """Extend the weight decay from the weights proper to biases and to the scales and shifts of norms."""

    @property
    @abstractmethod
    def slots(self) -> tuple[str, ...]:
        """Names of the vectors that the optimizer remembers."""

    @abstractmethod
    def apply(self, part: Part, segments: Any, rate: float, scale: Any) -> None:
        """Move ``part.weights`` once, along the summed gradient ``part.grads`` times ``scale``.

        ``segments`` are those of `segments`, as the part's kernels have prepared them.
        """

    def course(self, steps_per_epoch: int, total: int) -> Callable[[int], float]:
        """The learning rate by batch index, for a run of ``total`` steps."""
        warmup = self.warmup.steps(steps_per_epoch)
        milestones = tuple(milestone.steps(steps_per_epoch) for milestone in self.milestones)
        return lambda step: (
            self.rate * rates.share(self.decay, step, total, warmup, milestones, self.factor, self.floor)
        )

    def segments(self, layout: Layout) -> Segments:
        """The vector cut where the weight decay changes."""
        cuts: list[tuple[int, int, float, float]] = []
        starts = [entry.start for entry in layout] + [layout.size]
        for entry, stop in zip(layout, starts[1:], strict=True):
            decay = self.weight_decay if self.decays(entry) else 0.0
            if cuts and cuts[-1][2] == decay:
                cuts[-1] = (cuts[-1][0], stop, decay, 1.0)
            else:
                cuts.append((entry.start, stop, decay, 1.0))
        return Segments.of(cuts)

    def decays(self, entry: Entry) -> bool:
        """Whether the weight decay holds for a parameter."""
        return self.decay_all or entry.path[-1] == "weight"


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with heavy-ball or Nesterov momentum."""

    momentum: Share = 0.9
    """The share m in v = m v + gradient, of which a step is the rate times v; 0 for none, which needs no memory."""
    nesterov: bool = False
    """Nesterov's momentum in place of the heavy ball's."""

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def apply(self, part: Part, segments: Any, rate: float, scale: Any) -> None:
        velocity = part.slots.get("momentum")
        part.count_update()
        part.ops.sgd(
            part.weights, part.grads, velocity, segments, scale, rate, self.momentum, self.nesterov, pool=part.pool
        )


@dataclass(frozen=True, kw_only=True)
class Moments(Optimizer):
    """What Adam and AdamW share: steps along the mean of past gradients over the root of the mean of their squares."""

    rate: Positive = 1e-3
    betas: tuple[Share, Share] = (0.9, 0.999)
    """The shares that the means of past gradients and of their squares keep in a step."""
    epsilon: Positive = 1e-8
    """What is added to the root of the mean square, so that no denominator is zero."""

    @property
    def slots(self) -> tuple[str, ...]:
        return ("first_moment", "second_moment")


@dataclass(frozen=True, kw_only=True)
class Adam(Moments):
    """Adam (Kingma & Ba 2015); the weight decay is part of the gradient."""

    def apply(self, part: Part, segments: Any, rate: float, scale: Any) -> None:
        _adam(self, part, segments, rate, scale, decoupled=False)


@dataclass(frozen=True, kw_only=True)
class AdamW(Moments):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    weight_decay: NotNegative = 0.01

    def apply(self, part: Part, segments: Any, rate: float, scale: Any) -> None:
        _adam(self, part, segments, rate, scale, decoupled=True)


def _adam(options: Moments, part: Part, segments: Any, rate: float, scale: Any, decoupled: bool) -> None:
    part.ops.adam(
        part.weights,
        part.grads,
        part.slots["first_moment"],
        part.slots["second_moment"],
        segments,
        scale,
        rate,
        options.betas,
        options.epsilon,
        part.count_update(),
        decoupled,
        pool=part.pool,
    )


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
