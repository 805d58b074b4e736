"""Time of single layers of convolutional networks on one core, beside PyTorch's in both of its layouts of images.

Processor time of one thread, all in turns, forward and backward; the error of the outcome is from float64, as a share
of its norm.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from mpinn.array import ops as plain
from mpinn.array.device import choose_kernels
from mpinn.array.typing import Array, Shape
from mpinn.bench.peer import LAYOUTS, array, images, import_torch, stored, translate
from mpinn.bench.timing import NO_PEER, Operation, Spread, alternate, ratio_text, seconds_text
from mpinn.nn.conv import Conv2d
from mpinn.nn.layer import Layer, Pass
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm, LayerNorm
from mpinn.nn.part import Part, build_part
from mpinn.nn.pool import MaxPool2d

BATCH, ROUNDS, SAMPLE = 64, 7, 0.05


@dataclass(frozen=True)
class Work:
    """A layer and the shape of its samples; nobody wants the input gradient of the first one of a network."""

    name: str
    layer: Layer
    shape: Shape
    wants_dx: bool = True


def _conv(size: int, channels: int, outputs: int, stride: int = 1, kernel: int = 3) -> Work:
    name = f"conv {kernel}x{kernel}, stride {stride}, {size}x{size}, {channels} to {outputs}"
    return Work(name, Conv2d(outputs, kernel, stride, bias=False), (size, size, channels), wants_dx=channels > 3)


WORKS = (
    _conv(32, 3, 16), _conv(32, 3, 64), _conv(28, 1, 32, kernel=5), _conv(14, 32, 64, kernel=5),
    _conv(32, 16, 32, 2), _conv(16, 32, 64, 2), _conv(32, 16, 32, 2, 1), _conv(16, 32, 64, 2, 1),
    _conv(8, 256, 64, 1, 1),
    _conv(32, 16, 16), _conv(16, 32, 32), _conv(8, 64, 64),
    _conv(32, 64, 64), _conv(16, 128, 128), _conv(8, 256, 256), _conv(4, 512, 512), _conv(2, 512, 512),
    Work("batch norm and relu, 32x32, 16", BatchNorm(activation="relu"), (32, 32, 16)),
    Work("batch norm and relu, 32x32, 64", BatchNorm(activation="relu"), (32, 32, 64)),
    Work("layer norm, 512", LayerNorm(), (512,)),
    Work("max pool 2x2, 32x32, 64", MaxPool2d(), (32, 32, 64)),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One program at one work: seconds of a call, each peer's over them, and errors by the name of the outcome."""

    work: str
    program: str
    seconds: Spread
    ratios: tuple[Spread, ...]
    errors: Mapping[str, float]
    pool: int | None


def run(works: tuple[Work, ...] = WORKS, batch: int = BATCH, rounds: int = ROUNDS, sample: float = SAMPLE) -> list[Row]:
    """Measure all works; PyTorch is limited to one thread, and so must BLAS be (OMP_NUM_THREADS=1)."""
    torch = import_torch()
    return [row for work in works for row in _measured(work, batch, torch, rounds, sample)]


def print_rows(rows: list[Row]) -> None:
    """Print a table."""
    head = "processor time, median (25-75 %)"
    compared = any(row.ratios for row in rows)
    others = f"PyTorch's / this: {', '.join(LAYOUTS)}; errors" if compared else f"errors\n{NO_PEER}"
    print(f"{head:34}  {'forward and backward':>26}  {'buffers':>8}  {others}")
    work = ""
    for row in rows:
        if row.work != work:
            work = row.work
            print(work)
        buffers = "" if row.pool is None else f"{row.pool / 2**20:.0f} MiB"
        ratios = f"{'   '.join(ratio_text(ratio) for ratio in row.ratios):38}  " * compared
        errors = "  ".join(f"{name} {error:.1e}" for name, error in row.errors.items())
        print(
            f"  {row.program:32}  {seconds_text(row.seconds):>26}  {buffers:>8}  {f'{ratios:38}  ' * compared}{errors}"
        )


def _measured(work: Work, batch: int, torch: Any, rounds: int, sample: float) -> list[Row]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *work.shape)).astype(np.float32)
    dy = rng.standard_normal((batch, *work.layer.output_shape(work.shape))).astype(np.float32)
    kernels, _ = choose_kernels("auto")
    part = _part(work, kernels)
    exact = _outcome(work, _part(work, plain, "float64"), x.astype(np.float64), dy.astype(np.float64), part)
    errors = {"mpinn": _distances(_outcome(work, _part(work, kernels), x, dy, part), exact)}
    programs: dict[str, Operation] = {"mpinn": lambda: _pass(work, part, x, dy)}
    peers = [] if torch is None else [f"PyTorch, {layout}" for layout in LAYOUTS]
    for peer, layout in zip(peers, LAYOUTS, strict=False):
        module = stored(translate(part.chain, work.shape, part.weight_views, torch), layout, torch)
        programs[peer], found = _torch_pass(work, module, images(x, layout, torch), images(dy, layout, torch))
        errors[peer] = _distances(found, exact)
    samples = alternate(programs, rounds=rounds, sample=sample)
    return [
        Row(
            f"{work.name}, batch {batch}",
            program,
            Spread.of(own),
            tuple(Spread.of(samples[peer] / own) for peer in peers),
            errors[program],
            part.pool.nbytes if program == "mpinn" else None,
        )
        for program, own in samples.items()
    ]


def _part(work: Work, ops: ModuleType, dtype: str = "float32") -> Part:
    part = build_part("layer", Network((("layer", work.layer),)), work.shape, np.dtype(dtype), (), ops=ops)
    part.initialize(0)
    return part


def _pass(work: Work, part: Part, x: Array, dy: Array) -> tuple[Array, Array | None]:
    context = Pass(part.pool, part.ops, wants_dx=work.wants_dx)
    y, saved = part.network.forward(part.weight_views, part.state_views, x, context)
    dx, finish = part.network.backward(part.weight_views, saved, dy, context)
    finish(part.grad_views)
    return y, dx


def _outcome(work: Work, part: Part, x: Array, dy: Array, starts: Part) -> dict[str, Array]:
    for own, given in zip(part.layout, starts.layout, strict=True):
        part.weights[own.slice] = starts.weights[given.slice]
    y, dx = _pass(work, part, x, dy)
    grads = [part.grads[entry.slice] for entry in part.layout]
    return {"y": y, **({"dx": dx} if dx is not None else {}), **({"dw": np.concatenate(grads)} if grads else {})}


def _torch_pass(work: Work, module: Any, x: Any, dy: Any) -> tuple[Operation, dict[str, Array]]:
    x.requires_grad_(work.wants_dx)

    def compute() -> Any:
        module.zero_grad(set_to_none=True)
        x.grad = None
        y = module(x)
        y.backward(dy)
        return y

    y = compute().detach()
    found = {"y": array(y), **({"dx": array(x.grad)} if work.wants_dx else {})}
    grads = [
        parameter.grad.permute(2, 3, 1, 0) if parameter.dim() == 4 else parameter.grad
        for parameter in module.parameters()
    ]
    if grads:
        found["dw"] = np.concatenate([grad.reshape(-1).numpy() for grad in grads])
    return compute, found


def _distances(found: Mapping[str, Array], exact: Mapping[str, Array]) -> dict[str, float]:
    return {name: float(np.linalg.norm(found[name] - exact[name]) / np.linalg.norm(exact[name])) for name in exact}
