"""Many small multi-layer perceptrons of different widths and activations, trained at once (Farias et al. 2022).

A `Panel` is some members side by side: the first layer of all of them is one product of matrices, later layers are
runs of rows. `Packed` is panels, each small enough for its arrays to stay in the cache, and none knows of another. A
panel is never cut, so what a member computes does not depend on which rank has its panel, to the last bit.
"""

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import ceil, prod, sqrt

import numpy as np

from mpinn.array.packed import Runs
from mpinn.array.typing import Array, Shape, Shapes
from mpinn.nn.layer import Draws, Finish, Pass, Saved, Tree
from mpinn.nn.network import Network, Whole

LAYER = "population"
"""The name of the one layer of a network that is a population."""
ACTIVATION = 10
"""An activation and its slope take the time of so many multiplications."""
ROOM = 2048
"""Hidden units of a panel, about: what they need in a pass stays in a second-level cache, and products are large."""


@dataclass(frozen=True)
class Member:
    """One network of a population: hidden layers of ``widths``, all with one activation, then a dense head.

    ``seed`` keys its initial weights: members of the same widths and seed start alike. ``rate`` and ``weight_decay``
    are the optimizer's where they are None.
    """

    number: int
    widths: tuple[int, ...]
    activation: str
    seed: int = 0
    rate: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class Group:
    """Neighbours of a panel with the same widths on both sides of a layer: their products are one batched product."""

    count: int
    inputs: int
    outputs: int
    rows: slice
    """Of the layer."""
    sources: slice
    """Rows of the layer before."""
    weights: slice
    """Of the layer's weights, which stand member by member, (outputs, inputs) each."""

    def matrices(self, vector: Array) -> Array:
        """(G, outputs, inputs), a view."""
        return vector[self.weights].reshape(self.count, self.outputs, self.inputs)

    def before(self, a: Array) -> Array:
        """The rows of the layer before: (G, inputs, B), a view."""
        return a[self.sources].reshape(self.count, self.inputs, a.shape[1])

    def after(self, z: Array) -> Array:
        """The rows of the layer: (G, outputs, B), a view."""
        return z[self.rows].reshape(self.count, self.outputs, z.shape[1])


@dataclass(frozen=True)
class Panel:
    """Members with the same number of hidden layers, and ``outputs`` outputs each.

    Parameters, with H units of all members together and I inputs: hidden1 (H, I) and (H,); hidden2 and later: the
    matrices of the members one after the other, and (H,); output (H, O) and (M, O). Samples of any shape are flattened.
    ``room``: rows of the buffers, at least as many as the widest layer has, and ``seats``: members for whom they have
    outputs, at least as many as there are; so panels can share them.
    """

    members: tuple[Member, ...]
    outputs: int
    room: int
    seats: int

    @property
    def depth(self) -> int:
        """The number of hidden layers."""
        return len(self.members[0].widths)

    @property
    def units(self) -> int:
        """Hidden units of all layers of all members."""
        return sum(int(starts[-1]) for starts in self.starts)

    @cached_property
    def starts(self) -> tuple[Array, ...]:
        """For each hidden layer (M + 1,): the first row of each member, and the number of rows."""
        widths = np.array([member.widths for member in self.members], np.int64).T
        return tuple(np.concatenate([np.zeros(1, np.int64), np.cumsum(row)]) for row in widths)

    @cached_property
    def runs(self) -> tuple[Runs, ...]:
        """For each hidden layer: (activation, start, stop)."""
        found = []
        for starts in self.starts:
            runs, place = [], 0
            for name, group in groupby(self.members, key=lambda member: member.activation):
                count = len(list(group))
                runs.append((name, int(starts[place]), int(starts[place + count])))
                place += count
            found.append(tuple(runs))
        return tuple(found)

    @cached_property
    def groups(self) -> tuple[tuple[Group, ...], ...]:
        """For each hidden layer after the first."""
        return tuple(tuple(self._grouped(layer)) for layer in range(1, self.depth))

    def _grouped(self, layer: int) -> Iterator[Group]:
        place, begin = 0, 0
        for (inputs, outputs), group in groupby(self.members, key=lambda member: member.widths[layer - 1 : layer + 1]):
            count = len(list(group))
            before, after = (int(self.starts[at][place]) for at in (layer - 1, layer))
            end = begin + count * inputs * outputs
            yield Group(
                count, inputs, outputs,
                rows=slice(after, after + count * outputs),
                sources=slice(before, before + count * inputs),
                weights=slice(begin, end),
            )  # fmt: skip
            place, begin = place + count, end

    def parameters(self, shape: Shape) -> Shapes:
        units = [int(starts[-1]) for starts in self.starts]
        declared: dict[str, Shapes] = {"hidden1": {"weight": (units[0], prod(shape)), "bias": (units[0],)}}
        for layer, groups in enumerate(self.groups, 1):
            declared[f"hidden{layer + 1}"] = {"weight": (groups[-1].weights.stop,), "bias": (units[layer],)}
        declared["output"] = {"weight": (units[-1], self.outputs), "bias": (len(self.members), self.outputs)}
        return declared

    def state(self, shape: Shape) -> Shapes:
        return {}

    def output_shape(self, shape: Shape) -> Shape:
        return (len(self.members), self.outputs)

    def own(self, tree: Tree, place: int) -> dict[str, dict[str, Array]]:
        """Views of the arrays of the member at a place: weights (outputs, inputs), but (inputs, outputs) at the end."""
        widths = self.members[place].widths
        found: dict[str, dict[str, Array]] = {}
        for name, values in tree.items():
            found[name] = {}
            for leaf, array in values.items():
                bounds = self.bounds(name, leaf, array.shape)
                view = array.reshape(-1)[int(bounds[place]) : int(bounds[place + 1])]
                rows = widths[-1 if name == "output" else int(name.removeprefix("hidden")) - 1]
                found[name][leaf] = view.reshape(rows, -1) if leaf == "weight" else view
        return found

    def bounds(self, layer: str, leaf: str, shape: Shape) -> Array:
        """The elements of an array that belong to each member: those from one bound to the next; M + 1 bounds."""
        if layer == "output":
            rows = self.starts[-1] if leaf == "weight" else np.arange(len(self.members) + 1)
        elif leaf == "weight" and layer != "hidden1":
            rows = self._matrices[int(layer.removeprefix("hidden")) - 2]
        else:
            rows = self.starts[int(layer.removeprefix("hidden")) - 1]
        bounds: Array = rows * prod(shape[1:])
        return bounds

    @cached_property
    def _matrices(self) -> tuple[Array, ...]:
        """For each hidden layer after the first (M + 1,): where the matrix of each member begins."""
        sizes = [[m.widths[layer - 1] * m.widths[layer] for m in self.members] for layer in range(1, self.depth)]
        return tuple(np.concatenate([np.zeros(1, np.int64), np.cumsum(row)]) for row in sizes)

    def arrays(self, tree: Tree, place: int) -> list[Array]:
        """The arrays of `own`, one after the other."""
        return [array for layer in self.own(tree, place).values() for array in layer.values()]

    def cost(self, inputs: int) -> int:
        """Multiplications of a sample, in proportion; what an activation costs is some of them."""
        first, last = (int(self.starts[layer][-1]) for layer in (0, -1))
        between = sum(int(groups[-1].weights.stop) for groups in self.groups)
        return self.units * ACTIVATION + between + first * inputs + last * self.outputs

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        """Uniform within 1 / sqrt(fan-in), the fan-in being the member's own, as Farias et al. draw them."""
        for place, member in enumerate(self.members):
            inputs = (weights["hidden1"]["weight"].shape[1], *member.widths)
            for layer, values in enumerate(self.own(weights, place).values()):
                draws, bound = rng((member.seed, layer, *member.widths)), 1 / sqrt(inputs[layer])
                for array in (values["weight"], values["bias"]):
                    array[...] = draws.uniform(-bound, bound, array.shape)

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        """x: (B, ...) to y: (B, M, O), which lies in memory with the batch last."""
        x = x.reshape(len(x), -1)
        kept = []
        a = self._rows(0, x, context)
        np.matmul(weights["hidden1"]["weight"], x.T, out=a)
        for layer in range(self.depth):
            if layer:
                a = self._joined(layer, weights, a, x, context)
            slope = self._rows(layer, x, context) if context.keeps else None
            context.ops.packed_activate(a, weights[f"hidden{layer + 1}"]["bias"], self.runs[layer], slope, context.pool)
            kept.append((a, slope))
        y = context.pool.empty((self.seats, self.outputs, len(x)), x.dtype)[: len(self.members)]
        head = weights["output"]
        context.ops.packed_output(a, head["weight"], head["bias"], self.starts[-1], y)
        return y.transpose(2, 0, 1), (x, kept)

    def _rows(self, layer: int, x: Array, context: Pass) -> Array:
        return context.pool.empty((self.room, len(x)), x.dtype)[: self.starts[layer][-1]]

    def _joined(self, layer: int, weights: Tree, a: Array, x: Array, context: Pass) -> Array:
        z, matrices = self._rows(layer, x, context), weights[f"hidden{layer + 1}"]["weight"]
        for group in self.groups[layer - 1]:
            np.matmul(group.matrices(matrices), group.before(a), out=group.after(z))
        return z

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Array | None, Finish]:
        """dy: (B, M, O), with the batch last in memory. All is computed by finish, unless dx is wanted."""
        x, kept = saved
        dy = dy.transpose(1, 2, 0)
        dx = context.pool.empty(x.shape, x.dtype) if context.wants_dx else None
        if dx is not None:
            spare = {name: {key: np.empty_like(value) for key, value in tree.items()} for name, tree in weights.items()}
            np.matmul(self._back(weights, x, kept, dy, spare, context).T, weights["hidden1"]["weight"], out=dx)

        def finish(grads: Tree) -> None:
            self._back(weights, x, kept, dy, grads, context)

        return dx, finish

    def _back(
        self, weights: Tree, x: Array, kept: Sequence[tuple[Array, Array]], dy: Array, grads: Tree, context: Pass
    ) -> Array:
        """Write all gradients; returns dz of the first layer."""
        ops, layer = context.ops, self.depth - 1
        dz, head = self._rows(layer, x, context), grads["output"]
        a, slope = kept[layer]
        ops.packed_output_backward(
            a, weights["output"]["weight"], self.starts[-1], dy, slope, dz, head["weight"], head["bias"],
            grads[f"hidden{self.depth}"]["bias"],
        )  # fmt: skip
        for layer in range(self.depth - 1, 0, -1):
            name, (a, slope) = f"hidden{layer + 1}", kept[layer - 1]
            dz = self._parted(layer, weights[name]["weight"], a, dz, grads[name]["weight"], context)
            ops.packed_slope(dz, slope, grads[f"hidden{layer}"]["bias"])
        np.matmul(dz, x, out=grads["hidden1"]["weight"])
        return dz

    def _parted(self, layer: int, weight: Array, a: Array, dz: Array, grad: Array, context: Pass) -> Array:
        da = context.pool.empty((self.room, dz.shape[1]), dz.dtype)[: self.starts[layer - 1][-1]]
        for group in self.groups[layer - 1]:
            after = group.after(dz)
            np.matmul(group.matrices(weight).swapaxes(1, 2), after, out=group.before(da))
            np.matmul(after, group.before(a).swapaxes(1, 2), out=group.matrices(grad))
        return da


@dataclass(frozen=True)
class Packed:
    """Panels by name, each with the same samples: x: (B, ...) to y: (B, M, O), panel by panel."""

    panels: tuple[tuple[str, Panel], ...]
    outputs: int

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, in the order of the outputs."""
        return tuple(member for _, panel in self.panels for member in panel.members)

    def dealt(self, shards: int, shape: Shape) -> dict[int, int]:
        """The shard of each member, by its number: whole panels, the costliest first, each to whom has least."""
        load = [0] * shards
        found: dict[int, int] = {}
        costs = [(panel.cost(prod(shape)), panel) for _, panel in self.panels]
        for cost, panel in sorted(costs, key=lambda pair: (-pair[0], pair[1].members[0].number)):
            shard = load.index(min(load))
            load[shard] += cost
            found |= dict.fromkeys((member.number for member in panel.members), shard)
        return dict(sorted(found.items()))

    def shard(self, number: int, shards: int, shape: Shape) -> "Packed":
        """The panels that one of the shards has."""
        owners = self.dealt(shards, shape)
        mine = [(name, panel) for name, panel in self.panels if owners[panel.members[0].number] == number]
        return Packed(tuple(mine), self.outputs)

    def buffers(self, samples: int) -> int:
        """Numbers that the buffers of a training step hold, for a batch of so many samples."""
        if not self.panels:
            return 0
        depth = max(panel.depth for _, panel in self.panels)
        rows = 2 * depth + (2 if depth > 1 else 1)
        panel = self.panels[0][1]
        return (rows * panel.room + panel.seats * self.outputs) * samples

    def only(self, numbers: Set[int]) -> "Packed":
        """Some of the members, packed anew."""
        return packed((member for member in self.members if member.number in numbers), self.outputs)

    def parameters(self, shape: Shape) -> Shapes:
        return {name: panel.parameters(shape) for name, panel in self.panels}

    def state(self, shape: Shape) -> Shapes:
        return {}

    def output_shape(self, shape: Shape) -> Shape:
        return (len(self.members), self.outputs)

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        for name, panel in self.panels:
            panel.initialize(weights[name], {}, rng)

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        passes = [panel.forward(weights[name], {}, x, context) for name, panel in self.panels]
        none = np.empty_like(x, shape=(len(x), 0, self.outputs), order="C")
        return np.concatenate([none, *(y for y, _ in passes)], axis=1), [saved for _, saved in passes]

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Array | None, Finish]:
        """dx is the sum over the members."""
        finishes, dx, place = [], None, 0
        for (name, panel), kept in zip(self.panels, saved, strict=True):
            own = np.ascontiguousarray(dy[:, place : place + len(panel.members)].transpose(1, 2, 0)).transpose(2, 0, 1)
            back, finish = panel.backward(weights[name], kept, own, context)
            dx = back if dx is None or back is None else dx + back
            finishes.append((name, finish))
            place += len(panel.members)

        def finish_all(grads: Tree) -> None:
            for name, finish in finishes:
                finish(grads[name])

        return dx, finish_all


def packed(members: Iterable[Member], outputs: int) -> Packed:
    """Members in panels: those with equally many layers and one activation together, by their widths.

    Which members share a panel follows from who there is, and from nothing else. A panel is called after its first
    member.
    """
    panels: list[list[Member]] = []
    for _, group in groupby(sorted(members, key=_kind), key=lambda one: _kind(one)[:2]):
        panels += _panels(list(group))
    return arranged(panels, outputs)


def arranged(panels: Iterable[Sequence[Member]], outputs: int) -> Packed:
    """Members in these panels."""
    ordered = sorted(panels, key=lambda panel: _kind(panel[0]))
    room = max((sum(max(member.widths) for member in panel) for panel in ordered), default=0)
    seats = max(map(len, ordered), default=0)
    found = ((f"panel{panel[0].number}", Panel(tuple(panel), outputs, room, seats)) for panel in ordered)
    return Packed(tuple(found), outputs)


def _kind(member: Member) -> tuple[int, str, tuple[int, ...], int]:
    return len(member.widths), member.activation, member.widths, member.number


def _panels(members: Sequence[Member]) -> list[list[Member]]:
    """As many panels of `ROOM` units as are needed, with about equally many units each."""
    units = sum(max(member.widths) for member in members)
    share, before = units / ceil(units / ROOM), 0
    panels: dict[int, list[Member]] = {}
    for member in members:
        # a member belongs where its middle is
        width = max(member.widths)
        panels.setdefault(int((before + width / 2) / share), []).append(member)
        before += width
    return list(panels.values())


def population_of(network: Whole) -> Packed | None:
    """The population that a network is; None for any other."""
    layers = network.layers if isinstance(network, Network) else ()
    layer = layers[0][1] if len(layers) == 1 else None
    return layer if isinstance(layer, Packed) else None
