"""Time of a training step of convolutional networks on one core, beside PyTorch's in both of its layouts of images.

Processor time of one thread, all in turns. The error is how far the float32 gradient of matrices and kernels is from
our float64 one at the initial weights, as a share of its norm; a deep network with batch norm amplifies rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from mpinn.array import ops as plain
from mpinn.array.device import choose_kernels
from mpinn.array.typing import Array
from mpinn.bench.peer import LAYOUTS, gradient, images, import_torch, stored, translate
from mpinn.bench.timing import Operation, Spread, alternate, ratio_text, seconds_text
from mpinn.comm.channel import NullChannel
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.models.model import Model
from mpinn.models.resnet import ResNet
from mpinn.models.vgg import VGG
from mpinn.nn.layer import Pass
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.optimizer import SGD
from mpinn.nn.part import Part, build_part
from mpinn.schedules.serial import Serial
from mpinn.update import OptimizerUpdate

SHAPE, CLASSES, BATCH = (32, 32, 3), 10, 64
MODELS: Mapping[str, Model] = {
    "ResNet-20": ResNet(depth=20).build(SHAPE, CLASSES),
    "VGG-16 with batch norm": VGG(depth=16).build(SHAPE, CLASSES),
}
ROUNDS, SAMPLE = 7, 0.3
OPTIMIZER = SGD(rate=1e-3, decay="constant")


@dataclass(frozen=True, slots=True)
class Row:
    """One program at one model.

    Seconds of a step, each peer's over them, the error of the gradient, and the bytes of buffers that our pool keeps.
    """

    work: str
    program: str
    seconds: Spread
    ratios: tuple[Spread, ...]
    error: float
    pool: int | None


def run(
    models: Mapping[str, Model] = MODELS, batch: int = BATCH, rounds: int = ROUNDS, sample: float = SAMPLE
) -> list[Row]:
    """Measure all models; PyTorch is limited to one thread, and so must BLAS be (OMP_NUM_THREADS=1)."""
    torch = import_torch()
    return [
        row
        for name, model in models.items()
        for row in _measured(name, model, _data(model, batch), torch, rounds, sample)
    ]


def print_rows(rows: list[Row]) -> None:
    """Print a table."""
    head = "processor time, median (25-75 %)"
    print(f"{head:34}  {'a step':>26}  {'error':>8}  {'buffers':>8}  PyTorch's / this: {', '.join(LAYOUTS)}")
    work = ""
    for row in rows:
        if row.work != work:
            work = row.work
            print(work)
        buffers = "" if row.pool is None else f"{row.pool / 2**20:.0f} MiB"
        ratios = "   ".join(ratio_text(ratio) for ratio in row.ratios)
        print(f"  {row.program:32}  {seconds_text(row.seconds):>26}  {row.error:8.1e}  {buffers:>8}  {ratios}")


def _data(model: Model, samples: int) -> Batch:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, *model.shape)).astype(np.float32)
    target = rng.integers(0, CLASSES, samples)
    return Batch(0, 0, x, target, samples, samples, (0, 1), np.arange(samples))


def _measured(name: str, model: Model, batch: Batch, torch: Any, rounds: int, sample: float) -> list[Row]:
    kernels, _ = choose_kernels("auto")
    part = _part(model, kernels)
    exact = _gradient(model, plain, replace(batch, x=batch.x.astype(np.float64)), part)
    programs: dict[str, Operation] = {"mpinn": _step(part, batch)}
    errors = {"mpinn": _distance(_gradient(model, kernels, batch, part), exact)}
    peers = [] if torch is None else [f"PyTorch, {layout}" for layout in LAYOUTS]
    for peer, layout in zip(peers, LAYOUTS, strict=False):
        start = _part(model, plain)
        module = stored(translate(model.network, model.shape, start.weight_views, torch), layout, torch)
        programs[peer], compute = _torch_step(module, batch, layout, torch)
        compute()
        errors[peer] = _distance(gradient(module) * batch.count, exact)
    samples = alternate(programs, rounds=rounds, sample=sample)
    return [
        Row(
            f"{name}, batch {batch.count}",
            program,
            Spread.of(own),
            tuple(Spread.of(samples[peer] / own) for peer in peers),
            errors[program],
            part.pool.nbytes if program == "mpinn" else None,
        )
        for program, own in samples.items()
    ]


def _part(model: Model, ops: ModuleType, dtype: str = "float32") -> Part:
    part = build_part("network", model.network, model.shape, np.dtype(dtype), OPTIMIZER.slots, ops=ops)
    part.initialize(0)
    return part


def _step(part: Part, batch: Batch) -> Operation:
    schedule = Serial(part, CrossEntropy(), 0)
    update = OptimizerUpdate(
        Independent(NullChannel("bench")), OPTIMIZER, lambda step: OPTIMIZER.rate, 0.0, schedule.parts
    )
    return lambda: schedule.step(batch, update)


def _torch_step(module: Any, batch: Batch, layout: str, torch: Any) -> tuple[Operation, Operation]:
    """A step, and what of it comes before the optimizer."""
    x, target, loss = images(batch.x, layout, torch), torch.from_numpy(batch.target), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(module.parameters(), lr=OPTIMIZER.rate, momentum=OPTIMIZER.momentum)

    def compute() -> None:
        module.zero_grad(set_to_none=True)
        loss(module(x), target).backward()

    def step() -> None:
        compute()
        optimizer.step()

    return step, compute


def _gradient(model: Model, ops: ModuleType, batch: Batch, starts: Part) -> Array:
    """The gradient of the summed loss by matrices and kernels, at the weights of ``starts``."""
    part = _part(model, ops, str(batch.x.dtype))
    for own, given in zip(part.layout, starts.layout, strict=True):
        part.weights[own.slice] = starts.weights[given.slice]
    context = Pass(part.pool, ops)
    y, saved = part.network.forward(part.weight_views, part.state_views, batch.x, context)
    _, dy = CrossEntropy()(y, batch.target, context)
    part.network.backward(part.weight_views, saved, dy, context)[1](part.grad_views)
    return np.concatenate([part.grads[entry.slice] for entry in part.layout if len(entry.shape) > 1])


def _distance(found: Array, exact: Array) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
