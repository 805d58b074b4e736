"""Training steps on the device: recorded ones equal those that are not, and all equal the host's."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cupy
import numpy as np
import pytest

from mpinn.array import cuda
from mpinn.array import ops as plain
from mpinn.array.cuda_memory import CudaMemory, as_of
from mpinn.array.pool import Pool
from mpinn.array.precision import bfloat16
from mpinn.comm.channel import NullChannel
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.models.cnn import CNN
from mpinn.models.mlp import MLP
from mpinn.models.model import Model
from mpinn.models.resnet import ResNet
from mpinn.nn.activation import Activation
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.dropout import Dropout
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm
from mpinn.nn.optimizer import SGD, AdamW, Optimizer
from mpinn.nn.part import Part, build_part
from mpinn.nn.pool import GlobalAveragePool, MaxPool2d
from mpinn.nn.residual import Residual
from mpinn.schedules.schedule import Measured
from mpinn.schedules.serial import Serial
from mpinn.training.update import OptimizerUpdate

MODELS: dict[str, Callable[[], Model]] = {
    "mlp": lambda: MLP(widths=(24, 16), dropout=0.3, norm="batch").build((7,), 5),
    "mlp with layer norm": lambda: MLP(widths=(24, 16), norm="layer", activation="gelu").build((7,), 5),
    "images": lambda: images(),
}
if not hasattr(cupy, "EMULATED"):  # without a device a large convolution takes minutes
    MODELS["cnn"] = lambda: CNN().build((12, 12, 1), 5)
    MODELS["resnet"] = lambda: ResNet(depth=20).build((8, 8, 3), 5)
OPTIMIZER = SGD(rate=0.05, decay="constant", weight_decay=0.01)


def images() -> Model:
    way = Network((("conv", Conv2d(4, bias=False)), ("norm", BatchNorm())))
    layers = (
        ("conv", Conv2d(4, stride=2, bias=False)), ("norm", BatchNorm(activation="relu")), ("block", Residual(way)),
        ("relu", Activation()), ("pool", MaxPool2d()), ("drop", Dropout(0.2)), ("means", GlobalAveragePool()),
        ("output", Dense(5)),
    )  # fmt: skip
    return Model(Network(layers), (8, 8, 2), stem=1, head=1)


class Told(OptimizerUpdate):
    """An update that keeps what it is told of the gradient, in pieces of ``bucket`` bytes."""

    bucket = 0

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.spans: list[slice] = []
        self.seen: list[np.ndarray] = []

    def ready(self, part: Part, span: slice) -> None:
        self.spans.append(span)
        self.seen.append(part.ops.on_host(part.grads[span]).copy())


def batch(model: Model, index: int, count: int, ops: Any, dtype: Any) -> Batch:
    rng = np.random.default_rng(index)
    x = ops.on_device(rng.standard_normal((count, *model.shape)).astype(dtype))
    target = ops.on_device(rng.integers(0, 5, count))
    return Batch(index, 0, x, target, count, count, (1, 2), np.arange(count))


def trained(
    model: Model, ops: Any, dtype: str, *, record: bool = True, clip: float = 0.0, optimizer: Optimizer = OPTIMIZER,
    bucket: int = 0, steps: int = 7,
) -> tuple[Part, list[float], Told]:  # fmt: skip
    short = dtype == "bfloat16"
    whole, compute = np.dtype("float32" if short else dtype), bfloat16() if short else None
    part = build_part("network", model.network, model.shape, whole, optimizer.slots, ops=ops, compute_dtype=compute)
    part.initialize(3)
    schedule = Serial(part, CrossEntropy(0.1), 5)
    if not record:
        schedule._recorder = None
    alone = Independent(NullChannel("alone"))
    update = Told(alone, optimizer, lambda step: 0.01 * (step + 1), clip, schedule.parts)
    update.bucket = bucket
    losses: list[Measured] = []
    for step in range(steps):
        losses += schedule.step(batch(model, step, 6 if step % 3 else 4, ops, part.compute_dtype), update)
    return part, [float(measured.loss) for measured in losses], update


def vectors(part: Part) -> list[np.ndarray]:
    return [part.ops.on_host(vector) for vector in (part.weights, part.state, part.grads, *part.slots.values())]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_recorded_step_is_the_step_to_the_last_bit(name: str, dtype: str) -> None:
    model = MODELS[name]()
    (one, losses, _), (other, found, _) = (trained(model, cuda, dtype, record=record) for record in (False, True))
    assert losses == found
    for left, right in zip(vectors(one), vectors(other), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("clip", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", [OPTIMIZER, AdamW(decay="constant")])
@pytest.mark.parametrize("name", MODELS)
def test_the_device_trains_as_the_host_does(name: str, optimizer: Optimizer, clip: float) -> None:
    model = MODELS[name]()
    (one, losses, _), (other, found, _) = (
        trained(model, ops, "float64", clip=clip, optimizer=optimizer) for ops in (plain, cuda)
    )
    np.testing.assert_allclose(losses, found, rtol=1e-10)
    for left, right in zip(vectors(one), vectors(other), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["mlp", "mlp with layer norm", "images"])
def test_activations_in_bfloat16_change_a_gradient_by_a_few_roundings(name: str) -> None:
    """Deeper networks make more of them; `mpinn.bench.gpu` has their errors beside those of PyTorch."""
    model, gradients = MODELS[name](), []
    for dtype in ("float64", "bfloat16"):
        part, _, _ = trained(model, cuda, dtype, steps=1, optimizer=replace(OPTIMIZER, rate=1e-300))
        assert {vector.dtype for vector in vectors(part)} == {part.layout.dtype}
        grads = part.grads.get()
        gradients.append(np.concatenate([grads[entry.slice] for entry in part.layout]))
    exact, found = gradients
    apart = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert 2.0**-10 < apart < 16 * 2.0**-8


@pytest.mark.parametrize("bucket", [1, 400, 10**9])
@pytest.mark.parametrize("record", [False, True])
def test_pieces_of_the_gradient_are_told_from_its_end_and_complete(record: bool, bucket: int) -> None:
    model = MODELS["mlp"]()
    part, _, update = trained(model, cuda, "float32", record=record, bucket=bucket, steps=5)
    whole = part.layout.size
    places, steps = iter(update.spans), 0
    for span in places:
        stop = whole
        while True:
            assert span.stop == stop
            stop = span.start
            if not stop:
                break
            span = next(places)
        steps += 1
    assert steps == 5
    last = update.seen[-1]
    np.testing.assert_array_equal(last, part.grads.get()[update.spans[-1]])
    assert record is False or (len(update.spans) == 5) == (bucket == 10**9)


class Sent(Told):
    """An update that copies each piece to the host beside the computing, as messages do."""

    def ready(self, part: Part, span: slice) -> None:
        memory, piece = CudaMemory(), part.grads[span]
        into = memory.pinned_empty(piece.shape, piece.dtype)
        self.sent.append((span, into, memory.now(), memory.copy_out(into, piece, (memory.now(),))))

    sent: list[Any]


def test_a_piece_leaves_when_it_is_there_and_not_when_the_step_ends() -> None:
    model = MODELS["images"]()
    part = build_part("network", model.network, model.shape, np.dtype("float32"), OPTIMIZER.slots, ops=cuda)
    part.initialize(3)
    schedule = Serial(part, CrossEntropy(), 5)
    update = Sent(Independent(NullChannel("alone")), OPTIMIZER, lambda _: 0.01, 0.0, schedule.parts)
    update.bucket = 4
    for step in range(4):
        update.sent = []
        schedule.step(batch(model, step, 6, cuda, "float32"), update)
        grads = part.grads.get()
        assert len(update.sent) > 3
        for span, into, now, copied in update.sent:
            copied.synchronize()
            assert now.done
            np.testing.assert_array_equal(into, grads[span])


def test_what_was_recorded_gives_its_memory_back() -> None:
    pool = cupy.get_default_memory_pool()
    recorder, free = cuda.recorder(), []
    x = cupy.ones((1000, 1000), np.float32)
    for _ in range(3):
        for _ in range(3):
            recorder("key", (x,), lambda path: (0, 0, 0, 0), lambda inputs, pool, keys, cut: doubled(inputs[0], pool))
        recorder.close()
        cuda.synchronize()
        pool.free_all_blocks()
        free.append(cupy.cuda.runtime.memGetInfo()[0])
    assert free[0] == free[2]


def doubled(x: Any, pool: Pool) -> Any:
    return cuda.add(x, x, pool)


def test_messages_may_begin_as_of_an_earlier_moment() -> None:
    memory = CudaMemory()
    earlier = memory.now()
    with as_of(earlier):
        assert memory.now() is earlier
    assert memory.now() is not earlier


def test_a_step_that_changes_nothing_leaves_the_gradient_of_its_own_batch() -> None:
    """The graph reads the batch it is given, not the one it was recorded with."""
    model = MODELS["mlp"]()
    part, _, _ = trained(model, cuda, "float64", steps=4)
    schedule = Serial(part, CrossEntropy(), 5)
    quiet = Told(Independent(NullChannel("alone")), replace(OPTIMIZER, rate=1e-300), lambda _: 0.0, 0.0, schedule.parts)
    seen = []
    for index in (0, 0, 0, 1, 0):
        schedule.step(batch(model, index, 6, cuda, "float64"), quiet)
        seen.append(part.grads.get())
    for again in (1, 2, 4):
        np.testing.assert_array_equal(seen[0], seen[again])
    assert np.abs(seen[0] - seen[3]).max() > 1e-3


def test_a_steady_step_takes_no_more_memory() -> None:
    model, pool = MODELS["images"](), cupy.get_default_memory_pool()
    part = build_part("network", model.network, model.shape, np.dtype("float32"), OPTIMIZER.slots, ops=cuda)
    part.initialize(0)
    schedule = Serial(part, CrossEntropy(), 0)
    update = OptimizerUpdate(Independent(NullChannel("alone")), OPTIMIZER, lambda _: 0.01, 0.0, schedule.parts)
    batches = [batch(model, index, 4, cuda, "float32") for index in range(2)]
    for step in range(4):
        schedule.step(batches[step % 2], update)
    cuda.synchronize()
    held, buffers = pool.total_bytes(), part.pool.nbytes
    for step in range(4):
        schedule.step(batches[step % 2], update)
    cuda.synchronize()
    assert (pool.total_bytes(), part.pool.nbytes) == (held, buffers)
