"""The same training step by two programs on one device: ours, as `mpinn.schedules.serial` does it, and PyTorch's."""

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from time import perf_counter
from typing import Any

import numpy as np

from mpinn.array import ops as plain
from mpinn.array.typing import Array, Dtype
from mpinn.bench.gpu_roofline import Precision
from mpinn.bench.peer import gradient, images, import_torch, stored, translate
from mpinn.bench.timing import Operation
from mpinn.comm.channel import NullChannel
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.models.model import Model
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.optimizer import SGD
from mpinn.nn.part import Part, build_part
from mpinn.schedules.serial import Serial
from mpinn.training.update import OptimizerUpdate

OPTIMIZER = SGD(rate=1e-3, decay="constant")
CLASSES = 10
BATCHES = 4
"""Batches that a program trains with in turn."""
WARM = 4
"""Steps before anything is measured: the first prepares, the second is recorded."""
LAYOUT = "channels last"
SINGLE = np.dtype(np.float32)


@dataclass(frozen=True, eq=False)
class Program:
    """A training step, how its time on the device and on the host is taken, and bytes of the device that it holds."""

    step: Operation
    device: Callable[[Operation, int], float]
    host: Callable[[Operation, int], float]
    memory: int


def batches(model: Model, count: int, samples: int = BATCHES) -> list[Batch]:
    """Random batches in host memory."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(samples):
        x = rng.standard_normal((count, *model.shape), np.float32)
        target = rng.integers(0, CLASSES, count)
        found.append(Batch(index, 0, x, target, count, count, (0, 1), np.arange(count)))
    return found


def initial(model: Model) -> Part:
    """The model on the host, with the weights from which all programs start."""
    part = _part(model, plain, SINGLE, SINGLE)
    part.initialize(0)
    return part


def _part(model: Model, ops: Any, dtype: Dtype, compute: Dtype) -> Part:
    return build_part("network", model.network, model.shape, dtype, OPTIMIZER.slots, ops=ops, compute_dtype=compute)


def _started(model: Model, start: Part, ops: Any, dtype: Dtype, compute: Dtype) -> Part:
    """A part on the device with the weights and statistics of ``start``, and activations of the type ``compute``."""
    part = _part(model, ops, dtype, compute)
    pairs = ((part.layout, part.weights, start.layout, start.weights),
             (part.state_layout, part.state, start.state_layout, start.state))  # fmt: skip
    for own, into, given, values in pairs:
        vector = np.zeros(own.size, dtype)
        for entry, other in zip(own, given, strict=True):
            vector[entry.slice] = values[other.slice]
        ops.fill(into, vector)
    return part


def on_device(batch: Batch, ops: Any, dtype: Dtype) -> Batch:
    """The batch where the kernels work."""
    return replace(batch, x=ops.on_device(batch.x.astype(dtype)), target=ops.on_device(batch.target))


def free_bytes() -> int:
    """Of the device, when nobody holds what he does not use."""
    from mpinn.array import cuda_timing

    gc.collect()
    return cuda_timing.free_bytes()


def ours(model: Model, start: Part, given: list[Batch], ops: Any, compute: Dtype) -> Program:
    """Our step, recorded and played."""
    from mpinn.array import cuda_timing

    before = free_bytes()
    part = _started(model, start, ops, SINGLE, compute)
    schedule = Serial(part, CrossEntropy(), 0)
    update = OptimizerUpdate(
        Independent(NullChannel("bench")), OPTIMIZER, lambda step: OPTIMIZER.rate, 0.0, schedule.parts
    )
    queue = cycle([on_device(batch, ops, compute) for batch in given])

    def step() -> object:
        return schedule.step(next(queue), update)

    for _ in range(WARM):
        step()
    return Program(step, cuda_timing.seconds, cuda_timing.launch_seconds, before - free_bytes())


class Still:
    """An update that moves no weights."""

    bucket = 0

    def ready(self, part: Part, span: slice) -> None:
        """Nobody wants to know."""

    def __call__(self, part: Part, batch: Batch) -> None:
        """Nothing to do."""


def our_gradient(model: Model, start: Part, batch: Batch, ops: Any, dtypes: tuple[Dtype, Dtype], steps: int) -> Array:
    """That of the summed loss by matrices and kernels, after steps without an update: from the second on played.

    ``dtypes``: of weights and of activations.
    """
    part = _started(model, start, ops, *dtypes)
    schedule, moved = Serial(part, CrossEntropy(), 0), on_device(batch, ops, dtypes[1])
    for _ in range(steps):
        schedule.step(moved, Still())
    grads = ops.on_host(part.grads)
    return np.concatenate([grads[entry.slice] for entry in part.layout if len(entry.shape) > 1])


@dataclass(frozen=True, eq=False)
class Peer:
    """PyTorch on a device, which is the host in a rehearsal."""

    torch: Any
    device: str

    @contextmanager
    def at(self, precision: Precision, tuned: bool = False) -> Iterator[None]:
        """Products and activations in a precision; ``tuned``: convolutions are chosen by timing."""
        matmul, cudnn = self.torch.backends.cuda.matmul, self.torch.backends.cudnn
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of newer names for these
            before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
            matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = precision.tf32, precision.tf32, tuned
            try:
                yield
            finally:
                matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before

    def loss(self, network: Any, x: Any, target: Any, precision: Precision) -> Any:
        """The mean cross-entropy; with activations in bfloat16 where that is wanted, as autocast chooses them."""
        with self.torch.autocast(self.device, dtype=self.torch.bfloat16, enabled=precision.bf16):
            return self.torch.nn.functional.cross_entropy(network(x), target)

    def program(
        self,
        model: Model,
        start: Part,
        given: list[Batch],
        precision: Precision,
        tuned: bool = False,
        compiled: bool = False,
    ) -> Program:
        """Its step, with channels last and the fused optimizer."""
        torch, before = self.torch, self.free_bytes()
        module = self._module(model, start)
        network = torch.compile(module) if compiled else module
        fused = {"fused": True} if self.device != "cpu" else {}
        rates = {"lr": OPTIMIZER.rate, "momentum": OPTIMIZER.momentum}
        optimizer = torch.optim.SGD(module.parameters(), **rates, **fused)
        queue = cycle([self._moved(batch) for batch in given])

        def step() -> None:
            x, target = next(queue)
            optimizer.zero_grad(set_to_none=True)
            self.loss(network, x, target, precision).backward()
            optimizer.step()

        return self.timed(step, precision, before, tuned)

    def timed(self, step: Operation, precision: Precision, before: int, tuned: bool = False) -> Program:
        """A step that is measured in a precision; of ``before`` it so many bytes of the device were free."""

        def at(measured: Callable[[Operation, int], float]) -> Callable[[Operation, int], float]:
            def run(operation: Operation, calls: int) -> float:
                with self.at(precision, tuned):
                    return measured(operation, calls)

            return run

        at(self._seconds)(step, WARM)
        return Program(step, at(self._seconds), at(self._launch_seconds), before - self.free_bytes())

    def gradient(self, model: Model, start: Part, batch: Batch, precision: Precision) -> Array:
        """As `our_gradient`."""
        module = self._module(model, start)
        x, target = self._moved(batch)
        with self.at(precision):
            self.loss(module, x, target, precision).backward()
        return gradient(module.cpu()) * batch.count

    def _module(self, model: Model, start: Part) -> Any:
        module = translate(model.network, model.shape, start.weight_views, self.torch)
        return stored(module.to(self.device), LAYOUT, self.torch)

    def _moved(self, batch: Batch) -> tuple[Any, Any]:
        x = images(batch.x, LAYOUT, self.torch).to(self.device)
        return x, self.torch.from_numpy(batch.target).to(self.device)

    def free_bytes(self) -> int:
        """Of the device, when nobody holds what he does not use."""
        gc.collect()
        if self.device != "cpu":
            self.torch.cuda.synchronize()
            self.torch.cuda.empty_cache()
        return free_bytes()

    def _seconds(self, operation: Operation, calls: int) -> float:
        if self.device == "cpu":
            return self._launch_seconds(operation, calls)
        begun, ended = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        for _ in range(calls):
            operation()
        ended.record()
        ended.synchronize()
        return float(begun.elapsed_time(ended)) * 1e-3 / calls

    def _launch_seconds(self, operation: Operation, calls: int) -> float:
        self._synchronize()
        begun = perf_counter()
        for _ in range(calls):
            operation()
        taken = perf_counter() - begun
        self._synchronize()
        return taken / calls

    def _synchronize(self) -> None:
        if self.device != "cpu":
            self.torch.cuda.synchronize()


def find_peer() -> Peer | None:
    """PyTorch with CUDA, where there is such a one."""
    torch = import_torch()
    return Peer(torch, "cuda") if torch is not None and torch.cuda.is_available() else None


def apart(gradients: Mapping[str, Array], exact: Array) -> dict[str, float]:
    """How far each gradient is from the exact one, as a share of its norm."""
    return {name: float(np.linalg.norm(own - exact) / np.linalg.norm(exact)) for name, own in gradients.items()}
