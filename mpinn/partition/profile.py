"""What each indivisible piece of a model costs: measured on the machine and kept, or estimated from its shapes."""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import pairwise
from math import prod
from pathlib import Path
from time import perf_counter, process_time
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from mpinn.array import ops as plain
from mpinn.array.precision import activations, wide
from mpinn.array.typing import Array, Dtype, Shape
from mpinn.comm.findings import probe_file
from mpinn.config import Config, difference
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.nn.layer import Layer, Pass, Saved
from mpinn.nn.layout import Layout
from mpinn.nn.network import Network
from mpinn.nn.part import WHOLE, Part, build_part, in_memory
from mpinn.nn.residual import Residual
from mpinn.storage.directory import write_text

REPEATS = 5
"""Passes of which the median counts, after one that compiles and allocates."""
OPERATIONS = 5e10
"""Multiply-adds per second of an estimate: only the ratios of estimated times mean something."""
ELEMENT = 30
"""Multiply-adds that an estimate counts for one element of a layer that multiplies no matrices."""


@dataclass(frozen=True)
class Cost:
    """What one unit costs for one local batch: seconds and bytes.

    ``kept_bytes`` is what a pass holds between forward and backward, each buffer once: of what the unit itself makes,
    all that its own backward pass or the next unit's needs. Its input, of ``input_bytes``, belongs to the unit before.
    ``parameter_bytes`` is one vector of its parameters. ``layers`` counts the layers of the network that it joins.
    """

    name: str
    layers: int
    forward: float
    backward: float
    input_bytes: int
    output_bytes: int
    kept_bytes: int
    parameter_bytes: int


@dataclass(frozen=True)
class Subject:
    """What a profile is of: two that are equal in all of this may share one."""

    model: Mapping[str, Any]
    """The table [model] of the configuration."""
    shape: Shape
    outputs: int
    batch: int
    """Of one replica."""
    dtype: str
    kernels: str
    machine: str

    def tables(self) -> dict[str, Any]:
        """As JSON gives it back."""
        told: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return told

    @property
    def digest(self) -> str:
        """A name for it."""
        return blake2b(json.dumps(self.tables(), sort_keys=True).encode(), digest_size=12).hexdigest()


def units(model: Model) -> tuple[slice, ...]:
    """The indivisible pieces of a model, as slices of its layers: a cut into stages goes between two of them.

    The stem is one, every block of the body is one, the head is one. A skip connection lies inside a layer, so none is
    ever cut. Every unit has something to learn: one without parameters (a flatten, a dropout, a pool of its own) is
    joined to the unit before it, or, where it comes first, to the one after it.
    """
    stop, layers = len(model.network) - model.head, len(model.network)
    bounds = sorted({0, *range(model.stem, stop + 1), layers})
    shapes = _shapes(model)
    learning = {index for index, name in enumerate(model.network.names) if name in shapes}
    starts = [start for start, end in pairwise(bounds) if learning & {*range(start, end)}]
    ends = [*starts[1:], layers]
    return tuple(slice(start, end) for start, end in zip([0, *starts[1:]], ends, strict=True))


@dataclass(frozen=True)
class Side:
    """A small network beside those of a model, for samples of ``shape``; ``wanted``: whether it gives back gradients of
    its input.
    """

    network: Network
    shape: Shape
    wanted: bool

    @property
    def model(self) -> Model:
        """The network alone."""
        return Model(self.network, self.shape, stem=0, head=0)


def measure(
    model: Model, batch: int, dtype: Dtype, ops: Any = plain, repeats: int = REPEATS, wanted: bool = False
) -> list[Cost]:
    """The cost of every unit on random data, as the median of whole passes through the model, after one to warm up.

    ``dtype`` is that of activations. Seconds are processor time, which other processes do not disturb, so BLAS must
    have one thread; on a device they are those until it is done. Backward includes the weight gradient, and the input
    gradient for all units but the first, and for that one too if it is ``wanted``.
    """
    part, pieces = _built(model, dtype, ops)
    part.initialize(0)
    rng = np.random.default_rng(0)
    x = ops.on_device(rng.standard_normal((batch, *model.shape)).astype(dtype))
    dy = ops.on_device(rng.standard_normal((batch, *model.network.output_shape(model.shape))).astype(dtype))
    rounds = np.array([_times(part, pieces, x, dy, wanted) for _ in range(1 + repeats)])
    forward, backward = np.median(rounds[1:], axis=0)
    return _costs(model, dtype, forward.tolist(), backward.tolist(), _traced(part, pieces, x, dtype))


def estimate(model: Model, batch: int, dtype: Dtype) -> list[Cost]:
    """The cost of every unit from its shapes alone: the same on every machine and at every time.

    Seconds are the multiply-adds of matrix products and convolutions, and `ELEMENT` for each element of what other
    layers read or write, over `OPERATIONS`; backward counts twice. Bytes are those that `measure` finds.
    """
    real = wide(dtype)
    part, pieces = _built(model, real, plain)
    one, two = (_traced(part, pieces, np.zeros((samples, *model.shape), real), dtype) for samples in (1, 2))
    forward, shape = [], model.shape
    for piece in pieces:
        forward.append(batch * _operations(piece, shape) / OPERATIONS)
        shape = piece.output_shape(shape)
    backward = [2 * seconds for seconds in forward]
    return _costs(model, dtype, forward, backward, one + (batch - 1) * (two - one))


def together(costs: Sequence[Cost]) -> Cost:
    """The cost of units that follow one another, as of one."""
    return Cost(
        name="+".join(cost.name for cost in costs),
        layers=sum(cost.layers for cost in costs),
        forward=sum(cost.forward for cost in costs),
        backward=sum(cost.backward for cost in costs),
        input_bytes=costs[0].input_bytes,
        output_bytes=costs[-1].output_bytes,
        kept_bytes=sum(cost.kept_bytes for cost in costs),
        parameter_bytes=sum(cost.parameter_bytes for cost in costs),
    )


def save(path: Path, subject: Subject, costs: Sequence[Cost]) -> None:
    """Write a profile as JSON, with what it is of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"subject": subject.tables(), "units": [asdict(cost) for cost in costs]}
    write_text(path, json.dumps(told, indent=1) + "\n")


def load(path: Path, subject: Subject) -> list[Cost] | None:
    """The profile in a file, None if there is no such file; InputError if it is damaged or of something else."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        costs = msgspec.convert(told["units"], list[Cost])
        known = dict(told["subject"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, msgspec.ValidationError) as error:
        raise InputError(str(path), f"is not a profile ({error}): delete it, or name another file") from None
    if changes := difference(known, subject.tables()):
        others = ", ".join(f"{key} ({old} -> {new})" for key, old, new in changes)
        raise InputError(str(path), f"is the profile of something else: {others}; delete it, or name another file")
    return costs


def profile(
    model: Model, subject: Subject, dtype: Dtype, ops: Any, file: Path | None = None, sides: Sequence[Side] = ()
) -> tuple[list[Cost], str]:
    """The measured costs of the units of a model, then of networks beside them; and in words where they are from.

    They are read from ``file``, or from the user's cache if none is named; what is not there is measured and kept
    there. Called on one rank.
    """
    path = file or cache_file(subject)
    if (known := load(path, subject)) is not None:
        return known, f"measured before: {path}"
    costs = measure(model, subject.batch, dtype, ops)
    costs += [together(measure(side.model, subject.batch, dtype, ops, wanted=side.wanted)) for side in sides]
    try:
        save(path, subject, costs)
    except OSError as error:
        if file is not None:
            raise InputError(str(file), f"cannot be written: {error.strerror}") from None
        return costs, f"measured now, not kept: {path} cannot be written ({error.strerror})"
    return costs, f"measured now, kept in {path}"


def subject_of(
    config: Config, shape: Shape, outputs: int, batch: int, ops: ModuleType, sides: Sequence[str] = ()
) -> Subject:
    """What the profile of a configured model is of, for samples of ``shape`` and ``batch`` of them in a replica.

    ``sides`` are the names of the networks beside it.
    """
    table = config.tables()["model"]
    kernels = "plain" if ops is plain else "compiled" if ops.LIBRARY is np else "cuda"
    kernels += ", TF32" if kernels == "cuda" and config.run.tf32 else ""
    beside = {"beside": sides} if sides else {}
    return Subject(
        {**table, **beside},
        shape,
        outputs,
        batch,
        str(activations(config.run.dtype, config.run.bf16)),
        kernels,
        ops.device_name() or machine(),
    )


def cache_file(subject: Subject) -> Path:
    """Where a profile is kept between runs."""
    return probe_file().with_name("profiles") / f"{subject.digest}.json"


def machine() -> str:
    """The kind of processor: profiles of one kind are interchangeable."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return found or platform.processor() or platform.machine()


def _shapes(model: Model) -> Mapping[str, Any]:
    return model.network.parameters(model.shape)


def _built(model: Model, dtype: Dtype, ops: Any) -> tuple[Part, list[Network]]:
    with in_memory(model.network, model.shape, WHOLE):
        part = build_part("profile", model.network, model.shape, wide(dtype), (), ops=ops, compute_dtype=dtype)
    return part, [model.network[unit] for unit in units(model)]


def _costs(model: Model, dtype: Dtype, forward: list[float], backward: list[float], sizes: Array) -> list[Cost]:
    """sizes: (U, 3), the bytes of input, output and what is kept."""
    layout, found = Layout(_shapes(model), wide(dtype)), []
    for number, unit in enumerate(units(model)):
        names = model.network[unit].names
        count = sum(entry.size for entry in layout if entry.path[0] in names)
        before, after, kept = sizes[number].tolist()
        parameters = count * layout.dtype.itemsize
        found.append(
            Cost("+".join(names), len(names), forward[number], backward[number], before, after, kept, parameters)
        )
    return found


def _times(part: Part, pieces: list[Network], x: Array, dy: Array, wanted: bool) -> tuple[list[float], list[float]]:
    """Seconds of the forward and of the backward pass of each piece, in one pass through all of them."""
    context, ops = Pass(part.pool, part.ops), part.ops
    saved, forward, backward = [], [], []

    def now() -> float:
        ops.synchronize()
        return process_time() if ops.LIBRARY is np else perf_counter()

    for piece in pieces:
        start = now()
        x, kept = piece.forward(part.weight_views, part.state_views, x, context)
        forward.append(now() - start)
        saved.append(kept)
    for piece in reversed(pieces):
        context.wants_dx = wanted or piece is not pieces[0]
        start = now()
        dy, finish = piece.backward(part.weight_views, saved.pop(), dy, context)
        finish(part.grad_views)
        backward.append(now() - start)
    return forward, backward[::-1]


def _traced(part: Part, pieces: list[Network], x: Array, dtype: Dtype) -> Array:
    """(U, 3): the bytes of each piece's input and output, and of the buffers that it makes and a pass keeps.

    Activations, which are of the type of x, count as if they were stored as ``dtype``. Masks keep their type, and so do
    arrays with one number a row, which are taken for statistics, also if they are activations of a single channel.
    """
    context, borders = Pass(part.pool, part.ops), [x]
    held: list[dict[int, Array]] = []
    for piece in pieces:
        y, saved = piece.forward(part.weight_views, part.state_views, borders[-1], context)
        borders.append(y)
        held.append({id(owner): owner for owner in _owners(saved)})
    ends, sizes = {id(_owner(border)) for border in borders}, []

    def stored(array: Array) -> int:
        activation = id(array) in ends or (array.ndim > 1 and array.shape[-1] > 1)
        return array.size * (dtype if activation and array.dtype == x.dtype else array.dtype).itemsize

    for before, after, own, following in zip(borders, borders[1:], held, [*held[1:], {}], strict=False):
        last = _owner(after)
        made = own | ({id(last): last} if id(last) in following else {})
        made.pop(id(_owner(before)), None)
        sizes.append((before.size * dtype.itemsize, after.size * dtype.itemsize, sum(map(stored, made.values()))))
    return np.array(sizes, np.int64)


def _owners(saved: Saved) -> Iterator[Array]:
    if isinstance(saved, (tuple, list)):
        for inside in saved:
            yield from _owners(inside)
    elif saved is not None:
        yield _owner(saved)


def _owner(array: Array) -> Array:
    """The array that holds the memory of a view."""
    while isinstance(array.base, type(array)):
        array = array.base
    return array


def _operations(layer: Layer, shape: Shape) -> int:
    """Multiply-adds, or what counts like them, of a forward pass of one sample."""
    if isinstance(layer, Network):
        total = 0
        for _, inside in layer.layers:
            total += _operations(inside, shape)
            shape = inside.output_shape(shape)
        return total
    output = layer.output_shape(shape)
    if isinstance(layer, Residual):
        ways = [layer.body] if layer.projection is None else [layer.body, layer.projection]
        return sum(_operations(way, shape) for way in ways) + ELEMENT * prod(output)
    weight = layer.parameters(shape).get("weight")
    return prod((*weight, *output[:-1])) if weight else ELEMENT * max(prod(shape), prod(output))
