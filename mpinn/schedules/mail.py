"""Messages between the blocks of a parareal network, in a chain or to and from the rank of the last one."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

from mpinn.array.recording import Between, Cut
from mpinn.array.typing import Array, Shape
from mpinn.comm.channel import Channel, Pending
from mpinn.nn.block import Block, Way
from mpinn.nn.gathered import Gathered, Parcel
from mpinn.nn.layer import Pass, Saved, Tree
from mpinn.nn.network import Swept, Whole
from mpinn.nn.parareal import Parareal
from mpinn.nn.part import Part
from mpinn.nn.sweeps import BackwardSweeps, ForwardSweeps
from mpinn.trace import Trace

Kind: TypeAlias = Way | Parcel
Address: TypeAlias = tuple[Kind, int, int]
"""Kind, sweep and rank."""
PLACES: dict[Kind, int] = {"fine": 0, "coarse": 1, "guess": 1, "less": 1, "adjoint": 2}
"""In a tag; those that share a place never pass between the same ranks in the same direction."""
MOST = 128
"""Sweeps: messages carry the number of theirs in their tag, with the index of their batch as far as there is room."""


@dataclass(frozen=True, slots=True)
class Letter:
    """What comes from a rank in a sweep: an array with samples of ``shape``."""

    kind: Kind
    sweep: int
    rank: int
    shape: Shape


class Mail:
    """What is sent and received in a pass; what will come is expected before anything is computed.

    The timeline shows as ``forward`` and ``backward`` what lies between messages, so without any wait for them.

    A pass that is recorded is ``cut`` at each message. Whoever plays it again expects the same letters with the index
    of another batch, and settles before the next one, so that no array that is sent is written too early. ``stays``:
    what comes is always in the same arrays, as such a pass needs it.
    """

    def __init__(self, channel: Channel, part: Part, trace: Trace, stays: bool = False):
        self.channel = channel
        self.cut: Cut = _at_once
        self._part = part
        self._trace = trace
        self._open: list[Pending] = []
        self._coming: dict[Address, tuple[Array, Pending]] = {}
        self._kept: dict[tuple[Address, int], Array] | None = {} if stays else None
        self._batch, self._doing, self._begun = 0, "forward", 0.0

    def expect(self, batch: int, samples: int, letters: Iterable[Letter]) -> None:
        """Begin a pass with a batch, and to receive what will come in it."""
        self._batch, self._doing = batch, "forward"
        for letter in letters:
            address = letter.kind, letter.sweep, letter.rank
            array = self._room(address, (samples, *letter.shape))
            pending = self.channel.receive(array, letter.rank, self._tag(letter.kind, letter.sweep))
            self._coming[address] = array, pending
        self._begun = self._trace.now()

    def _room(self, address: Address, shape: Shape) -> Array:
        """Not in memory of a recording, which writes there what it has in it before the message is wanted."""
        if self._kept is None:
            return self._part.pool.empty(shape, self._part.compute_dtype)
        key = address, shape[0]
        if key not in self._kept:
            self._kept[key] = self._part.pool.empty(shape, self._part.compute_dtype)
        return self._kept[key]

    def _tag(self, kind: Kind, sweep: int) -> int:
        return (self._batch % 64 * (MOST + 1) + sweep) * 3 + PLACES[kind]

    def done(self, doing: str = "") -> None:
        """What has been computed since the last message ends here, and ``doing`` begins."""
        self._trace.add(self._doing, self._begun, self._batch)
        self._doing = doing or self._doing
        self._begun = self._trace.now()

    def send(self, kind: Kind, sweep: int, rank: int, array: Array) -> None:
        """Send an array that is not written afterwards."""
        self.done()
        whole = self._part.ops.contiguous(array)
        self.cut(lambda: partial(self._leave, (kind, sweep, rank), whole))
        self._begun = self._trace.now()

    def _leave(self, address: Address, array: Array) -> None:
        kind, sweep, rank = address
        self._open.append(self.channel.send(array, rank, self._tag(kind, sweep)))
        self._trace.add("send", self._begun, self._batch, size=array.nbytes)

    def receive(self, kind: Kind, sweep: int, rank: int) -> Array:
        """What was expected, when it is there."""
        self.done()
        array, _ = self._coming[kind, sweep, rank]
        self.cut(partial(self._arrive, (kind, sweep, rank)))
        self._begun = self._trace.now()
        return array

    def _arrive(self, address: Address) -> Between:
        array, pending = self._coming.pop(address)
        pending.wait()
        self._trace.add("receive", self._begun, self._batch, size=array.nbytes)
        return _nothing

    def poke(self) -> None:
        """Move along what is under way."""
        self._open = [pending for pending in self._open if not pending.test()]

    def settle(self) -> None:
        """Return when everything that was sent has arrived."""
        for pending in self._open:
            pending.wait()
        self._open.clear()


class Route(Protocol):
    """How the passes of a block go on a rank, with the messages of one mail."""

    @property
    def mail(self) -> Mail:
        """What is sent and received."""
        ...

    def letters(self, backward: bool) -> Iterator[Letter]:
        """What will come in a pass forward, and ``backward`` too."""
        ...

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        """x: (B, *shape), on every rank; the output of the network on the last one."""
        ...

    def backward(self, weights: Tree, saved: Saved, dy: Any, context: Pass) -> Swept:
        """dy: that of the output, on the last rank."""
        ...


@dataclass(frozen=True)
class Chain:
    """Every block speaks with the one before and the one after it: the links of all sweeps."""

    block: Block
    mail: Mail

    def letters(self, backward: bool) -> Iterator[Letter]:
        """Those of the block before, then those of the block after."""
        block, rank = self.block, self.mail.channel.rank
        for sweep in block.heard:
            yield Letter("fine", sweep, rank - 1, block.inputs)
            if block.corrected(sweep):
                yield Letter("coarse", sweep, rank - 1, block.inputs)
        for sweep in reversed(block.sweeps) if backward and not block.last else ():
            yield Letter("adjoint", sweep, rank + 1, block.outputs)

    def send(self, way: Way, sweep: int, array: Array) -> None:
        """To the block before or after."""
        self.mail.send(way, sweep, self.mail.channel.rank + (-1 if way == "adjoint" else 1), array)

    def receive(self, way: Way, sweep: int) -> Array:
        """From the block before or after."""
        return self.mail.receive(way, sweep, self.mail.channel.rank + (1 if way == "adjoint" else -1))

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        """All sweeps."""
        return ForwardSweeps(self.block, weights, state, context, self).run(x)

    def backward(self, weights: Tree, saved: Saved, dy: Any, context: Pass) -> Swept:
        """The adjoint of all sweeps."""
        return BackwardSweeps(self.block, weights, context, self).run(saved, dy)


@dataclass(frozen=True)
class Star:
    """Every block speaks with the last one, which has all coarse networks."""

    share: Gathered
    mail: Mail

    def letters(self, backward: bool) -> Iterator[Letter]:
        """Those of the last block; or, there, those of all others."""
        for parcel, number, shape in self.share.parcels(backward):
            yield Letter(parcel, 1, self._rank(number), shape)

    def _rank(self, number: int) -> int:
        """With which one speaks about a block."""
        return number - 1 if self.share.last else len(self.share.blocks) - 1

    def send(self, parcel: Parcel, number: int, array: Array) -> None:
        """To the last block, or, from there, to block ``number``."""
        self.mail.send(parcel, 1, self._rank(number), array)

    def receive(self, parcel: Parcel, number: int) -> Array:
        """From the last block, or, there, from block ``number``."""
        return self.mail.receive(parcel, 1, self._rank(number))

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        """The fine block, and on the last rank the sweep."""
        return self.share.run(weights, state, x, context, self)

    def backward(self, weights: Tree, saved: Saved, dy: Any, context: Pass) -> Swept:
        """The adjoint."""
        return self.share.run_back(weights, saved, dy, context, self)


def route(network: Whole, mail: Mail) -> Route:
    """That of what a rank owns."""
    if isinstance(network, Gathered):
        return Star(network, mail)
    if not isinstance(network, Parareal):
        raise TypeError("a stage of a parareal network has one of its blocks")
    (block,) = network.blocks
    return Chain(block, mail)


def _at_once(first: Callable[[], Between]) -> None:
    """The cut of a pass that is not recorded."""
    first()()


def _nothing() -> None:
    """The message is there."""
