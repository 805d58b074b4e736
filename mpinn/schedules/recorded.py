"""Passes as they were recorded: on a device a pass of a stage is one launch, or a few, in place of hundreds.

A recorded pass leaves what it keeps in arrays of its own, so each pass in flight needs a recording of its own: there
are as many as there were passes in flight at once, and each is played again when nobody has its arrays any more. They
are worth their memory only for a size of batches that comes often: the last one of an epoch is not recorded.
"""

import weakref
from collections import Counter, deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Protocol, TypeAlias

from mpinn.array.pool import Pool
from mpinn.array.typing import Array, Shape
from mpinn.datasets.batches import Batch
from mpinn.nn.layer import Finish, Pass, Saved, Tree, drawn_key
from mpinn.nn.part import Part
from mpinn.schedules.schedule import Update

RARE = 8
"""Of so many passes at least one must have the size of a batch for it to be recorded."""

Ready: TypeAlias = Callable[[Part, slice], None]
"""Told of a slice of a gradient that is complete."""
Keys: TypeAlias = Callable[[tuple[int, ...]], Any]
Cut: TypeAlias = Callable[[Callable[[], Callable[[], None]]], None]
"""See `mpinn.array.cuda_graph`."""


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

    def context(self, batch: Batch, **switches: Any) -> Pass:
        """Of a pass."""
        ...

    def leave(self, dx: Array) -> Callable[[], None]:
        """Copy the input gradient; what sends the copy."""
        ...

    def finish(self, name: str, finish: Finish, ready: Ready, total: Any) -> None:
        """Write the gradient of a layer."""
        ...


class Recordings:
    """The recorded passes of a stage."""

    def __init__(self, owner: Owner, recorder: Any, seed: int):
        self._owner, self._recorder, self._seed = owner, recorder, seed
        self._holders: list[weakref.ref[Kept]] = []
        self._trees: dict[int, Tree] = {}
        self._seen: Counter[Shape] = Counter()

    def wants(self, shape: Shape) -> bool:
        """Whether a pass forward with an input of this shape is worth a recording; asked once for each."""
        self._seen[shape] += 1
        return self._seen[shape] * RARE >= self._seen.total()

    def forward(self, batch: Batch, x: Array, weights: Tree, recompute: bool, again: bool) -> tuple[Array, Saved]:
        """As `Stage.forward`; y stands in an array that is written again when the recording is played again."""
        owner, place = self._owner, -1 if recompute else self._free_place()
        key = ("forward", place, recompute, again, self._known(weights), x.shape, x.dtype)
        played = key in self._recorder

        def work(inputs: tuple[Array, ...], pool: Pool, keys: Keys | None, cut: Cut) -> tuple[Array, Saved]:
            context = owner.context(batch, recompute=recompute, update_state=not again)
            context.pool, context.keys, context.poke = pool, keys, None
            return owner.part.network.forward(weights, owner.part.state_views, inputs[0], context)

        def numbers(path: tuple[int, ...]) -> tuple[int, ...]:
            return (*drawn_key(self._seed, batch.index, path), *batch.rows)

        y, saved = self._recorder(key, (x,), numbers, work, keep=True)
        if not played:
            return y, saved
        kept = Kept(saved, key)
        if not recompute:
            self._holders[place] = weakref.ref(kept)
        return y, kept

    def _free_place(self) -> int:
        """The number of a recording whose arrays nobody has."""
        for place, holder in enumerate(self._holders):
            if holder() is None:
                return place
        self._holders.append(weakref.ref(Kept((), None)))
        return len(self._holders) - 1

    def _known(self, weights: Tree) -> int:
        # kept, so that no other tree is ever taken for it
        self._trees[id(weights)] = weights
        return id(weights)

    def backward(self, batch: Batch, kept: Kept, dy: Array, weights: Tree, update: Update, total: Any) -> None:
        """As `Stage.backward`, of a recorded forward pass."""
        owner, whole = self._owner, total is None or total.last
        key = ("backward", kept.key, self._known(weights), dy.shape, total is None or total.first, whole)

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
                cut(partial(owner.leave, dx))
            while finishes:
                owner.finish(*finishes.popleft(), pieces.ready, total)
            pieces.finish()

        self._recorder(key, (dy,), lambda path: (), work)
        if whole and not update.bucket:
            update.ready(owner.part, slice(0, owner.part.layout.size))
