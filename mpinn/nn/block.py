"""What one rank owns of a parareal network: a fine block with its predictor and its coarse network."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from mpinn.array.typing import Array, Shape, Shapes
from mpinn.nn.bounds import at_least, at_most, known
from mpinn.nn.layer import EMPTY, Draws, Tree
from mpinn.nn.network import Network

Form: TypeAlias = Literal["residual", "difference"]
Way: TypeAlias = Literal["fine", "coarse", "adjoint"]
"""What is sent: y_j and c_j to the block after, and l_{j-1} to the block before."""


def guesses(number: int, count: int, iterations: int) -> bool:
    """Whether block ``number`` of ``count`` begins with a guess, for which it needs a predictor."""
    return 1 < number <= count - iterations + 1


def corrects(number: int, count: int, iterations: int) -> bool:
    """Whether it corrects what comes after it, for which it needs a coarse network."""
    return number > 1 and iterations < count


def sweeps_of(number: int, count: int, iterations: int) -> range:
    """The sweeps in which it computes."""
    return range(max(1, iterations - count + number), min(number, iterations) + 1)


class Links(Protocol):
    """How a block speaks with the two blocks beside it, in each sweep."""

    def send(self, way: Way, sweep: int, array: Array) -> None:
        """Send an array that is not written afterwards."""
        ...

    def receive(self, way: Way, sweep: int) -> Array:
        """What the other block has sent."""
        ...


@dataclass(frozen=True)
class Block:
    """Block ``number`` of ``count``, from 1: what one rank owns of a parareal network.

    ``inputs`` is the shape of a sample that enters the fine block. The last block has the ``head`` too.
    """

    number: int
    count: int
    inputs: Shape
    fine: Network
    predictor: Network | None = None
    coarse: Network | None = None
    head: Network = field(default=Network(()))
    form: Form = "residual"
    iterations: int = 1

    def __post_init__(self) -> None:
        known("form", self.form, ("residual", "difference"))
        at_least("iterations", self.iterations, 1)
        at_most("iterations", self.iterations, self.count)
        if (self.predictor is not None) != guesses(self.number, self.count, self.iterations):
            raise ValueError(f"predictor {self.number} of {self.count} is missing, or is used by no sweep")
        if (self.coarse is not None) != corrects(self.number, self.count, self.iterations):
            raise ValueError(f"coarse network {self.number} of {self.count} is missing, or is used by no sweep")

    @property
    def last(self) -> bool:
        """Whether the depth ends here."""
        return self.number == self.count

    @property
    def sweeps(self) -> range:
        """The sweeps in which the block computes."""
        return sweeps_of(self.number, self.count, self.iterations)

    @property
    def heard(self) -> range:
        """The sweeps in which the block before it sends what it needs."""
        return range(max(1, self.sweeps.start - 1), min(self.number - 1, self.iterations) + 1)

    @property
    def rounds(self) -> range:
        """Both."""
        return range(self.heard.start, self.sweeps.stop)

    def corrected(self, sweep: int) -> bool:
        """Whether a coarse value comes with the fine one from the block before."""
        return sweep < self.number - 1

    @property
    def outputs(self) -> Shape:
        """The shape of a sample that leaves the fine block."""
        return self.fine.output_shape(self.inputs)

    @property
    def ways(self) -> tuple[tuple[str, Network], ...]:
        """The networks of the block besides the head, by name."""
        ways = (("predictor", self.predictor), ("fine", self.fine), ("coarse", self.coarse))
        return tuple((f"{kind}{self.number}", network) for kind, network in ways if network is not None)

    def parameters(self, shape: Shape) -> Shapes:
        return self._declared(shape, lambda network, inside: network.parameters(inside))

    def state(self, shape: Shape) -> Shapes:
        return self._declared(shape, lambda network, inside: network.state(inside))

    def _declared(self, shape: Shape, declare: Callable[[Network, Shape], Shapes]) -> Shapes:
        found = {name: declare(way, shape if way is self.predictor else self.inputs) for name, way in self.ways}
        return {**{name: tree for name, tree in found.items() if tree}, **declare(self.head, self.outputs)}

    def output_shape(self, shape: Shape) -> Shape:
        guess = self.inputs if self.predictor is None else self.predictor.output_shape(shape)
        coarse = self.outputs if self.coarse is None else self.coarse.output_shape(self.inputs)
        if guess != self.inputs or coarse != self.outputs:
            wanted = f"{self.inputs} to {self.outputs}"
            raise ValueError(f"block {self.number} is from {wanted}, but it is given {guess} and its coarse {coarse}")
        return self.head.output_shape(self.outputs)

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        """The networks carry the indices of their layers: the fine blocks start as in the network that was cut."""
        for name, network in self.ways:
            network.initialize(weights.get(name, EMPTY), state.get(name, EMPTY), rng)
        self.head.initialize(weights, state, rng)
