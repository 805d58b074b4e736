"""Time of a training step on a GPU, beside PyTorch's in the same run, and how far it is from what the device can do.

Time is that between two events of the device around many steps, so what the host cannot hide counts too; rounds are
taken in turns. The host's own time for a step is beside it: a device waits for a host that needs longer. Samples are on
the device. Gradients, at equal weights, are compared with our float64 one on the device, of slow kernels that are
written as the sums are defined.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mpinn.array.device import choose_device
from mpinn.array.typing import Array
from mpinn.bench import gpu_kernels, gpu_population, population
from mpinn.bench.attempt import attempt
from mpinn.bench.gpu_programs import CLASSES, Peer, Program, apart, batches, find_peer, initial, our_gradient, ours
from mpinn.bench.gpu_roofline import PRECISIONS, Ceilings, Precision, demand, measure
from mpinn.bench.timing import Spread, ratio_text, seconds_text
from mpinn.errors import FatalError
from mpinn.models.mlp import MLP
from mpinn.models.model import Model
from mpinn.models.resnet import ResNet
from mpinn.models.vgg import VGG
from mpinn.nn.part import Part
from mpinn.words import counted

IMAGES = (32, 32, 3)
PEER = "PyTorch"
OURS = "mpinn"
LAUNCHES = 8
"""Steps whose launches are timed on the host: few, so that none waits for a full queue."""
SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


@dataclass(frozen=True)
class Work:
    """A network and its batch; ``compared``: whether its gradients are, which another batch may have shown."""

    name: str
    model: Model
    batch: int
    compared: bool = True


def perceptron(features: int, *widths: int) -> Model:
    """A perceptron whose samples need no flattening."""
    model = MLP(widths=widths).build((features,), CLASSES)
    return Model(model.network[1:], model.shape, stem=1, head=1)


WORKS = (
    Work("MLP 784-512-512-10", perceptron(784, 512, 512), 128),
    Work("ResNet-20", ResNet(depth=20).build(IMAGES, CLASSES), 128),
    Work("ResNet-110", ResNet(depth=110).build(IMAGES, CLASSES), 128),
    Work("VGG-16 with batch norm", VGG(depth=16).build(IMAGES, CLASSES), 128),
    Work("VGG-16 with batch norm", VGG(depth=16).build(IMAGES, CLASSES), 512, compared=False),
)


@dataclass(frozen=True)
class Effort:
    """Rounds, seconds of a turn, and which of PyTorch's ways besides the plain one."""

    rounds: int = 9
    sample: float = 0.2
    tuned: bool = True
    compiled: bool = False


QUICK = Effort(rounds=5, sample=0.08, tuned=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One program at one work: seconds of a step on the device and on the host, and PyTorch's over them.

    ``share`` of the time that the least operations or bytes would take; bytes of the device that the program holds; the
    error of its gradient, where it was compared.
    """

    work: str
    batch: int
    precision: str
    program: str
    seconds: Spread
    host: Spread
    ratio: Spread | None
    share: float
    memory: int
    error: float | None

    @property
    def samples(self) -> float:
        """Samples in a second."""
        return self.batch / self.seconds.median


def run(
    ops: Any,
    ceilings: Ceilings,
    peer: Peer | None,
    works: Sequence[Work] = WORKS,
    effort: Effort = QUICK,
    failed: list[str] | None = None,
) -> Iterator[list[Row]]:
    """The rows of each work and precision as soon as they are there; ``ops``: the kernels of the device.

    See `attempt` for ``failed``.
    """
    before = ops.Choices.tf32
    try:
        for work in works:
            start = initial(work.model)
            title, exact = f"{work.name}, batch {work.batch}", None
            with attempt(f"{title}, gradient in float64", failed):
                exact = _exact(work, start, ops) if work.compared else None
            for name, precision in PRECISIONS.items():
                with attempt(f"{title}, {name}", failed):
                    ops.Choices.tf32 = precision.tf32
                    errors = {} if exact is None else _errors(work, start, ops, peer, precision, exact)
                    programs = _programs(work, start, ops, peer, precision, effort)
                    least = ceilings.seconds(demand(work.model.network, work.model.shape, work.batch), name)
                    yield _rows(work.name, work.batch, name, programs, least, effort, errors)
                    del programs
    finally:
        ops.Choices.tf32 = before


def _exact(work: Work, start: Part, ops: Any) -> Array:
    return our_gradient(work.model, start, batches(work.model, work.batch, 1)[0], ops, (DOUBLE, DOUBLE), steps=1)


def _errors(
    work: Work, start: Part, ops: Any, peer: Peer | None, precision: Precision, exact: Array
) -> dict[str, float]:
    batch = batches(work.model, work.batch, 1)[0]
    found = {OURS: our_gradient(work.model, start, batch, ops, (SINGLE, precision.dtype), steps=3)}
    if peer is not None:
        found[PEER] = peer.gradient(work.model, start, batch, precision)
    return apart(found, exact)


def _programs(
    work: Work, start: Part, ops: Any, peer: Peer | None, precision: Precision, effort: Effort
) -> dict[str, Program]:
    given = batches(work.model, work.batch)
    programs = {OURS: ours(work.model, start, given, ops, precision.dtype)}
    if peer is None:
        return programs
    programs[PEER] = peer.program(work.model, start, given, precision)
    if effort.tuned:
        programs[f"{PEER}, tuned"] = peer.program(work.model, start, given, precision, tuned=True)
    if effort.compiled:
        programs[f"{PEER}, compiled"] = peer.program(work.model, start, given, precision, compiled=True)
    return programs


def populations(
    ops: Any,
    ceilings: Ceilings,
    peer: Peer | None,
    effort: Effort = QUICK,
    works: Sequence[population.Work] = gpu_population.POPULATIONS,
    failed: list[str] | None = None,
) -> Iterator[list[Row]]:
    """The same of populations, which we multiply as float32 in any case."""
    for work in works:
        title = f"population of {len(work.members):,}, {work.features} features"
        start, exact = population.part_of(work.model), None
        with attempt(f"{title}, gradient in float64", failed):
            exact = gpu_population.exact(work, start, ops)
        for name in ("float32", "TF32") if peer is not None else ("float32",):
            with attempt(f"{title}, batch {work.batch}, {name}", failed):
                programs, errors = _members(work, start, exact, name, ops, peer, effort)
                least = ceilings.seconds(gpu_population.demand(work), "float32")
                yield _rows(title, work.batch, name, programs, least, effort, errors)
                del programs


def _members(
    work: population.Work, start: Part, exact: Array | None, name: str, ops: Any, peer: Peer | None, effort: Effort
) -> tuple[dict[str, Program], dict[str, float]]:
    """Ours and PyTorch's, and the errors of their gradients."""
    found = {OURS: gpu_population.ours(work, start, ops)}
    if peer is not None:
        ways = {PEER: False, f"{PEER}, compiled": True} if effort.compiled else {PEER: False}
        for way, compiled in ways.items():
            found[way] = gpu_population.theirs(work, start, peer, PRECISIONS[name], compiled)
    gradients = {way: own for way, (_, own) in found.items()}
    return {way: own for way, (own, _) in found.items()}, {} if exact is None else apart(gradients, exact)


def _rows(
    work: str,
    batch: int,
    precision: str,
    programs: Mapping[str, Program],
    least: float,
    effort: Effort,
    errors: Mapping[str, float],
) -> list[Row]:
    device, host = in_turns(programs, effort.rounds, effort.sample)
    rows = []
    for name, own in device.items():
        ratio = Spread.of(device[PEER] / own) if PEER in device else None
        seconds = Spread.of(own)
        rows.append(
            Row(
                work, batch, precision, name, seconds, Spread.of(host[name]), ratio,
                least / seconds.median, programs[name].memory, errors.get(name),
            )
        )  # fmt: skip
    return rows


def in_turns(programs: Mapping[str, Program], rounds: int, sample: float) -> tuple[dict[str, Array], dict[str, Array]]:
    """Seconds of a step on the device and on the host, (rounds,) of each program: turns of about ``sample`` seconds."""
    calls = {
        name: max(1, round(sample / max(program.device(program.step, 2), 1e-6))) for name, program in programs.items()
    }
    device: dict[str, list[float]] = {name: [] for name in programs}
    host: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            device[name].append(program.device(program.step, calls[name]))
            host[name].append(program.host(program.step, min(LAUNCHES, calls[name])))
    return _arrays(device), _arrays(host)


def _arrays(samples: Mapping[str, list[float]]) -> dict[str, Array]:
    return {name: np.array(own) for name, own in samples.items()}


def print_head(said: str, ceilings: Ceilings, peer: Peer | None) -> None:
    """What is measured on, and the names of the columns."""
    print(said)
    products = ", ".join(f"{rate / 1e12:.1f} TFLOP/s in {name}" for name, rate in ceilings.products.items())
    print(f"ceilings: a large copy {ceilings.bandwidth / 1e9:,.0f} GB/s, a large product {products}")
    if peer is not None:
        print(
            f"PyTorch {peer.torch.__version__}: eager, channels last, fused optimizer, autocast; tuned: cudnn.benchmark"
        )
    print(
        f"{'median (25-75 %)':24}  {'a step':>24}  {'samples/s':>10}  {'x as fast':>17}  {'roof':>5}  {'host':>8}  "
        f"{'memory':>9}  {'error':>7}",
        flush=True,
    )


def print_rows(rows: Sequence[Row]) -> None:
    """Print those of one work and precision."""
    first = rows[0]
    print(f"{first.work}, batch {first.batch}, {first.precision}")
    for row in rows:
        ratio = "" if row.ratio is None else ratio_text(row.ratio)
        error = "" if row.error is None else f"{row.error:.1e}"
        print(
            f"  {row.program:22}  {seconds_text(row.seconds):>24}  {row.samples:>10,.0f}  {ratio:>17}  "
            f"{row.share:>5.0%}  {row.host.median * 1e3:>5.2f} ms  {row.memory / 2**20:>5,.0f} MiB  {error:>7}",
            flush=True,
        )


def show(quick: bool = False, kernels: bool = False, compiled: bool = False, file: Path | None = None) -> None:
    """Measure on the first GPU and print: training steps, or single kernels.

    Raises InputError where there is none, and FatalError at the end if some measurement failed.
    """
    device = choose_device("gpu", "auto", 0)
    ceilings = measure(device.kernels)
    failed: list[str] = []
    told: dict[str, Any] = {"device": device.said, "ceilings": asdict(ceilings), "rows": [], "failed": failed}
    if kernels:
        gpu_kernels.print_head(device.said, ceilings)
        for found in gpu_kernels.run(device.kernels, ceilings, quick=quick, failed=failed):
            gpu_kernels.print_rows([found])
            _keep(told, [found], file)
    else:
        peer = find_peer()
        effort = QUICK if quick else Effort(compiled=compiled)
        print_head(device.said, ceilings, peer)
        steps = run(device.kernels, ceilings, peer, effort=effort, failed=failed)
        for rows in chain(steps, populations(device.kernels, ceilings, peer, effort, failed=failed)):
            print_rows(rows)
            _keep(told, rows, file)
    if failed:
        _keep(told, [], file)
        raise FatalError(f"{counted(len(failed), 'measurement')} failed, the first {failed[0]}")


def _keep(told: dict[str, Any], rows: Sequence[Any], file: Path | None) -> None:
    """Write all that was measured so far: what comes later may be cut off."""
    told["rows"] += [asdict(row) for row in rows]
    if file is not None:
        file.write_text(json.dumps(told, indent=1) + "\n")
