"""Populations as Farias et al. (2022) compute them: a broadcast product, and its sums over the units of each member.

Hidden units of all members stand side by side, (B, H), those of one activation together; a product (B, H, O) is in
memory. In NumPy the sums are those of `numpy.add.reduceat`; in PyTorch they are scattered, as in the authors' own code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpinn.array.activations import ACTIVATIONS
from mpinn.array.packed import packed_cross_entropy, packed_squared_error
from mpinn.array.pool import Pool
from mpinn.array.typing import Array
from mpinn.nn.packed import Member, Panel
from mpinn.nn.part import Part
from mpinn.schedules.members import population_of_part

RATE = 1e-3
MODULES = {
    "identity": "Identity", "sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "ReLU", "leaky_relu": "LeakyReLU",
    "elu": "ELU", "selu": "SELU", "gelu": "GELU", "hardshrink": "Hardshrink", "mish": "Mish",
}  # fmt: skip
"""PyTorch's names of the activations."""


@dataclass(frozen=True)
class Arrays:
    """Weights or gradients of members of one hidden layer, by their numbers: (H, I), (H,), (H, O), (M, O)."""

    weight: Array
    bias: Array
    head: Array
    head_bias: Array

    @classmethod
    def of(cls, part: Part, vector: Array) -> "Arrays":
        """From a vector that belongs to a part."""
        tree = part.layout.views(vector)["population"]
        found: list[tuple[int, Panel, int, Any]] = []
        for name, panel in population_of_part(part).panels:
            found += [(member.number, panel, place, tree[name]) for place, member in enumerate(panel.members)]
        own = [panel.own(values, place) for _, panel, place, values in sorted(found, key=lambda one: one[0])]
        pick = [("hidden1", "weight"), ("hidden1", "bias"), ("output", "weight"), ("output", "bias")]
        weight, bias, head, head_bias = (np.concatenate([one[layer][leaf] for one in own]) for layer, leaf in pick)
        return cls(weight, bias, head, head_bias.reshape(len(own), -1))

    def copy(self) -> "Arrays":
        """Arrays of one's own."""
        return Arrays(*(each.copy() for each in vars(self).values()))

    @property
    def vector(self) -> Array:
        """All of them."""
        return np.concatenate([each.reshape(-1) for each in (self.weight, self.bias, self.head, self.head_bias)])


class Sums:
    """The formulation in NumPy."""

    def __init__(self, weights: Arrays, members: Sequence[Member], x: Array, target: Array):
        self.grads = Arrays(*(np.empty_like(each) for each in vars(weights).values()))
        self._weights = weights
        self._x, self._target = x, target
        self._widths = [member.widths[0] for member in members]
        self._starts = np.concatenate([[0], np.cumsum(self._widths)[:-1]])
        self._blocks = _blocks(members)
        self._pool = Pool()

    def step(self) -> None:
        """Forward, loss, backward, SGD."""
        own, grads, x = self._weights, self.grads, self._x
        z = x @ own.weight.T
        z += own.bias
        a = np.empty_like(z)
        for name, block in self._blocks:
            ACTIVATIONS[name].forward(z[:, block], a[:, block], self._pool)
        y = np.add.reduceat(a[:, :, None] * own.head, self._starts, axis=1)
        y += own.head_bias
        dy = np.repeat(self._loss(y), self._widths, axis=1)
        np.sum(a[:, :, None] * dy, axis=0, out=grads.head)
        dy *= own.head
        da = dy.sum(axis=2)
        for name, block in self._blocks:
            kept = z if ACTIVATIONS[name].keeps_input else a
            ACTIVATIONS[name].backward(kept[:, block], da[:, block], da[:, block], self._pool)
        np.matmul(da.T, x, out=grads.weight)
        np.sum(da, axis=0, out=grads.bias)
        for values, gradient in zip(vars(own).values(), vars(grads).values(), strict=True):
            values -= np.float32(RATE / len(x)) * gradient

    def _loss(self, y: Array) -> Array:
        dy, losses = np.empty_like(y).transpose(1, 2, 0), np.empty(y.shape[1])
        if y.shape[2] == 1:
            packed_squared_error(y.transpose(1, 2, 0), self._target, dy, losses)
        else:
            packed_cross_entropy(y.transpose(1, 2, 0), self._target, 0.0, dy, losses)
        back: Array = dy.transpose(2, 0, 1)
        np.sum(back, axis=0, out=self.grads.head_bias)
        return back


class Scattered:
    """The authors' formulation in PyTorch, on one of its devices; ``compiled`` if that is wanted."""

    def __init__(
        self,
        weights: Arrays,
        members: Sequence[Member],
        x: Array,
        target: Array,
        torch: Any,
        device: str = "cpu",
        compiled: bool = False,
    ):
        self._torch = torch

        def there(values: Array) -> Any:
            return torch.from_numpy(values).to(device)

        values = (weights.weight, weights.bias, np.ascontiguousarray(weights.head.T), weights.head_bias)
        self._parameters = [torch.nn.Parameter(there(value)) for value in values]
        self._optimizer = torch.optim.SGD(self._parameters, lr=RATE)
        self._x, self._target = there(x), there(target)
        owners = np.repeat(np.arange(len(members)), [member.widths[0] for member in members])
        self._owners = there(owners)[None, :, None]
        self._all_losses = torch.compile(self._computed) if compiled else self._computed
        blocks = _blocks(members)
        self._sizes = [block.stop - block.start for _, block in blocks]
        self._activations = [getattr(torch.nn, MODULES[name])() for name, _ in blocks]

    def step(self) -> None:
        """Forward, loss, backward, SGD."""
        self._optimizer.zero_grad()
        losses = self._all_losses()
        losses.backward(self._torch.ones_like(losses))
        self._optimizer.step()

    def _computed(self) -> Any:
        return self._losses(self._forward())

    def _forward(self) -> Any:
        torch, (weight, bias, head, head_bias) = self._torch, self._parameters
        z = torch.nn.functional.linear(self._x, weight, bias).split(self._sizes, dim=1)
        a = torch.cat([activation(part) for activation, part in zip(self._activations, z, strict=True)], dim=1)
        product = a[:, :, None] * head.T[None, :, :]
        owners = self._owners.expand(len(a), -1, head.shape[0])
        zeros = torch.zeros(len(a), *head_bias.shape, device=a.device)
        return zeros.scatter_add_(1, owners, product) + head_bias[None, :, :]

    def _losses(self, y: Any) -> Any:
        functional = self._torch.nn.functional
        if y.shape[2] == 1:
            return functional.mse_loss(y, self._target[:, None].expand_as(y), reduction="none").mean((0, 2)) / 2
        target = self._target[:, None].expand(-1, y.shape[1])
        return functional.cross_entropy(y.permute(0, 2, 1), target, reduction="none").mean(0)

    @property
    def grads(self) -> Arrays:
        """Of the loss summed over the samples."""
        weight, bias, head, head_bias = (
            each.grad.cpu().numpy() * np.float32(len(self._x)) for each in self._parameters
        )
        return Arrays(weight, bias, head.T, head_bias)


class Modules:
    """Networks of PyTorch one after the other, each for some steps."""

    def __init__(self, members: Sequence[Member], x: Array, target: Array, outputs: int, steps: int, torch: Any):
        self._x, self._target, self._steps = torch.from_numpy(x), torch.from_numpy(target), steps
        self._loss = torch.nn.MSELoss() if outputs == 1 else torch.nn.CrossEntropyLoss()
        self._networks = []
        for member in members:
            layers = (
                torch.nn.Linear(x.shape[1], member.widths[0]),
                getattr(torch.nn, MODULES[member.activation])(),
                torch.nn.Linear(member.widths[0], outputs),
            )
            network = torch.nn.Sequential(*layers)
            self._networks.append((network, torch.optim.SGD(network.parameters(), lr=RATE)))

    def step(self) -> None:
        """Some steps of each."""
        for network, optimizer in self._networks:
            for _ in range(self._steps):
                optimizer.zero_grad()
                self._loss(network(self._x), self._target).backward()
                optimizer.step()


def _blocks(members: Sequence[Member]) -> list[tuple[str, slice]]:
    """Activations, and their columns."""
    found: list[tuple[str, slice]] = []
    stop = 0
    for member in members:
        start, stop = stop, stop + member.widths[0]
        if found and found[-1][0] == member.activation:
            found[-1] = (member.activation, slice(found[-1][1].start, stop))
        else:
            found.append((member.activation, slice(start, stop)))
    return found
