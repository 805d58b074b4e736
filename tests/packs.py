"""Members of a population and the same networks alone, for the tests."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpinn.array import ops as plain
from mpinn.array.activations import ACTIVATIONS
from mpinn.array.typing import Array, Shape
from mpinn.datasets.batches import Batch
from mpinn.models.mlp import MLP
from mpinn.nn.layer import Pass, Tree
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.network import Network
from mpinn.nn.optimizer import Optimizer
from mpinn.nn.packed import LAYER, Member, Packed, packed
from mpinn.nn.part import Part, build_part
from mpinn.schedules.members import Members
from mpinn.schedules.serial import Serial


def members(widths: Sequence[tuple[int, ...]], activations: Sequence[str] = tuple(ACTIVATIONS)) -> list[Member]:
    """Every activation with all widths, each with a seed of its own."""
    pairs = [(activation, width) for activation in activations for width in widths]
    return [Member(number, width, activation, number) for number, (activation, width) in enumerate(pairs)]


def population(
    several: Sequence[Member], shape: Shape, outputs: int = 3, dtype: str = "float64", slots: Any = (), ops: Any = plain
) -> Part:
    """A part that holds them, with their initial weights."""
    return part_of(packed(several, outputs), shape, dtype, slots, ops)


def part_of(pack: Packed, shape: Shape, dtype: str = "float64", slots: Any = (), ops: Any = plain) -> Part:
    """The same for members that stand in panels already."""
    part = build_part("network", Network(((LAYER, pack),)), shape, np.dtype(dtype), tuple(slots), ops=ops)
    part.initialize(3)
    return part


def own(part: Part, number: int, vector: Array | None = None) -> Mapping[str, Mapping[str, Array]]:
    """The arrays of one member in the part's weights, or in another vector of their layout."""
    tree = part.layout.views(part.weights if vector is None else vector)[LAYER]
    pack = part.chain.layers[0][1]
    assert isinstance(pack, Packed)
    for name, panel in pack.panels:
        for place, member in enumerate(panel.members):
            if member.number == number:
                return panel.own(tree[name], place)
    raise LookupError(number)


def alone(part: Part, member: Member, shape: Shape, outputs: int = 3, slots: Any = ()) -> Part:
    """A multi-layer perceptron with the weights that the member has in the part."""
    model = MLP(widths=member.widths, activation=member.activation).build(shape, outputs)  # type: ignore[arg-type]
    single = build_part("network", model.network, shape, part.layout.dtype, tuple(slots), ops=part.ops)
    write(single.weight_views, own(part, member.number))
    return single


def write(views: Tree, arrays: Mapping[str, Mapping[str, Array]]) -> None:
    """Write a member's arrays to those of a multi-layer perceptron, whose hidden weights are (inputs, outputs)."""
    for name, found in arrays.items():
        weight = found["weight"] if name == "output" else found["weight"].T
        views[name]["weight"][...] = weight.reshape(views[name]["weight"].shape)
        views[name]["bias"][...] = found["bias"]


def batches(x: Array, target: Array, size: int, epochs: int) -> list[Batch]:
    """The samples in order, the last batch of an epoch as ragged as it comes."""
    found = []
    for epoch in range(epochs):
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            count = len(x[rows])
            found.append(Batch(len(found), epoch, x[rows], target[rows], count, count, (0, 1), np.arange(count)))
    return found


class Plainly:
    """An update that divides by the samples and steps the optimizer, and nothing else."""

    def __init__(self, optimizer: Optimizer, rate: float):
        self._optimizer = optimizer
        self._rate = rate

    bucket = 0

    def ready(self, part: Part, span: slice) -> None:
        """Nobody waits for it."""

    def __call__(self, part: Part, batch: Batch) -> None:
        segments = part.ops.prepared(self._optimizer.segments(part.layout))
        self._optimizer.apply(part, segments, self._rate, 1 / batch.total)


def train(part: Part, batches: Sequence[Batch], update: Any, loss: Any = None) -> list[float]:
    """Train a population, or one network; the loss of each batch."""
    kind = Members if part.chain.names == (LAYER,) else Serial
    schedule = kind(part, loss or CrossEntropy(), 3)
    return [float(measured.loss) for batch in batches for measured in schedule.step(batch, update)]


def outputs_of(part: Part, x: Array) -> Array:
    """(B, M, O), or (B, O) of one network."""
    return part.network.forward(part.weight_views, part.state_views, x, Pass(part.pool, part.ops, training=False))[0]
