"""Passes as they were recorded: on a device a pass of a stage is one launch, or a few, in place of hundreds.

A recorded pass leaves what it keeps in arrays of its own, so each pass in flight needs a recording of its own: there
are as many as there were passes in flight at once, and each is played again when nobody has its arrays any more. They
are worth their memory only for a size of batches that comes often: the last one of an epoch is not recorded. Whole
passes, forward and backward, of which one is under way at a time, share their memory: they are recorded for every size.
"""

import weakref
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np

from mpinn.array.pool import Pool
from mpinn.array.recording import Between, Cut, Keys, Numbers
from mpinn.array.typing import Array, Shape
from mpinn.datasets.batches import Batch
from mpinn.nn.layer import Finish, Pass, Saved, Tree, drawn_key
from mpinn.nn.part import Part
from mpinn.schedules.schedule import Update
from mpinn.schedules.versions import Version

RARE = 8
"""Of so many passes at least one must have the size of a batch for it to be recorded."""

Ready: TypeAlias = Callable[[Part, slice], None]
"""Told of a slice of a gradient that is complete."""
Passes: TypeAlias = Callable[[tuple[Array, ...], Pool, Keys | None, Cut, Ready], Any]
"""Forward and backward, as `mpinn.array.recording.Work`, with whom to tell of the gradient."""


def numbers_of(seed: int, batch: Batch) -> Numbers:
    """What the layer at a path is given in a pass with a batch: its key, and the rows."""
    return lambda path: (*drawn_key(seed, batch.index, path), *batch.rows)


def no_numbers(path: tuple[int, ...]) -> tuple[int, ...]:
    """Of a pass in which nothing is drawn."""
    return ()


class Pieces:
    """Gathers what is ready of a part's gradient, from its end, and tells the update between two graphs.

    In pieces of at least the bytes that the update wants; if those are 0, nobody is told in between.
    """

    def __init__(self, update: Update, cut: Cut, part: Part):
        self._update, self._cut, self._part = update, cut, part
        self._least = -(-update.bucket // part.layout.dtype.itemsize)
        self._start, self._stop = -1, -1

    def ready(self, part: Part, span: slice) -> None:
        """A slice is complete, just before those that were."""
        if self._stop < 0:
            self._stop = span.stop
        self._start = span.start
        if self._stop - self._start >= self._least:
            self.finish()

    def finish(self) -> None:
        """Tell of what was not told yet."""
        if self._least and self._stop > self._start:
            piece = slice(self._start, self._stop)
            self._cut(lambda: partial(self._update.ready, self._part, piece))
            self._stop = self._start


def repeat(recorder: Any, part: Part, inputs: tuple[Array, ...], numbers: Numbers, update: Update, work: Passes) -> Any:
    """A whole pass of a part, forward and backward, as it was recorded for the first inputs of these shapes.

    One is under way at a time. What it gives is written again by the next one.
    """

    def told(inputs: tuple[Array, ...], pool: Pool, keys: Keys | None, cut: Cut) -> Any:
        pieces = Pieces(update, cut, part)
        result = work(inputs, pool, keys, cut, pieces.ready)
        pieces.finish()
        return result

    result = recorder(tuple(given.shape for given in inputs), inputs, numbers, told)
    if not update.bucket:
        update.ready(part, slice(0, part.layout.size))
    return result


class Kept(list[Any]):
    """What a recorded forward pass has kept for its backward pass, in arrays that belong to the recording ``key``."""

    def __init__(self, saved: Saved, key: Hashable):
        super().__init__(_copied(saved))
        self.key = key


def _copied(saved: Saved) -> Any:
    """The same arrays in lists of one's own: a backward pass consumes them."""
    if isinstance(saved, tuple):
        return tuple(map(_copied, saved))
    return list(map(_copied, saved)) if isinstance(saved, list) else saved


class Owner(Protocol):
    """The stage whose passes are recorded."""

    part: Part
    returns: bool
    last: bool

    def context(self, batch: Batch, **switches: Any) -> Pass:
        """Of a pass."""
        ...

    def leave(self, dx: Array, batch: Batch) -> None:
        """Send an input gradient."""
        ...

    def finish(self, name: str, finish: Finish, ready: Ready, total: Any) -> None:
        """Write the gradient of a layer."""
        ...


class Recordings:
    """The recorded passes of a stage; older weights are copied to where the recordings read them."""

    def __init__(self, owner: Owner, recorder: Any, seed: int):
        self._owner, self._recorder, self._seed = owner, recorder, seed
        self._holders: defaultdict[Hashable, list[weakref.ref[Kept]]] = defaultdict(list)
        self._older: Version | None = None
        self._seen: Counter[Shape] = Counter()
        self._batch: Batch | None = None
        """Of the pass that is played."""

    def wants(self, shape: Shape) -> bool:
        """Whether a pass forward with an input of this shape is worth a recording; asked once for each."""
        self._seen[shape] += 1
        return self._seen[shape] * RARE >= self._seen.total()

    def forward(
        self, batch: Batch, x: Array, version: Version | None, recompute: bool, again: bool
    ) -> tuple[Array, Saved]:
        """As `Stage.forward`."""
        owner, weights = self._owner, self._weights(version)
        kind = ("forward", recompute, again, version is None, x.shape, x.dtype)
        place = -1 if recompute else self._free_place(kind)
        key = (*kind, place)
        played = key in self._recorder

        def work(inputs: tuple[Array, ...], pool: Pool, keys: Keys | None, cut: Cut) -> tuple[Array, Saved]:
            context = owner.context(batch, recompute=recompute, update_state=not again)
            context.pool, context.keys, context.poke = pool, keys, None
            return owner.part.network.forward(weights, owner.part.state_views, inputs[0], context)

        y, saved = self._recorder(key, (x,), numbers_of(self._seed, batch), work, keep=True)
        if not played:
            return y, saved
        kept = Kept(saved, key)
        if not recompute:
            self._holders[kind][place] = weakref.ref(kept)
        # the last stage is done with it before the recording is played again
        return y if owner.last else self._own(y), kept

    def _weights(self, version: Version | None) -> Tree:
        if version is None:
            return self._owner.part.weight_views
        if self._older is None:
            vector = np.zeros_like(version.vector)
            self._older = Version(0, 0, vector, self._owner.part.layout.views(vector))
        np.copyto(self._older.vector, version.vector)
        return self._older.views

    def _free_place(self, kind: Hashable) -> int:
        """The number of a recording whose arrays nobody has."""
        holders = self._holders[kind]
        for place, holder in enumerate(holders):
            if holder() is None:
                return place
        holders.append(weakref.ref(Kept((), None)))
        return len(holders) - 1

    def _own(self, array: Array) -> Array:
        """What may travel while the recording is played again."""
        copy = self._owner.part.pool.empty(array.shape, array.dtype)
        np.copyto(copy, array)
        return copy

    def backward(
        self, batch: Batch, kept: Kept, dy: Array, update: Update, version: Version | None, total: Any
    ) -> None:
        """As `Stage.backward`, of a recorded forward pass."""
        owner, weights, whole = self._owner, self._weights(version), total is None or total.last
        key = ("backward", kept.key, version is None, dy.shape, total is None or total.first, whole)

        def work(inputs: tuple[Array, ...], pool: Pool, keys: Keys | None, cut: Cut) -> None:
            context = owner.context(batch)
            context.pool, context.poke = pool, None
            pieces, finishes = Pieces(update, cut, owner.part), deque[tuple[str, Finish]]()
            dx: Any = inputs[0]
            swept = owner.part.network.sweep(weights, _copied(kept), dx, context)
            for name, dx, finish in swept:  # noqa: B007
                finishes.append((name, finish))
                if not owner.returns:
                    owner.finish(*finishes.popleft(), pieces.ready, total)
                del finish
            if owner.returns:
                cut(partial(self._leave, dx))
            while finishes:
                owner.finish(*finishes.popleft(), pieces.ready, total)
            pieces.finish()

        self._batch = batch
        self._recorder(key, (dy,), no_numbers, work)
        if whole and not update.bucket:
            update.ready(owner.part, slice(0, owner.part.layout.size))

    def _leave(self, dx: Array) -> Between:
        """Copy an input gradient; what sends the copy."""
        if self._batch is None:
            raise AssertionError("a pass is played without a batch")
        return partial(self._owner.leave, self._own(dx), self._batch)
