"""Training of one stage of which all is noted, among ranks that are not there: what comes from them is drawn."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cupy
import numpy as np
import pytest

from mpinn.array import cuda
from mpinn.array.cuda_memory import CudaMemory
from mpinn.array.pool import SMALL
from mpinn.array.typing import Array
from mpinn.comm.channel import NullChannel, Pending
from mpinn.comm.transport import ALL, NOTHING, Direct, Staged
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.nn.optimizer import SGD
from mpinn.nn.part import Part
from mpinn.training.update import OptimizerUpdate

SIZES: dict[str, Callable[[int], int]] = {
    "two sizes": lambda n: 5 + n % 2,
    "a last one": lambda n: 3 if n % 10 == 9 else 6,
    "none at times": lambda n: 0 if n % 6 == 5 else 6,
}
"""Samples of batch n."""
WAYS = pytest.mark.parametrize(("transport", "clip", "small"), [("staged", 0.1, 0), ("direct", 0.0, SMALL)])
"""Arrays of at least ``small`` bytes come from pools."""
OPTIMIZER = SGD(rate=0.05, decay="constant", weight_decay=0.01)


def numbers(seed: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """On the host."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass(eq=False)
class Message:
    """One under way. MPI touches its memory when it is waited for, and asks no stream of the program's."""

    memory: Any
    loan: Any
    note: dict[str, Any]
    drawn: Array | None = None
    complete: bool = False
    beside: Any = field(default_factory=lambda: cupy.cuda.Stream(non_blocking=True))

    def test(self) -> bool:
        """Not before somebody waits."""
        return self.complete

    def wait(self) -> None:
        """Bring or take the values."""
        if self.complete:
            return
        self.complete = True
        with self.beside:
            if self.drawn is None:
                self.note["values"] = np.array(cuda.on_host(self.memory))
            else:
                cuda.fill(self.memory, self.drawn)
            self.beside.synchronize()
        self.loan.end()
        self.loan.settle()


class Neighbours(NullChannel):
    """Rank ``rank`` of ``size``. ``notes``: of each message sent to whom it went, its tag, and what arrived there."""

    def __init__(self, rank: int, size: int, transport: str) -> None:
        super().__init__("stages")
        self.rank, self.size, self.notes = rank, size, list[dict[str, Any]]()
        self._transport: Any = {"staged": Staged, "direct": Direct}[transport](CudaMemory())

    def send(self, array: Array, to: int, tag: int = 0) -> Pending:
        (loan,) = self._transport.lend([array], ALL, False)
        self.notes.append({"to": to, "tag": tag})
        return Message(loan.begin(), loan, self.notes[-1])

    def receive(self, into: Array, source: int, tag: int = 0) -> Pending:
        (loan,) = self._transport.lend([into], NOTHING, True)
        drawn = numbers((source, tag), into.shape)
        return Message(loan.begin(), loan, {}, drawn)


class Told(OptimizerUpdate):
    """An update that sees to it that pieces of a gradient are complete when it is told of them, from its end on.

    ``gradients``: all that it was called with.
    """

    bucket = 0

    def __init__(self, parts: Any, bucket: int, clip: float):
        super().__init__(Independent(NullChannel("alone")), OPTIMIZER, lambda step: 0.02, clip, parts)
        self.bucket, self.gradients = bucket, list[Array]()
        self._memory, self._pieces = CudaMemory(), dict[str, list[tuple[slice, Array]]]()

    def ready(self, part: Part, span: slice) -> None:
        array = part.grads[span]
        host = self._memory.pinned_empty(array.shape, array.dtype)
        self._memory.copy_out(host, array, (self._memory.now(),)).synchronize()
        self._pieces.setdefault(part.name, []).append((span, host))

    def __call__(self, part: Part, batch: Batch) -> None:
        whole = cuda.on_host(part.grads).copy()
        self.gradients.append(whole)
        stop = whole.size
        for span, values in self._pieces.pop(part.name):
            assert span.stop == stop
            np.testing.assert_array_equal(values, whole[span])
            stop = span.start
        assert stop == 0
        super().__call__(part, batch)


def batch(index: int, count: int, shape: tuple[int, ...] = ()) -> Batch:
    """Samples of ``shape`` of five classes."""
    x = cuda.on_device(numbers((index,), (count, *shape)))
    target = cuda.on_device(np.random.default_rng(index).integers(0, 5, count))
    return Batch(index, 0, x, target, count, max(1, count), (index % 2, 3), np.arange(count))


def vectors(part: Part) -> list[Array]:
    """All that training changes."""
    return [cuda.on_host(vector).copy() for vector in (part.weights, part.state, *part.slots.values())]


def assert_same(one: Any, other: Any) -> None:
    """Equal to the last bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = [*one.values()], [*other.values()]
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


def sizes_of(recorder: Any) -> set[int]:
    """Of the batches whose passes are recorded."""
    return {len(tape.inputs[0]) for tape in recorder._tapes.values() if tape}
