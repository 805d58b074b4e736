"""Time of a training step of convolutional networks on one core, beside PyTorch's in both of its layouts of images.

Processor time of one thread, all in turns. The error is how far the float32 gradient of matrices and kernels is from
our float64 one at initial weights, as a share of its norm. A unit that rounding switches on or off moves a gradient a
thousand times as far as rounding alone, and whether there is one is chance, so it is a median over initial weights and
batches.
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
from mpinn.bench.timing import NO_PEER, Operation, Spread, alternate, error_text, ratio_text, seconds_text
from mpinn.comm.channel import NullChannel
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.models.cnn import CNN
from mpinn.models.model import Model
from mpinn.models.resnet import ResNet
from mpinn.models.vgg import VGG
from mpinn.nn.layer import Pass
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.optimizer import SGD
from mpinn.nn.part import Part, build_part
from mpinn.schedules.serial import Serial
from mpinn.training.update import OptimizerUpdate

SHAPE, CLASSES, BATCH = (32, 32, 3), 10, 64
MODELS: Mapping[str, Model] = {
    "CNN of jobs/mnist.toml": CNN().build((28, 28, 1), CLASSES),
    "ResNet-20": ResNet(depth=20).build(SHAPE, CLASSES),
    "VGG-16 with batch norm": VGG(depth=16).build(SHAPE, CLASSES),
}
ROUNDS, SAMPLE, SEEDS = 7, 0.3, 11
OPTIMIZER = SGD(rate=1e-3, decay="constant")


@dataclass(frozen=True, slots=True)
class Row:
    """One program at one model.

    Seconds of a step, each peer's over them, errors of the gradient, and the bytes of buffers that our pool keeps.
    """

    work: str
    program: str
    seconds: Spread
    ratios: tuple[Spread, ...]
    error: Spread
    pool: int | None


def run(
    models: Mapping[str, Model] = MODELS,
    batch: int = BATCH,
    rounds: int = ROUNDS,
    sample: float = SAMPLE,
    seeds: int = SEEDS,
) -> list[Row]:
    """Measure all models; PyTorch is limited to one thread, and so must BLAS be (OMP_NUM_THREADS=1)."""
    torch = import_torch()
    found = []
    for name, model in models.items():
        errors = [_errors(model, batch, seed, torch) for seed in range(seeds)]
        spreads = {program: Spread.of(np.array([error[program] for error in errors])) for program in errors[0]}
        found += _measured(name, model, _data(model, batch, 0), torch, rounds, sample, spreads)
    return found


def print_rows(rows: list[Row]) -> None:
    """Print a table."""
    head = "processor time, median (25-75 %)"
    compared = any(row.ratios for row in rows)
    peers = f"  PyTorch's / this: {', '.join(LAYOUTS)}" if compared else f"\n{NO_PEER}"
    print(f"{head:34}  {'a step':>26}  {'error of the gradient':>26}  {'buffers':>8}{peers}")
    work = ""
    for row in rows:
        if row.work != work:
            work = row.work
            print(work)
        buffers = "" if row.pool is None else f"{row.pool / 2**20:.0f} MiB"
        ratios = "   ".join(ratio_text(ratio) for ratio in row.ratios)
        told = f"{seconds_text(row.seconds):>26}  {error_text(row.error):>26}  {buffers:>8}  {ratios}"
        print(f"  {row.program:32}  {told}".rstrip())


def _data(model: Model, samples: int, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, *model.shape)).astype(np.float32)
    target = rng.integers(0, CLASSES, samples)
    return Batch(0, 0, x, target, samples, samples, (0, 1), np.arange(samples))


def _errors(model: Model, samples: int, seed: int, torch: Any) -> dict[str, float]:
    """The error of each program's gradient, for one draw of weights and samples."""
    kernels, _ = choose_kernels("auto")
    batch, start = _data(model, samples, seed), _part(model, plain, seed=seed)
    exact = _gradient(model, plain, replace(batch, x=batch.x.astype(np.float64)), start)
    found = {"mpinn": _gradient(model, kernels, batch, start)}
    for peer, layout in _peers(torch):
        module = _module(model, start, layout, torch)
        _torch_step(module, batch, layout, torch)[1]()
        found[peer] = gradient(module) * samples
    return {program: float(np.linalg.norm(own - exact) / np.linalg.norm(exact)) for program, own in found.items()}


def _measured(
    name: str, model: Model, batch: Batch, torch: Any, rounds: int, sample: float, errors: Mapping[str, Spread]
) -> list[Row]:
    kernels, _ = choose_kernels("auto")
    part = _part(model, kernels)
    programs: dict[str, Operation] = {"mpinn": _step(part, batch)}
    peers = _peers(torch)
    for peer, layout in peers:
        programs[peer], _ = _torch_step(_module(model, _part(model, plain), layout, torch), batch, layout, torch)
    samples = alternate(programs, rounds=rounds, sample=sample)
    return [
        Row(
            f"{name}, batch {batch.count}",
            program,
            Spread.of(own),
            tuple(Spread.of(samples[peer] / own) for peer, _ in peers),
            errors[program],
            part.pool.nbytes if program == "mpinn" else None,
        )
        for program, own in samples.items()
    ]


def _peers(torch: Any) -> list[tuple[str, str]]:
    """PyTorch's names and layouts, where it is installed."""
    return [] if torch is None else [(f"PyTorch, {layout}", layout) for layout in LAYOUTS]


def _module(model: Model, start: Part, layout: str, torch: Any) -> Any:
    return stored(translate(model.network, model.shape, start.weight_views, torch), layout, torch)


def _part(model: Model, ops: ModuleType, dtype: str = "float32", seed: int = 0) -> Part:
    part = build_part("network", model.network, model.shape, np.dtype(dtype), OPTIMIZER.slots, ops=ops)
    part.initialize(seed)
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
