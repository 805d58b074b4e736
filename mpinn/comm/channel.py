"""The vocabulary of messages: what a schedule or a consensus can ask of a group of ranks."""

from typing import Protocol

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.meter import Meter


class MessageError(Exception):
    """A message does not fit: two ranks disagree about it, or its array cannot be sent. A bug of the program."""


class LostRankError(MessageError):
    """A message fails because a rank has died, here or where another rank has found out and given the channel up."""


class Pending(Protocol):
    """A message under way. Its array must not be written (read, when it receives) before the message is complete."""

    def wait(self) -> None:
        """Block until the message is complete and its array may be used; raises MessageError."""

    def test(self) -> bool:
        """Whether the message is complete; if so, its array may be used. Also moves the message along.

        A sum of several machines by NCCL is never complete before `wait`.
        """


class Channel(Protocol):
    """A group of ranks with a communicator of its own, so that messages of two channels never meet.

    Arrays are contiguous and stay where they are: every operation works in the caller's array. All ranks of a channel
    call its collectives in the same order. Called from the main thread only.
    """

    rank: int
    size: int
    name: str
    meter: Meter

    def send(self, array: Array, to: int, tag: int = 0) -> Pending:
        """Send to rank ``to``; messages between two ranks arrive in the order in which they were sent."""

    def receive(self, into: Array, source: int, tag: int = 0) -> Pending:
        """Receive from rank ``source`` exactly as many bytes as ``into`` has."""

    def all_sum(self, array: Array) -> Pending:
        """Replace ``array`` by its sum over the ranks, equal bit for bit on all of them."""

    def all_max(self, array: Array) -> Pending:
        """Replace ``array`` by its elementwise maximum over the ranks."""

    def all_gather(self, array: Array, into: Array) -> Pending:
        """Collect the ``array`` of every rank r in ``into[r]``; into: (size, *array.shape)."""

    def broadcast(self, array: Array, root: int) -> Pending:
        """Replace ``array`` by that of rank ``root``."""

    def barrier(self) -> None:
        """Block until every rank is here."""

    def split(self, color: int, key: int, name: str) -> "Channel":
        """The channel of the ranks that give the same ``color``, ordered by ``key``; called by all ranks."""


class Done:
    """The Pending of a message that is already complete."""

    def wait(self) -> None:
        """Nothing is left to do."""

    def test(self) -> bool:
        """Always."""
        return True


DONE = Done()


class NullChannel:
    """The channel of one rank alone: needs no MPI, sends nothing and so counts nothing."""

    def __init__(self, name: str):
        self.rank = 0
        self.size = 1
        self.name = name
        self.meter = Meter()

    def send(self, array: Array, to: int, tag: int = 0) -> Pending:
        """Raises MessageError: there is nobody else."""
        raise MessageError(f"{self.name}: send to rank {to}, but one rank is alone on this channel")

    def receive(self, into: Array, source: int, tag: int = 0) -> Pending:
        """Raises MessageError: there is nobody else."""
        raise MessageError(f"{self.name}: receive from rank {source}, but one rank is alone on this channel")

    def all_sum(self, array: Array) -> Pending:
        """The sum of one array is the array."""
        check_reducible(self.name, "all_sum", array)
        return DONE

    def all_max(self, array: Array) -> Pending:
        """The maximum of one array is the array."""
        check_reducible(self.name, "all_max", array)
        return DONE

    def all_gather(self, array: Array, into: Array) -> Pending:
        """Copy the array to ``into[0]``."""
        check_gather(self.name, array, into, self.size)
        into[0] = array
        return DONE

    def broadcast(self, array: Array, root: int) -> Pending:
        """Check only: the array is that of the root."""
        check_array(self.name, "broadcast", array)
        check_rank(self.name, "broadcast", root, self.size)
        return DONE

    def barrier(self) -> None:
        """Every rank is here."""

    def split(self, color: int, key: int, name: str) -> "NullChannel":
        """Another channel of this rank alone."""
        return NullChannel(name)


def check_array(channel: str, operation: str, array: Array) -> None:
    """Raise MessageError unless the bytes of ``array`` are one piece of memory that MPI can take as it stands."""
    if not array.flags.c_contiguous:
        raise MessageError(f"{channel}: {operation} of an array that is not contiguous, shape {array.shape}")
    if array.dtype.hasobject:
        raise MessageError(f"{channel}: {operation} of Python objects; arrays of numbers only")


def check_gather(channel: str, array: Array, into: Array, size: int) -> None:
    """Raise MessageError unless ``into`` has room for ``array`` of ``size`` ranks."""
    check_array(channel, "all_gather", array)
    check_array(channel, "all_gather", into)
    if into.dtype != array.dtype or into.shape != (size, *array.shape):
        raise MessageError(
            f"{channel}: all_gather of {array.dtype} {array.shape} on {size} ranks "
            f"into {into.dtype} {into.shape}; it needs {array.dtype} {(size, *array.shape)}"
        )


def check_rank(channel: str, operation: str, rank: int, size: int) -> None:
    """Raise MessageError unless ``rank`` is one of the channel's."""
    if not 0 <= rank < size:
        raise MessageError(f"{channel}: {operation} with rank {rank}, but the ranks are 0 to {size - 1}")


REDUCIBLE = frozenset(np.dtype(kind) for kind in "bBhHiIlLqQfd")
"""The dtypes that every MPI library adds up."""


def check_reducible(channel: str, operation: str, array: Array) -> None:
    """Raise MessageError unless MPI can add the elements of ``array``."""
    check_array(channel, operation, array)
    if array.dtype not in REDUCIBLE:
        raise MessageError(f"{channel}: {operation} of {array.dtype}, which MPI cannot reduce")
