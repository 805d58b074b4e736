"""A stage whose passes are recorded does what one does whose passes are not, to the last bit."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import cupy
import numpy as np
import pytest
from recording import assert_same

from mpinn.array import cuda
from mpinn.array.typing import Array
from mpinn.comm.channel import DONE, NullChannel, Pending
from mpinn.datasets.batches import Batch
from mpinn.models.mlp import MLP
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.part import Part, build_part
from mpinn.schedules.stage import Place, Stage
from mpinn.schedules.versions import Stash
from mpinn.trace import SILENT

MODEL = MLP(widths=(24, 20, 16, 12), dropout=0.3, norm="batch").build((7,), 5)
BOUNDS = (2, 4)
INPUTS, OUTPUTS = (MODEL.network[:bound].output_shape(MODEL.shape) for bound in BOUNDS)
STEPS = 6


class Beside(NullChannel):
    """To the stages beside the second of three, which only listen."""

    def __init__(self) -> None:
        super().__init__("stages")
        self.rank, self.size, self.sent = 1, 3, list[Any]()

    def send(self, array: Array, to: int, tag: int = 0) -> Pending:
        self.sent.append((to, tag, cuda.on_host(array).copy()))
        return DONE


class Told:
    """An update that keeps the pieces of the gradient that it is told of."""

    def __init__(self, bucket: int) -> None:
        self.bucket, self.pieces = bucket, list[Any]()

    def ready(self, part: Part, span: slice) -> None:
        self.pieces.append((span, cuda.on_host(part.grads[span]).copy()))

    def __call__(self, part: Part, batch: Batch) -> None:
        raise AssertionError("no stage updates by itself")


def middle(record: bool) -> tuple[Stage, Beside]:
    network = MODEL.network[slice(*BOUNDS)]
    part = build_part("network", network, INPUTS, np.dtype("float32"), (), ops=cuda)
    part.initialize(3)
    channel = Beside()
    stage = Stage(part, CrossEntropy(), 5, Place(channel, NullChannel("aside"), INPUTS, OUTPUTS, SILENT))
    if not record:
        stage._recordings = None
    return stage, channel


def batch(index: int, count: int) -> Batch:
    return Batch(index, 0, np.zeros(0), np.zeros(0), count, count, (index % 2, 3), np.arange(count))


def numbers(seed: int, count: int, shape: tuple[int, ...]) -> Any:
    return cuda.on_device(np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32))


def passes(order: str) -> Iterator[tuple[str, int]]:
    """Forward and backward passes by number.

    gpipe and 1f1b with four micro-batches; fdg with three batches in flight, which are replayed or not; deeper and
    deeper, so that a pass is recorded when there are recordings of both ways.
    """
    for deep in range(1, STEPS) if order == "deeper" else ():
        for way in ("forward", "backward") * 3:
            yield from ((way, n) for n in range(deep))
    for step in range(STEPS if order in ("gpipe", "1f1b") else 0):
        own = range(4 * step, 4 * step + 4)
        ahead = 4 if order == "gpipe" else 2
        yield from (("forward", n) for n in own[:ahead])
        for place, n in enumerate(own):
            yield "backward", n
            if ahead + place < 4:
                yield "forward", own[ahead + place]
    if order in ("fdg", "replay"):
        for n in range(4 * STEPS):
            if n >= 3:
                yield "backward", n - 3
            yield "forward", n


def run(record: bool, order: str, size: Callable[[int], int], bucket: int = 0, versions: bool = False) -> list[Any]:
    """All that a stage has done, with weights that change after every backward pass."""
    stage, channel = middle(record)
    part, update, stash = stage.part, Told(bucket), Stash(stage.part) if versions else None
    total = stage.total() if order in ("gpipe", "1f1b") else None
    works: deque[Any] = deque()
    gradients = []
    for done, (way, n) in enumerate(passes(order)):
        own = batch(n, size(n))
        if way == "forward":
            version = stash.hold(done) if stash else None
            x = numbers(n, own.count, INPUTS)
            y, saved = stage.forward(own, x, recompute=order == "replay")
            stage.pass_on(y, own)
            works.append((saved, version, x))
            continue
        saved, version, x = works.popleft()
        if order == "replay":
            _, saved = stage.forward(own, x, version, again=True)
        if total is not None:
            total.first, total.last = n % 4 == 0, n % 4 == 3
        dy = numbers(-n - 1 & 0xFFFF, own.count, OUTPUTS)
        stage.backward(own, saved, dy, update, version, total)
        gradients.append(cuda.on_host(part.grads).copy())
        if stash and version:
            stash.release(version)
        part.weights *= 0.99
    return [channel.sent, gradients, [cuda.on_host(part.state)], update.pieces]


@pytest.mark.parametrize("versions", [False, True])
@pytest.mark.parametrize("order", ["gpipe", "1f1b", "fdg", "replay", "deeper"])
def test_recorded_passes_are_the_passes_to_the_last_bit(order: str, versions: bool) -> None:
    sizes = {"even": lambda n: 6, "two sizes": lambda n: 5 + n % 2, "a last one": lambda n: 3 if n % 12 == 11 else 6}
    for name, size in sizes.items():
        found = [run(record, order, size, versions=versions)[:3] for record in (True, False)]
        assert all(array.size for _, _, array in found[0][0]), name
        assert all(np.abs(gradient).max() > 0 for gradient in found[0][1]), name
        assert_same(*found)


@pytest.mark.parametrize("bucket", [1, 10**9])
def test_pieces_of_a_recorded_gradient_are_complete_when_they_are_told(bucket: int) -> None:
    found = run(True, "fdg", lambda n: 6, bucket)
    gradients, pieces = found[1], found[3]
    told, whole = iter(pieces), gradients[0].size
    for gradient in gradients:
        stop = whole
        while stop:
            span, values = next(told)
            assert span.stop == stop
            np.testing.assert_array_equal(values, gradient[span])
            stop = span.start
    assert next(told, None) is None


def test_there_are_as_many_recordings_as_passes_in_flight_and_none_for_a_rare_size() -> None:
    stage, _ = middle(True)
    recordings: Any = stage._recordings
    for n in range(40):
        own = batch(n, 4 if n % 10 == 9 else 6)
        works = [stage.forward(own, numbers(n, own.count, INPUTS))[1] for _ in range(3)]
        while works:
            dy = numbers(n, own.count, OUTPUTS)
            stage.backward(own, works.pop(0), dy, Told(0))
    forward = [key for key in recordings._recorder._tapes if key[0] == "forward"]
    assert sorted(key[6] for key in forward) == [0, 1, 2]
    assert {key[4] for key in forward} == {(6, *INPUTS)}


def test_what_a_pass_has_kept_is_not_written_while_somebody_has_it() -> None:
    stage, _ = middle(True)
    own = batch(0, 6)
    works: list[Any] = []
    for n in range(12):
        works.append(stage.forward(own, numbers(n, 6, INPUTS))[1])
        if n >= 4:
            stage.backward(own, works.pop(0), numbers(n, 6, OUTPUTS), Told(0))
    before = [[cuda.on_host(array).copy() for array in arrays(saved)] for saved in works]
    for n in range(12):
        saved = stage.forward(own, numbers(n + 50, 6, INPUTS))[1]
        stage.backward(own, saved, numbers(n, 6, OUTPUTS), Told(0))
    for saved, known in zip(works, before, strict=True):
        for array, values in zip(arrays(saved), known, strict=True):
            np.testing.assert_array_equal(cuda.on_host(array), values)


def arrays(saved: Any) -> Iterator[Any]:
    if isinstance(saved, list | tuple):
        for item in saved:
            yield from arrays(item)
    elif isinstance(saved, cupy.ndarray):
        yield saved


@pytest.mark.parametrize("order", ["fdg", "replay"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_recordings_do_not_grow(order: str, accumulate: int) -> None:
    """Passes in flight, versions of weights, sums of gradients and batches that are not recorded all have turns."""
    stage, _ = middle(True)
    recordings: Any = stage._recordings
    stash, total, found = Stash(stage.part), stage.total(), []
    works: deque[Any] = deque()
    for n in range(160):
        own = batch(n, 4 if n % 20 == 19 else 6)
        x, version = numbers(n, own.count, INPUTS), stash.hold(n)
        works.append((own, x, version, stage.forward(own, x, recompute=order == "replay")[1]))
        if n >= 4:
            before, x, version, saved = works.popleft()
            if order == "replay":
                _, saved = stage.forward(before, x, version, again=True)
            total.first, total.last = n % accumulate == 0, n % accumulate == accumulate - 1
            stage.backward(before, saved, numbers(n, before.count, OUTPUTS), Told(0), version, total)
            stash.release(version)
            del saved
        found.append(len(recordings._recorder._tapes))
    assert found[-1] == found[79]
    keys = [*recordings._recorder._tapes]
    assert len([key for key in keys if key[0] == "forward"]) == (2 if order == "replay" else 5)
    assert len([key for key in keys if key[0] == "backward"]) <= (1 if order == "replay" else 5) * accumulate
