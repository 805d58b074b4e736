"""What predictors and coarse networks cost, for every cut of a model into fine blocks: each different one once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mpinn.array.typing import Dtype, Shape
from mpinn.models.model import Model, ModelOptions
from mpinn.models.parareal import interfaces, suppliers
from mpinn.nn.network import Network
from mpinn.partition.profile import Cost, Side, estimate, together

Way: TypeAlias = tuple[Shape, ...]
"""The shapes through which samples go that a network beside a fine block has to follow, without repetitions."""


@dataclass(frozen=True)
class Sides:
    """The networks beside all fine blocks that may be: by the layer at which a block begins, or by both of its ends."""

    networks: Mapping[str, Side]
    """By a name that tells different ones apart."""
    predictors: Mapping[int, str]
    coarses: Mapping[tuple[int, int], str]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all networks, in order."""
        return tuple(self.networks)

    def estimate(self, batch: int, dtype: Dtype) -> list[Cost]:
        """The costs of all networks from counts of operations."""
        return [together(estimate(side.model, batch, dtype)) for side in self.networks.values()]


def sides_of(options: ModelOptions, model: Model, starts: Sequence[int], stops: Sequence[int]) -> Sides:
    """The networks beside fine blocks that begin at one of ``starts``, but not with the first layer, and end at one of
    ``stops``, but not with the head.
    """
    coarse, predictor = suppliers(options)
    shapes, networks = interfaces(model), dict[str, Side]()
    predictors: dict[int, str] = {}
    coarses: dict[tuple[int, int], str] = {}
    body = len(model.network) - model.head
    for start in sorted({*starts} - {0}):
        predictors[start] = f"predictor {_text([shapes[start]])}"
        if predictors[start] not in networks:
            guess = Network(predictor(model.shape, shapes[start]))
            networks[predictors[start]] = Side(guess, model.shape, wanted=False)
        way = [shapes[start]]
        for end in range(start + 1, body + 1):
            if shapes[end] != way[-1]:
                way.append(shapes[end])
            ends = {stop for stop in stops if min(stop, body) == end and stop > start}
            if not ends:
                continue
            # whether the last layer changes the size of an image decides what follows the last change
            name = f"coarse {_text(way)}{'' if _small(shapes[end - 1]) != _small(shapes[end]) else ' on'}"
            coarses |= {(start, stop): name for stop in ends}
            if name not in networks:
                networks[name] = Side(Network(coarse(options, shapes[start : end + 1])), shapes[start], wanted=True)
    return Sides(networks, predictors, coarses)


def _small(shape: Shape) -> Shape:
    """The size of an image; of a vector nothing."""
    return shape[:-1]


def _text(way: Sequence[Shape]) -> str:
    return " ".join("x".join(map(str, shape)) for shape in way)
