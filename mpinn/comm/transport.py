"""How an array reaches MPI: directly, or through host buffers."""

import sys
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.groups import Groups
from mpinn.comm.memory import PAST, Event, HostMemory, Memory

PIECE = 4 * 2**20
"""Bytes that are staged at once: while MPI has one piece, the next one is copied."""
ALL, NOTHING = slice(None), slice(0)


class Loan(Protocol):
    """A buffer that MPI reads or writes in place of an array."""

    @property
    def ready(self) -> bool:
        """Whether `begin` would not wait."""

    def begin(self) -> Array:
        """The buffer, once MPI may have it. Waits for what was asked of the device before the loan, and no longer."""

    def end(self) -> None:
        """MPI has done with the buffer; its values are on their way to the array, if they are wanted there."""

    def settle(self) -> None:
        """What is asked of the device from now on finds in the array what MPI has brought."""


class Transport(Protocol):
    """Lends MPI buffers for arrays. ``piece``: bytes that a buffer has at most.

    Sender and receiver cut messages alike, so all ranks of a channel have the same kind of transport.
    """

    name: str
    piece: int

    def takes(self, array: Array) -> bool:
        """Whether an array needs a loan; another one is the host's, and MPI works in it as it is."""

    def lend(self, pieces: Sequence[Array], filled: slice, wanted: bool, fresh: bool = False) -> list[Loan]:
        """A loan for each of the arrays.

        MPI is shown the values of ``filled``, along the first axis; ``wanted``: the arrays take what MPI brings.
        ``fresh``: the values have just been asked for, though messages are to begin as of an earlier moment.
        """


@dataclass(frozen=True, slots=True)
class DirectLoan:
    """The array itself: MPI knows nothing of streams, so the device must have done with it."""

    array: Array
    before: Event

    @property
    def ready(self) -> bool:
        """Whether the device has done with the array."""
        return self.before.done

    def begin(self) -> Array:
        """The array itself, once the device has done with it."""
        self.before.synchronize()
        return self.array

    def end(self) -> None:
        """MPI has worked in the array itself."""

    def settle(self) -> None:
        """The host has waited for MPI, and asks the device for more only now."""


class Direct:
    """Hands the array itself to MPI, which must be able to read the memory of the device."""

    name = "direct"
    piece = sys.maxsize

    def __init__(self, memory: Memory | None = None):
        self._memory = memory

    def takes(self, array: Array) -> bool:
        """Whether it is a device's, which may still be at work on it."""
        return self._memory is not None and self._memory.owns(array)

    def lend(self, pieces: Sequence[Array], filled: slice, wanted: bool, fresh: bool = False) -> list[Loan]:
        """The arrays themselves; see `Transport.lend`."""
        now = self._memory.now(fresh) if self._memory else PAST
        return [DirectLoan(piece, now) for piece in pieces]


@dataclass(slots=True)
class _Buffer:
    raw: Array
    """Bytes of the host."""
    read: Event = PAST
    """When its last values have been copied to the device."""


@dataclass(slots=True)
class StagedLoan:
    """A part of a host buffer that stands for an array. ``before``: what was asked of the device before the loan."""

    transport: "Staged"
    array: Array
    buffer: _Buffer
    host: Array
    wanted: bool
    before: Event
    event: Event = field(default=PAST)

    @property
    def ready(self) -> bool:
        """Whether the values that MPI is to be shown are in the buffer, and those before are in their array."""
        return self.event.done

    def begin(self) -> Array:
        """The buffer, once the values that MPI is to be shown are in it, and those before are in their array."""
        self.event.synchronize()
        return self.host

    def end(self) -> None:
        """Begin to copy the values to the array, if they are wanted there."""
        if self.wanted:
            self.event = self.buffer.read = self.transport.memory.copy_in(self.array, self.host, (self.before,))
        self.transport.take_back(self.buffer)

    def settle(self) -> None:
        """What is computed from now on comes after the copy."""
        if self.wanted:
            self.transport.memory.follow(self.event)


class Staged:
    """Copies through host buffers, pinned where the device has such memory, which are kept by their size.

    Copies go beside the computing, and beside the messages of the pieces before. Host arrays of a run on a device are
    handed to MPI as they are, but cut like others, since at the other end there may be an array of a device.
    """

    name = "staged"

    def __init__(self, memory: Memory | None = None, piece: int = PIECE):
        self.memory = memory or HostMemory()
        self.piece = piece
        self._free: defaultdict[int, deque[_Buffer]] = defaultdict(deque)

    def takes(self, array: Array) -> bool:
        """Whether it lies in the memory that is copied from and to."""
        return self.memory.owns(array)

    def lend(self, pieces: Sequence[Array], filled: slice, wanted: bool, fresh: bool = False) -> list[Loan]:
        """Host buffers, to which what MPI is to be shown is on its way; see `Transport.lend`.

        There are as many as messages were ever under way at once.
        """
        now = self.memory.now(fresh)
        return [self._lend(piece, filled, wanted, now) for piece in pieces]

    def _lend(self, array: Array, filled: slice, wanted: bool, now: Event) -> StagedLoan:
        free = self._free[array.nbytes]
        buffer = free.popleft() if free else _Buffer(self._pinned(array.nbytes))
        loan = StagedLoan(self, array, buffer, buffer.raw.view(array.dtype).reshape(array.shape), wanted, now)
        if filled == NOTHING or not array.size:
            loan.event = buffer.read
        else:
            loan.event = self.memory.copy_out(loan.host[filled], array[filled], (now, buffer.read))
        return loan

    def _pinned(self, size: int) -> Array:
        return self.memory.pinned_empty((max(1, size),), np.dtype(np.uint8))[:size]

    def take_back(self, buffer: _Buffer) -> None:
        """Keep a buffer for the next message of its size."""
        self._free[buffer.raw.nbytes].append(buffer)


@dataclass(frozen=True)
class Transports:
    """One for each kind of message: an MPI library may send from a device and yet not add up there.

    messages: between two ranks, broadcasts and gathered arrays; sums: also maxima. ``nccl`` carries collectives within
    a machine, if it is wanted.
    """

    messages: Transport
    sums: Transport
    nccl: Groups | None = None

    def __str__(self) -> str:
        apart = "" if self.sums.name == self.messages.name else f", sums {self.sums.name}"
        return f"messages {self.messages.name}{apart}"


def same(transport: Transport) -> Transports:
    """One transport for messages of all kinds."""
    return Transports(transport, transport)
