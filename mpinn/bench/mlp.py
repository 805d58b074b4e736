"""Time of a perceptron's training step on one core, beside PyTorch's where that is installed, and what is left of it.

Processor time of one thread, all in turns. The floor is the matrix products alone: nothing is faster that does them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np

from mpinn.array import ops as plain
from mpinn.array.device import choose_kernels
from mpinn.array.typing import Array
from mpinn.bench.timing import NO_PEER, ROUNDS, SAMPLE, Operation, Spread, alternate, ratio_text, seconds_text
from mpinn.comm.channel import NullChannel
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.models.mlp import MLP
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.optimizer import SGD, Adam, Optimizer
from mpinn.nn.part import Part, build_part
from mpinn.schedules.serial import Serial
from mpinn.training.update import OptimizerUpdate

PEER = "PyTorch eager"
FLOOR = "matrix products alone"
OVERHEAD = "mpinn, 1 unit a layer, 1 sample"
"""What a step costs that computes next to nothing: Python."""


@dataclass(frozen=True)
class Work:
    """A perceptron and a batch; ``widths`` begin with the inputs and end with the outputs."""

    widths: tuple[int, ...]
    batch: int

    @property
    def name(self) -> str:
        """Such as ``64-64-10, batch 32``."""
        return f"{'-'.join(map(str, self.widths))}, batch {self.batch}"

    def data(self) -> Batch:
        """Random samples and classes."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.batch, self.widths[0])).astype(np.float32)
        target = rng.integers(0, self.widths[-1], self.batch)
        return Batch(0, 0, x, target, self.batch, self.batch, (0, 1), np.arange(self.batch))


WORKS = (Work((784, 512, 512, 10), 128), Work((64, 64, 64, 10), 32))
OPTIMIZERS: Mapping[str, Optimizer] = {
    "SGD step": SGD(rate=1e-3, decay="constant"),
    "Adam step": Adam(rate=1e-5, decay="constant"),
}
"""Rates are low, so that training on one batch over and over stays far from its end, where numbers are denormal."""


@dataclass(frozen=True, slots=True)
class Row:
    """One program at one work: seconds of a call, and the peer's over its own, pair by pair, if there is a peer."""

    work: str
    program: str
    seconds: Spread
    ratio: Spread | None


@dataclass(frozen=True, slots=True)
class Errors:
    """How far a float32 gradient is from our float64 one, as a share of its norm."""

    work: str
    program: str
    error: float


def run(works: tuple[Work, ...] = WORKS, rounds: int = ROUNDS, sample: float = SAMPLE) -> list[Row | Errors]:
    """Measure all works; PyTorch is limited to one thread, and so must BLAS be (OMP_NUM_THREADS=1)."""
    torch = _torch()
    rows: list[Row | Errors] = []
    for work in works:
        for name, programs in _programs(work, torch).items():
            samples = alternate(programs, rounds=rounds, sample=sample)
            rows += [
                Row(f"{work.name}: {name}", program, Spread.of(own), _ratio(program, own, samples.get(PEER)))
                for program, own in samples.items()
            ]
        rows += [Errors(f"{work.name}: gradient", program, error) for program, error in _errors(work, torch)]
    return rows


def _ratio(program: str, own: Array, peer: Array | None) -> Spread | None:
    return None if peer is None or program == OVERHEAD else Spread.of(peer / own)


def print_rows(rows: list[Row | Errors]) -> None:
    """Print a table, with PyTorch's times over these where there are any."""
    compared = any(isinstance(row, Row) and row.ratio is not None for row in rows)
    head = f"{'processor time, median (25-75 %)':34}  {'a call':>26}"
    print(f"{head}  {'PyTorch / this':>18}" if compared else head)
    if not compared:
        print(NO_PEER)
    work = ""
    for row in rows:
        if row.work != work:
            work = row.work
            print(work)
        if isinstance(row, Errors):
            print(f"  {row.program:32}  {f'{row.error:.1e} from float64':>26}")
        else:
            ratio = f"  {ratio_text(row.ratio):>18}" if row.ratio else ""
            print(f"  {row.program:32}  {seconds_text(row.seconds):>26}{ratio}")


def _kernels() -> dict[str, ModuleType]:
    chosen, _ = choose_kernels("auto")
    return {"mpinn": plain} if chosen is plain else {"mpinn": chosen, "mpinn, plain NumPy": plain}


def _programs(work: Work, torch: Any) -> dict[str, dict[str, Operation]]:
    batch = work.data()
    table: dict[str, dict[str, Operation]] = {"forward and backward": {}, **{name: {} for name in OPTIMIZERS}}
    for program, ops in _kernels().items():
        table["forward and backward"][program] = _gradient(work, ops, batch)
        for name, optimizer in OPTIMIZERS.items():
            table[name][program] = _step(work, ops, batch, optimizer)
    for name, optimizer in OPTIMIZERS.items():
        small = Work((1,) * len(work.widths), 1)
        table[name][OVERHEAD] = _step(small, _kernels()["mpinn"], small.data(), optimizer)
    table["forward and backward"][FLOOR] = _products(work, batch.x)
    if torch is not None:
        for name, programs in table.items():
            programs.update(_peers(work, torch, batch, name))
    return table


def _part(work: Work, ops: ModuleType, slots: tuple[str, ...] = (), dtype: str = "float32") -> Part:
    inputs, *hidden, outputs = work.widths
    model = MLP(widths=tuple(hidden)).build((inputs,), outputs)
    part = build_part("network", model.network, model.shape, np.dtype(dtype), slots, ops=ops)
    part.initialize(0)
    return part


def _gradient(work: Work, ops: ModuleType, batch: Batch) -> Operation:
    schedule = Serial(_part(work, ops), CrossEntropy(), 0)
    return lambda: schedule.gradient(batch)


def _step(work: Work, ops: ModuleType, batch: Batch, optimizer: Optimizer) -> Operation:
    part = _part(work, ops, optimizer.slots)
    schedule = Serial(part, CrossEntropy(), 0)
    update = OptimizerUpdate(
        Independent(NullChannel("bench")), optimizer, lambda step: optimizer.rate, 0.0, schedule.parts
    )
    return lambda: schedule.step(batch, update)


def _products(work: Work, x: Array) -> Operation:
    """The products of a step: forward, weight gradients, and input gradients of all layers but the first."""
    weights = [np.full(shape, 0.01, np.float32) for shape in pairwise(work.widths)]
    values = [x, *(np.empty((work.batch, width), np.float32) for width in work.widths[1:])]
    grads = [np.empty_like(weight) for weight in weights]
    deltas = [np.full_like(value, 0.01) for value in values]

    def multiply() -> None:
        for i, weight in enumerate(weights):
            np.matmul(values[i], weight, out=values[i + 1])
        for i in reversed(range(len(weights))):
            np.matmul(values[i].T, deltas[i + 1], out=grads[i])
            if i:
                np.matmul(deltas[i + 1], weights[i].T, out=deltas[i])

    return multiply


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    return torch


def _network(work: Work, torch: Any, part: Part) -> Any:
    layers: list[Any] = []
    for views, (inputs, outputs) in zip(part.weight_views.values(), pairwise(work.widths), strict=True):
        dense = torch.nn.Linear(inputs, outputs)
        with torch.no_grad():
            dense.weight.copy_(torch.from_numpy(views["weight"].T))
            dense.bias.copy_(torch.from_numpy(views["bias"]))
        layers += [dense, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def _peers(work: Work, torch: Any, batch: Batch, name: str) -> dict[str, Operation]:
    if name not in OPTIMIZERS:
        network = _network(work, torch, _part(work, plain))
        return {PEER: _torch_step(torch, network, batch, None)}
    options = {
        "SGD step": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
        "Adam step": (torch.optim.Adam, {"lr": 1e-5}),
    }
    kind, given = options[name]
    peers = {}
    for program, fused in ((PEER, {}), ("PyTorch, fused optimizer", {"fused": True})):
        network = _network(work, torch, _part(work, plain))
        peers[program] = _torch_step(torch, network, batch, kind(network.parameters(), **given, **fused))
    return peers


def _torch_step(torch: Any, network: Any, batch: Batch, optimizer: Any) -> Operation:
    x, target, loss = torch.from_numpy(batch.x), torch.from_numpy(batch.target), torch.nn.CrossEntropyLoss()

    def step() -> None:
        network.zero_grad(set_to_none=True)
        loss(network(x), target).backward()
        if optimizer is not None:
            optimizer.step()

    return step


def _errors(work: Work, torch: Any) -> list[tuple[str, float]]:
    batch = work.data()
    starts = _part(work, plain)
    exact = _gradient_of(work, plain, replace(batch, x=batch.x.astype(np.float64)), starts)
    found = [(program, _gradient_of(work, ops, batch, starts)) for program, ops in _kernels().items()]
    if torch is not None:
        network = _network(work, torch, starts)
        _torch_step(torch, network, batch, None)()
        grads = [(linear.weight.grad.numpy().T, linear.bias.grad.numpy()) for linear in network[::2]]
        found.append((PEER, np.concatenate([array.ravel() for pair in grads for array in pair]) * work.batch))
    return [(program, float(np.linalg.norm(grad - exact) / np.linalg.norm(exact))) for program, grad in found]


def _gradient_of(work: Work, ops: ModuleType, batch: Batch, starts: Part) -> Array:
    """The gradient of the summed loss, without padding, at the weights of ``starts``."""
    part = _part(work, ops, dtype=str(batch.x.dtype))
    for own, given in zip(part.layout, starts.layout, strict=True):
        part.weights[own.slice] = starts.weights[given.slice]
    Serial(part, CrossEntropy(), 0).gradient(batch)
    return np.concatenate([part.grads[entry.slice] for entry in part.layout])
