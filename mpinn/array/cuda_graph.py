"""Work of a training step recorded once as CUDA graphs and launched again: one launch in place of hundreds.

A graph reads and writes fixed addresses, so a batch is copied to arrays that stay, and what else changes from step to
step is read from the device when the graph runs. Where the host has something to do in between, as sending a piece of
the gradient, the graph is cut; the host does it while the device is at the next graph.
"""

from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cupy
import numpy as np

from mpinn.array.cuda_memory import as_of, recorded
from mpinn.array.cuda_vectors import set_words
from mpinn.array.pool import Pool
from mpinn.array.recording import Between, Numbers, Path, Work
from mpinn.array.typing import Array
from mpinn.errors import LocalError

FULL = 2
"""What CUDA calls an error of allocation."""
WORDS = 4
"""Numbers that a layer is given from the host in each step."""


@dataclass(eq=False)
class Tape:
    """What some work does: graphs, and between them what the host does. ``memory`` is the graphs' alone."""

    inputs: tuple[Array, ...]
    pool: Pool
    memory: Any
    items: list[Any] = field(default_factory=list)
    words: dict[Path, Array] = field(default_factory=dict)
    result: Any = None

    def cut(self, first: Callable[[], Between]) -> None:
        """End a graph here; the host's turn."""
        self._end()
        self.items.append(first)
        self._begin()

    def place(self, path: Path) -> Array:
        """Where the layer at a path finds its four numbers.

        Not in memory of the graphs': they would write there what they have in it before the layer comes.
        """
        if path not in self.words:
            with cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc):
                self.words[path] = cupy.empty(WORDS, np.uint32)
        return self.words[path]

    def record(self, work: Work) -> None:
        """Record the work; the device does nothing of it."""
        with cupy.cuda.using_allocator(self.memory.malloc):
            self._begin()
            try:
                self.result = work(self.inputs, self.pool, self.place, self.cut)
            except BaseException:
                with suppress(cupy.cuda.runtime.CUDARuntimeError):
                    self._end()
                raise
            self._end()

    def _begin(self) -> None:
        cupy.cuda.get_current_stream().begin_capture()

    def _end(self) -> None:
        self.items.append(cupy.cuda.get_current_stream().end_capture())

    def play(self, inputs: tuple[Array, ...]) -> Any:
        """Do the work with a batch; what it leaves behind stands in arrays that the next time are written again."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own[...] = given
        stream, waiting = cupy.cuda.get_current_stream(), _nothing
        for item in self.items:
            if callable(item):
                between = item()
                waiting = partial(_between, between, recorded(stream))
            else:
                # the device has the next graph before the host turns to what comes before it
                item.launch(stream)
                waiting()
                waiting = _nothing
        waiting()
        return self.result


def _between(work: Between, event: Any) -> None:
    with as_of(event):
        work()


def _nothing() -> None:
    """The host has nothing to do."""


def _given(size: int) -> Any:
    """Memory of the device; raises MemoryError where it is full.

    The default allocator's error lets a pool of CuPy's give back what is free in it, and ask again. Of the pool of a
    graph that is what recorded work uses.
    """
    try:
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if error.status != FULL:
            raise
        raise MemoryError(f"{size:,} bytes more") from None


class Recorder:
    """Does the same work again and again, each time with other inputs of shapes that it knows from their ``key``.

    The first time it is simply done, which prepares kernels, with buffers that are given back; from the second time on
    it is recorded and played. Works follow one another, so they share their memory, but for those that are to ``keep``
    what they leave behind until they are done again: another one would write there.
    """

    def __init__(self) -> None:
        self._tapes: dict[Hashable, Tape | None] = {}
        self._shared = cupy.cuda.MemoryPool(_given), Pool(cupy)
        self._inputs: dict[Hashable, Array] = {}

    def __contains__(self, key: Hashable) -> bool:
        """Whether it has been done once, and will be played."""
        return key in self._tapes

    def __call__(
        self,
        key: Hashable,
        inputs: tuple[Array, ...],
        numbers: Numbers,
        work: Work,
        keep: bool = False,
    ) -> Any:
        """What ``work`` gives; ``numbers``: the four of the layer at a path, in this step."""
        if key not in self._tapes:
            done = work(inputs, Pool(cupy), None, lambda first: first()())
            self._tapes[key] = None
            return done
        tape = self._tapes[key]
        if tape is None:
            cupy.get_default_memory_pool().free_all_blocks()
            memory, pool = (cupy.cuda.MemoryPool(_given), Pool(cupy)) if keep else self._shared
            tape = Tape(tuple(map(cupy.empty_like, inputs)) if keep else self._common(inputs), pool, memory)
            try:
                tape.record(work)
            except MemoryError as error:
                why = "the GPU is full while a step is recorded, which keeps its memory"
                raise LocalError(f"{why}: {error}; choose a smaller data.batch, or more stages or shards") from None
            self._tapes[key] = tape
        for path, place in tape.words.items():
            set_words(place, numbers(path))
        return tape.play(inputs)

    def _common(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Where works that keep nothing find inputs of such shapes."""
        found = []
        for place, given in enumerate(inputs):
            kind = place, given.shape, given.dtype
            if kind not in self._inputs:
                self._inputs[kind] = cupy.empty_like(given)
            found.append(self._inputs[kind])
        return tuple(found)

    def close(self) -> None:
        """Forget what was recorded, and give its memory back, which a pool that dies with free blocks would not."""
        memories = [self._shared[0], *(tape.memory for tape in self._tapes.values() if tape)]
        self._tapes.clear()
        self._inputs.clear()
        self._shared = memories[0], Pool(cupy)
        for memory in memories:
            memory.free_all_blocks()


def recorder() -> Recorder:
    """The twin of `ops.recorder`."""
    return Recorder()
