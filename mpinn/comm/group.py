"""What a channel must know of NCCL."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from mpinn.array.typing import Array
from mpinn.comm.memory import Event, Memory, Wait

IDENTITY = 128
"""Bytes of the name of a group."""
SUMMABLE = "bBiIlLqQfd"
"""The characters of the dtypes that NCCL adds up."""


class Group(Protocol):
    """Collectives among the devices of a group of ranks, in place, in arrays of one piece.

    All ranks ask for them in the same order. Each begins after an event, and gives back that of its end.
    """

    def all_sum(self, array: Array, after: Event) -> Event:
        """The sum over the ranks, the same bits on all of them."""

    def all_max(self, array: Array, after: Event) -> Event:
        """The elementwise maximum over the ranks."""

    def all_gather(self, into: Array, after: Event) -> Event:
        """Row r of ``into`` comes from rank r."""

    def broadcast(self, array: Array, root: int, after: Event) -> Event:
        """The array of rank ``root``."""

    def collect(self, pieces: Sequence[Array], after: Event) -> Event:
        """Piece k becomes the sum over the ranks on rank k; on others it may have any value."""

    def spread(self, pieces: Sequence[Array], after: Event) -> Event:
        """Piece k becomes that of rank k."""

    def failure(self) -> str:
        """What has gone wrong since the group was made, or nothing; any thread may ask."""

    def close(self) -> None:
        """Give it back, as all ranks do, when everything that it was asked for is done."""

    def abort(self) -> None:
        """Give it up, and what it is at; any thread may."""


class Nccl(Protocol):
    """NCCL on the device of this rank. ``machine``: a number that is the same for the ranks of one machine."""

    machine: int
    memory: Memory

    def identity(self) -> bytes:
        """The name of a new group, `IDENTITY` bytes; asked of one of its ranks."""

    def group(self, identity: bytes, rank: int, size: int) -> Group:
        """The group with a name, when all of its ranks are here."""

    def follow(self, event: Event) -> Wait:
        """Let all computing that is asked for from now on come after the event; how long it waits for it."""

    def here(self) -> None:
        """This thread may look at events and groups from now on."""

    def as_of(self, event: Event) -> AbstractContextManager[None]:
        """Messages that begin in here wait for what was asked of the device before the event, and for nothing later."""
