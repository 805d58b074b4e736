"""How long steps would take on a core for each rank: their computing as it was, their messages as they should be.

A journal notes the processor time that a rank spends between its messages. Replayed, every piece of computing takes
that time, and a message arrives so long after it was sent as its size says; whoever waits, waits for that and nothing
else. What other programs do to the machine is not in it, nor is how fast messages really are.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import process_time
from typing import Literal, TypeAlias

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel, Pending
from mpinn.partition.costs import Link

Kind: TypeAlias = Literal["send", "receive", "step"]


@dataclass(frozen=True, slots=True)
class Entry:
    """``computed`` seconds, and then a message to or from a rank is sent, or is waited for, or a step ends."""

    kind: Kind
    computed: float
    rank: int = 0
    tag: int = 0
    size: int = 0


@dataclass(eq=False)
class Journal:
    """A channel between stages that notes what is sent and waited for; what is sent on others costs nothing."""

    channel: Channel
    entries: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rank, self.size, self.name, self.meter = (
            self.channel.rank, self.channel.size, self.channel.name, self.channel.meter,
        )  # fmt: skip
        self.seconds = 0.0
        """Of processor time in waits, which may spin."""
        self._since = process_time()

    def note(self, kind: Kind, rank: int = 0, tag: int = 0, size: int = 0) -> None:
        """What has been computed until now ends with this."""
        self.entries.append(Entry(kind, process_time() - self._since, rank, tag, size))
        self._since = process_time()

    def skip(self) -> float:
        """What has passed since the last entry is not computing; all that was skipped so far."""
        now = process_time()
        self.seconds += now - self._since
        self._since = now
        return self.seconds

    def send(self, array: Array, to: int, tag: int = 0) -> Pending:
        """Send to rank ``to``."""
        pending = self.channel.send(array, to, tag)
        self.note("send", to, tag, array.nbytes)
        return pending

    def receive(self, into: Array, source: int, tag: int = 0) -> Pending:
        """Receive from rank ``source``."""
        return _Awaited(self.channel.receive(into, source, tag), self, source, tag)

    def all_sum(self, array: Array) -> Pending:
        """The sum over the ranks."""
        return self.channel.all_sum(array)

    def all_max(self, array: Array) -> Pending:
        """The maximum over the ranks."""
        return self.channel.all_max(array)

    def all_gather(self, array: Array, into: Array) -> Pending:
        """The arrays of all ranks."""
        return self.channel.all_gather(array, into)

    def broadcast(self, array: Array, root: int) -> Pending:
        """The array of rank ``root``."""
        return self.channel.broadcast(array, root)

    def barrier(self) -> None:
        """Block until every rank is here."""
        self.channel.barrier()

    def split(self, color: int, key: int, name: str) -> Channel:
        """A channel of which nothing is noted."""
        return self.channel.split(color, key, name)


@dataclass(frozen=True, eq=False)
class _Awaited:
    pending: Pending
    journal: Journal
    source: int
    tag: int

    def wait(self) -> None:
        self.journal.note("receive", self.source, self.tag)
        self.pending.wait()
        self.journal.skip()

    def test(self) -> bool:
        return self.pending.test()


def replay(journals: Sequence[Sequence[Entry]], link: Link) -> list[float]:
    """Seconds from the end of each step but the first to the end of the one before it, on the rank that is last.

    journals: one of each rank, of equally many steps.
    """
    ranks = [_Rank(list(journal)) for journal in journals]
    letters: dict[tuple[int, int, int], deque[float]] = defaultdict(deque)
    while any(rank.place < len(rank.journal) for rank in ranks):
        moved = [rank.go_on(number, letters, link) for number, rank in enumerate(ranks)]
        if not any(moved):
            raise ValueError("a rank waits for a message that nobody sends")
    ends = [max(times) for times in zip(*(rank.ends for rank in ranks), strict=True)]
    return [after - before for before, after in pairwise(ends)]


@dataclass(slots=True)
class _Rank:
    journal: Sequence[Entry]
    clock: float = 0.0
    place: int = 0
    ends: list[float] = field(default_factory=list)

    def go_on(self, number: int, letters: dict[tuple[int, int, int], deque[float]], link: Link) -> bool:
        """As far as messages are there; whether that was any way at all."""
        begun = self.place
        while self.place < len(self.journal):
            entry = self.journal[self.place]
            arrived = letters[entry.rank, number, entry.tag]
            if entry.kind == "receive" and not arrived:
                break
            self.clock += entry.computed
            if entry.kind == "receive":
                self.clock = max(self.clock, arrived.popleft())
            elif entry.kind == "send":
                letters[number, entry.rank, entry.tag].append(self.clock + link.seconds(entry.size))
            else:
                self.ends.append(self.clock)
            self.place += 1
        return self.place > begun
