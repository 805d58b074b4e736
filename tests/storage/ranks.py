"""Ranks as threads of one process, and a model to save: what the storage tests share."""

import threading
from collections.abc import Callable, Mapping
from queue import Queue
from typing import Any

import numpy as np

from mpinn.array.typing import Array, Shapes
from mpinn.nn.layout import Layout
from mpinn.storage.schema import Snapshot, VectorSpec

SHAPES: Shapes = {
    "hidden1": {"dense": {"weight": (7, 5), "bias": (5,)}, "norm": {"scale": (5,)}},
    "Überlagerung β": {"gain": (), "nothing": (0, 3), "kernel": (3, 3, 1, 2)},
    "output": {"dense": {"weight": (5, 1), "bias": (1,)}},
}
STATE: Shapes = {"hidden1": {"norm": {"mean": (5,), "variance": (5,)}}}


class Done:
    def __init__(self, action: Callable[[], None] | None = None):
        self._action = action

    def wait(self) -> None:
        if self._action is not None:
            self._action()


class Threads:
    """The channels of ``size`` ranks that are threads; a message that is sent is copied at once."""

    def __init__(self, size: int):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=30)
        self.boxes = {(a, b): Queue() for a in range(size) for b in range(size)}
        self.shared: list[Any] = [None] * size
        self.largest = 0

    def run(self, program: Callable[["ThreadChannel"], Any]) -> list[Any]:
        """Run the program on all ranks; the first exception, if any, is raised here."""
        results: list[Any] = [None] * self.size
        errors: list[BaseException] = []

        def rank(number: int) -> None:
            try:
                results[number] = program(ThreadChannel(self, number))
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=rank, args=(number,)) for number in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results


class ThreadChannel:
    def __init__(self, world: Threads, rank: int):
        self.world = world
        self.rank = rank
        self.size = world.size

    def send(self, array: Array, to: int, tag: int) -> Done:
        assert array.flags.c_contiguous
        self.world.largest = max(self.world.largest, array.nbytes)
        self.world.boxes[self.rank, to].put((array.copy(), tag))
        return Done()

    def receive(self, into: Array, source: int, tag: int) -> Done:
        def take() -> None:
            array, sent = self.world.boxes[source, self.rank].get(timeout=30)
            assert (array.shape, array.dtype, sent) == (into.shape, into.dtype, tag)
            into[...] = array

        return Done(take)

    def all_gather(self, array: Array, into: Array) -> Done:
        assert into.shape == (self.size, *array.shape)
        self.world.shared[self.rank] = array.copy()
        self.world.barrier.wait()
        for rank, other in enumerate(self.world.shared):
            into[rank] = other
        self.world.barrier.wait()
        return Done()

    def broadcast(self, array: Array, root: int) -> Done:
        if self.rank == root:
            self.world.shared[root] = array.copy()
        self.world.barrier.wait()
        array[...] = self.world.shared[root]
        self.world.barrier.wait()
        return Done()


def alone() -> ThreadChannel:
    return ThreadChannel(Threads(1), 0)


def filled(layout: Layout, seed: int) -> Array:
    """A vector with random values in every entry and zeros in the padding."""
    rng, vector = np.random.default_rng(seed), np.zeros(layout.size, layout.dtype)
    for entry in layout:
        vector[entry.slice] = rng.standard_normal(entry.size)
    return vector


def specs(seed: int = 0, dtype: str = "float32", shapes: Shapes = SHAPES) -> list[VectorSpec]:
    """Weights, momentum, running statistics, and an empty state."""
    model, state, empty = Layout(shapes, dtype), Layout(STATE, dtype), Layout({}, dtype)
    return [
        VectorSpec("model/network", model, filled(model, seed)),
        VectorSpec("optimizer/momentum/network", model, filled(model, seed + 100)),
        VectorSpec("state/network", state, filled(state, seed + 200)),
        VectorSpec("state/predictor", empty, filled(empty, 0)),
    ]


def blank(like: list[VectorSpec]) -> list[VectorSpec]:
    """Vectors to restore into, full of what must be gone afterwards."""
    return [VectorSpec(spec.kind, spec.layout, np.full_like(spec.vector, 7)) for spec in like]


def snapshot(step: int, vectors: list[VectorSpec], replicas: int = 1, **more: Any) -> Snapshot:
    settings: Mapping[str, Any] = {
        "epoch": step // 10,
        "seed": 3,
        "grid": (replicas, 1, 1),
        "dtype": str(vectors[0].layout.dtype),
        "configuration": {"model": {"name": "mlp", "widths": [7, 5]}, "run": {"directory": "runs/größe"}},
        "data": {"position": 128 * step, "deal": "fixed"},
        "random": {"seed": 3},
        "scalars": {"best": 0.5, "weights": np.array([0.25, 0.75])},
        "history": {"step": np.arange(step), "loss": 1 / np.arange(1, step + 1)},
    }
    return Snapshot(step=step, vectors=vectors, **{**settings, **more})
