"""What one rank owns of a model: a network and the flat vectors that belong to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng

from mpinn.array import ops as plain
from mpinn.array.pool import Pool
from mpinn.array.typing import Array, Dtype, Shape
from mpinn.errors import InputError
from mpinn.nn.layer import Draws, Tree
from mpinn.nn.layout import Layout
from mpinn.nn.network import Network, Whole

WEIGHT_STREAM = 0x57454947
"""Sets the numbers of initial weights apart from every other use of the seed."""

COUNTERS = Layout({"updates": (1,)}, np.int64)
BEST = "best"
"""The slot with the best weights of members that have patience, of which no optimizer knows."""


@dataclass(slots=True, eq=False)
class Part:
    """A network with its weights, gradients, running statistics and optimizer slots, each one flat vector.

    ``weights``, ``grads`` and the slots follow ``layout``, ``state`` follows ``state_layout``, and ``counters``, which
    follows `COUNTERS`, holds the number of optimizer steps that the slots have seen: Adam's bias correction needs it.
    """

    name: str
    network: Whole
    layout: Layout
    state_layout: Layout
    weights: Array
    grads: Array
    state: Array
    slots: dict[str, Array]
    counters: Array
    pool: Pool
    ops: Any = plain
    """The kernels that the network and the optimizer compute with."""
    auxiliary: bool = False
    """Whether it only helps to train the model, of which it is no part."""
    compute_dtype: Dtype = field(kw_only=True)
    """Of activations and their gradients, which may be narrower than the vectors."""
    weight_views: Tree = field(init=False)
    grad_views: Tree = field(init=False)
    state_views: Tree = field(init=False)

    def __post_init__(self) -> None:
        self.weight_views = self.layout.views(self.weights)
        self.grad_views = self.layout.views(self.grads)
        self.state_views = self.state_layout.views(self.state)

    @property
    def chain(self) -> Network:
        """The network of a part whose layers follow one another; TypeError for any other."""
        if not isinstance(self.network, Network):
            raise TypeError(f"{self.name} is no chain of layers but a {type(self.network).__name__}")
        return self.network

    def initialize(self, seed: int) -> None:
        """Draw the initial weights: those of layer i from (seed, i), on whatever rank it stands."""
        self.initialize_with(lambda path: weight_numbers(seed, path))

    def initialize_with(self, rng: Draws) -> None:
        """Draw the initial weights, on the host, from the numbers of ``rng``."""
        weights, state = self.ops.on_host(self.weights), self.ops.on_host(self.state)
        self.network.initialize(self.layout.views(weights), self.state_layout.views(state), rng)
        self.ops.fill(self.weights, weights)
        self.ops.fill(self.state, state)

    def count_update(self) -> int:
        """Count one more optimizer step; how many there have been, this one included."""
        self.counters[0] += 1
        return int(self.counters[0])

    @property
    def remembered(self) -> dict[str, Array]:
        """The slots that are the optimizer's."""
        return {name: slot for name, slot in self.slots.items() if name != BEST}

    def reset_slots(self) -> None:
        """Forget what the optimizer remembers."""
        for slot in self.remembered.values():
            slot.fill(0)
        self.counters.fill(0)


def weight_numbers(seed: int, path: tuple[int, ...]) -> Generator:
    """The random numbers from which the layer at ``path`` draws its initial weights."""
    return default_rng([WEIGHT_STREAM, seed, *path])


@contextmanager
def in_memory(network: Whole, shape: Shape, cannot: str = "a rank cannot hold its part of") -> Iterator[None]:
    """Let a model that memory does not hold, when its vectors are made, be an InputError with its parameters."""
    try:
        yield
    except MemoryError as error:
        held = f"{Layout(network.parameters(shape), np.float32).count:,} parameters"
        raise InputError("model", f"{cannot} {held} in memory: {error}") from None


WHOLE = "one process cannot hold all the"
"""What to say where the model is to be measured, and is not cut for that."""


def build_part(
    name: str,
    network: Whole,
    shape: Shape,
    dtype: Dtype,
    slots: tuple[str, ...],
    pool: Pool | None = None,
    ops: Any = plain,
    auxiliary: bool = False,
    compute_dtype: Dtype | None = None,
) -> Part:
    """A part with zero vectors for a network whose input samples have ``shape``; one slot vector for each name.

    Activations are of the ``dtype`` of the vectors, unless they are given another one.
    """
    layout = Layout(network.parameters(shape), dtype)
    state_layout = Layout(network.state(shape), dtype)
    zeros = ops.LIBRARY.zeros
    return Part(
        name,
        network,
        layout,
        state_layout,
        weights=zeros(layout.size, dtype),
        grads=zeros(layout.size, dtype),
        state=zeros(state_layout.size, dtype),
        slots={slot: zeros(layout.size, dtype) for slot in slots},
        counters=np.zeros(COUNTERS.size, np.int64),
        pool=pool or Pool(ops.LIBRARY),
        ops=ops,
        auxiliary=auxiliary,
        compute_dtype=compute_dtype or layout.dtype,
    )
