"""Messages between the blocks of a parareal network, in a chain or to and from the rank of the last one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

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
    """

    def __init__(self, channel: Channel, part: Part, trace: Trace):
        self.channel = channel
        self._part = part
        self._trace = trace
        self._open: list[Pending] = []
        self._coming: dict[tuple[Kind, int, int], tuple[Array, Pending]] = {}
        self._batch, self._doing, self._begun = 0, "forward", 0.0

    def expect(self, batch: int, samples: int, letters: Iterable[Letter]) -> None:
        """Begin a pass with a batch, and to receive what will come in it."""
        self._batch, self._doing = batch, "forward"
        for letter in letters:
            array = self._part.pool.empty((samples, *letter.shape), self._part.compute_dtype)
            pending = self.channel.receive(array, letter.rank, self._tag(letter.kind, letter.sweep))
            self._coming[letter.kind, letter.sweep, letter.rank] = array, pending
        self._begun = self._trace.now()

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
        self._open.append(self.channel.send(whole, rank, self._tag(kind, sweep)))
        self._trace.add("send", self._begun, self._batch, size=whole.nbytes)
        self._begun = self._trace.now()

    def receive(self, kind: Kind, sweep: int, rank: int) -> Array:
        """What was expected, when it is there."""
        self.done()
        array, pending = self._coming.pop((kind, sweep, rank))
        pending.wait()
        self._trace.add("receive", self._begun, self._batch, size=array.nbytes)
        self._begun = self._trace.now()
        return array

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
