"""What NCCL has been asked for and has perhaps not done, for who looks why a job does not get any further."""

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpinn.comm.memory import Event
from mpinn.words import name_ranks

Ranks = tuple[int, ...]
"""The numbers that the ranks of a group have in the job."""


@dataclass(eq=False, slots=True)
class Entry:
    """The ``number``-th collective of a group. ``end``: None while the host is still asking for it."""

    ranks: Ranks
    number: int
    what: str
    size: int
    end: Event | None = None

    def __str__(self) -> str:
        return f"collective {self.number} of {name_ranks(self.ranks)} ({self.what}, {self.size:,} bytes)"


class Ledger:
    """The collectives of all groups of a rank, which are done in the order in which they are asked for."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._asked: Counter[Ranks] = Counter()

    def opens(self, ranks: Ranks, what: str, size: int) -> Entry:
        """NCCL is about to be asked for something; forgets what it has done."""
        entries = self._entries
        while entries and entries[0].end is not None and entries[0].end.done:
            entries.popleft()
        self._asked[ranks] += 1
        entry = Entry(ranks, self._asked[ranks], what, size)
        entries.append(entry)
        return entry

    def unfinished(self) -> list[Entry]:
        """What is not done, in order; any thread may ask."""
        return [entry for entry in tuple(self._entries) if entry.end is None or not entry.end.done]

    def account(self) -> "Account":
        """Where this rank stands; any thread may ask."""
        left = self.unfinished()
        first = left[0] if left else None
        return Account(
            asked=[(list(ranks), count) for ranks, count in tuple(self._asked.items())],
            first=(list(first.ranks), first.number, str(first)) if first else None,
            behind=max(0, len(left) - 1),
        )


@dataclass(frozen=True)
class Account:
    """Where a rank stands with NCCL, as it tells others.

    asked: for how many collectives of each group; first: the first of them that is not done, its group, number and
    description; behind: how many it was asked for after that one.
    """

    asked: Sequence[tuple[list[int], int]] = ()
    first: tuple[list[int], int, str] | None = None
    behind: int = 0

    def __str__(self) -> str:
        """Nothing if all is done."""
        if self.first is None:
            return ""
        return f"NCCL's {self.first[2]}" + (f" and {self.behind} more" if self.behind else "")


def missing(accounts: Mapping[int, Account]) -> list[str]:
    """Who has not asked for the collectives that others wait for; ``accounts`` are of the ranks that have answered."""
    waited: defaultdict[tuple[Ranks, int], list[int]] = defaultdict(list)
    for rank, account in accounts.items():
        if account.first is not None:
            waited[tuple(account.first[0]), account.first[1]].append(rank)
    lines = []
    for (ranks, number), waiting in sorted(waited.items()):
        asked = {rank: dict(_counts(accounts[rank])).get(ranks, 0) for rank in ranks if rank in accounts}
        named = f"collective {number} of {name_ranks(ranks)}"
        if silent := [rank for rank in ranks if rank not in accounts]:
            lines.append(f"{named}: nobody knows whether {name_ranks(silent)} asked for it")
        if late := [rank for rank, count in asked.items() if count < number]:
            lines.append(f"{named}: {name_ranks(late)} did not ask for it")
        if not (silent or late) and len(waiting) == len(ranks):
            lines.append(f"{named}: all have asked for it")
    return lines


def _counts(account: Account) -> list[tuple[Ranks, int]]:
    return [(tuple(ranks), count) for ranks, count in account.asked]
