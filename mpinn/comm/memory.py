"""What a transport must know of the memory that arrays lie in, and of the host's."""

from typing import Protocol

import numpy as np

from mpinn.array.typing import Array, Dtype, Shape


class Event(Protocol):
    """A moment in the work that was asked of a device."""

    @property
    def done(self) -> bool:
        """Whether the device has come there."""

    def synchronize(self) -> None:
        """Return when the device has come there; what was asked of it later is not waited for."""


class Wait(Protocol):
    """A stretch of time in which the computing of a device waits for something else that it does."""

    @property
    def done(self) -> bool:
        """Whether it is over."""

    def seconds(self) -> float:
        """How long it was; returns when it is over."""


class Past:
    """The event that has always been: the host does at once what it is asked for."""

    done = True

    def synchronize(self) -> None:
        """Nothing is waited for."""


PAST = Past()


class Memory(Protocol):
    """The memory of the arrays that are computed with. Copies go beside the computing, each on its own way.

    Whatever is said to be done after an event waits for it on the device; the host waits for nothing here.
    """

    def owns(self, array: Array) -> bool:
        """Whether the array lies in this memory; another one is the host's."""

    def now(self, fresh: bool = False) -> Event:
        """The end of all computing that was asked for until now.

        Where messages are to begin as of an earlier moment it is that moment, unless the ``fresh`` end is asked for.
        """

    def pinned_empty(self, shape: Shape, dtype: Dtype) -> Array:
        """A host array that the device copies to and from at full speed; its values are arbitrary."""

    def copy_out(self, into: Array, source: Array, after: tuple[Event, ...]) -> Event:
        """Begin to copy ``source`` to the pinned host array ``into``; the end of it."""

    def copy_in(self, into: Array, source: Array, after: tuple[Event, ...]) -> Event:
        """Begin to copy the pinned host array ``source`` to ``into``; the end of it."""

    def follow(self, event: Event) -> None:
        """Let all computing that is asked for from now on come after the event."""


class HostMemory:
    """The memory of NumPy arrays."""

    def owns(self, array: Array) -> bool:
        """Always."""
        return True

    def now(self, fresh: bool = False) -> Event:
        """Nothing runs behind the program's back."""
        return PAST

    def pinned_empty(self, shape: Shape, dtype: Dtype) -> Array:
        """An ordinary array."""
        return np.empty(shape, dtype)

    def copy_out(self, into: Array, source: Array, after: tuple[Event, ...]) -> Event:
        """Copy host to host."""
        np.copyto(into, source)
        return PAST

    def copy_in(self, into: Array, source: Array, after: tuple[Event, ...]) -> Event:
        """Copy host to host."""
        np.copyto(into, source)
        return PAST

    def follow(self, event: Event) -> None:
        """Nothing runs behind the program's back."""
