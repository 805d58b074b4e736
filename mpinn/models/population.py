"""Populations: thousands of multi-layer perceptrons, trained at once (ParallelMLPs, Farias et al. 2022)."""

from dataclasses import dataclass, field, replace
from itertools import product
from typing import Annotated, TypeAlias

from msgspec import Meta

from mpinn.array.typing import Shape
from mpinn.config import Natural, Positive
from mpinn.errors import InputError
from mpinn.length import Length
from mpinn.models.blocks import ActivationName
from mpinn.models.model import Model
from mpinn.models.sweep import Sweep, WholeSweep, Widths
from mpinn.nn.network import Network
from mpinn.nn.packed import LAYER, Member, Packed, packed, population_of

MOST_MEMBERS = 10_000_000
Share: TypeAlias = Annotated[float, Meta(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class Population:
    """Every combination of ``activations``, ``layers``, ``rates``, ``weight_decays``, ``seeds`` and ``widths`` is a
    member, numbered in this order, the widths fastest (that of Farias et al.).

    Of a sweep that is a distribution each member draws its own.
    """

    widths: Widths = field(default=Widths({"from": 1, "to": 50}))
    """Units of every hidden layer of a member."""
    layers: tuple[Annotated[int, Meta(ge=1)], ...] = (1,)
    """Numbers of hidden layers of a member."""
    activations: tuple[ActivationName, ...] = ("relu", "tanh")
    """The functions after hidden layers, of which a member has one."""
    repetitions: Positive = 1
    """How many members there are of each kind, with the seeds 0, 1, ...; of ``seeds`` or this give one."""
    rates: Sweep = field(default=Sweep())
    """Learning rates, of which a member has one; without any it is the optimizer's."""
    weight_decays: Sweep = field(default=Sweep())
    """Weight decays, of which a member has one; without any it is the optimizer's."""
    seeds: WholeSweep = field(default=WholeSweep())
    """Seeds of initial weights; without any they are those of ``repetitions``."""
    rungs: tuple[Length, ...] = ()
    """When the best ``survive`` of the members stay and the others leave (successive halving)."""
    survive: Share = 0.5
    """The share of the members that stay at each of the ``rungs``."""
    patience: Natural = 0
    """Evaluations without a better validation, after which a member learns no more and goes back to its best weights;
    0 for never."""

    def __post_init__(self) -> None:
        for name in ("layers", "activations"):
            if not getattr(self, name):
                raise InputError(f"model.{name}", "expected at least one")
        if not self.widths.tables():
            raise InputError("model.widths", "expected at least one")
        if self.seeds.tables() and self.repetitions > 1:
            raise InputError("model.repetitions", "seeds say how often everything is repeated: give one of the two")

    def members(self) -> tuple[Member, ...]:
        """All of them, by their numbers; InputError if they are too many."""
        seeds = self.seeds.axis() if self.seeds.tables() else range(self.repetitions)
        axes = (self.activations, self.layers, self.rates.axis(), self.weight_decays.axis(), seeds, self.widths.axis())
        count = 1
        for axis in axes:
            count *= len(axis)
        if count > MOST_MEMBERS:
            raise InputError("model.widths", f"{count:,} members are too many: at most {MOST_MEMBERS:,}")
        found = []
        for number, (activation, layers, rate, decay, seed, width) in enumerate(product(*axes)):
            rate = self.rates.draw(number) if self.rates.drawn else rate
            decay = self.weight_decays.draw(number) if self.weight_decays.drawn else decay
            found.append(Member(number, (int(width or 1),) * layers, activation, int(seed or 0), rate, decay))
        return tuple(found)

    def build(self, shape: Shape, outputs: int) -> Model:
        """One layer, which is the whole population."""
        return Model(Network(((LAYER, packed(self.members(), outputs)),)), shape, stem=0, head=0)


def with_members(model: Model, population: Packed) -> Model:
    """The model of a population with others of its members, or with some of them."""
    return replace(model, network=Network(((LAYER, population),)))


def shard_of(model: Model, shard: int, shards: int) -> Network:
    """The members of a population that one of the shards has."""
    population = population_of(model.network)
    if population is None:
        raise TypeError("only a population has shards")
    return Network(((LAYER, population.shard(shard, shards, model.shape)),))
