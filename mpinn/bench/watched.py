"""A channel that adds up the processor time spent in waiting for its messages."""

from time import process_time

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel, Pending


class Watched:
    """``seconds``: the processor time of this rank in waits for messages between two ranks, which may spin."""

    def __init__(self, channel: Channel):
        self.rank, self.size, self.name, self.meter = channel.rank, channel.size, channel.name, channel.meter
        self.seconds = 0.0
        self._channel = channel

    def send(self, array: Array, to: int, tag: int = 0) -> Pending:
        """Send to rank ``to``."""
        return _WatchedPending(self._channel.send(array, to, tag), self)

    def receive(self, into: Array, source: int, tag: int = 0) -> Pending:
        """Receive from rank ``source``."""
        return _WatchedPending(self._channel.receive(into, source, tag), self)

    def all_sum(self, array: Array) -> Pending:
        """The sum over the ranks."""
        return self._channel.all_sum(array)

    def all_max(self, array: Array) -> Pending:
        """The maximum over the ranks."""
        return self._channel.all_max(array)

    def all_gather(self, array: Array, into: Array) -> Pending:
        """The arrays of all ranks."""
        return self._channel.all_gather(array, into)

    def broadcast(self, array: Array, root: int) -> Pending:
        """The array of rank ``root``."""
        return self._channel.broadcast(array, root)

    def barrier(self) -> None:
        """Block until every rank is here."""
        self._channel.barrier()

    def split(self, color: int, key: int, name: str) -> Channel:
        """A channel that nobody watches."""
        return self._channel.split(color, key, name)


class _WatchedPending:
    def __init__(self, pending: Pending, watched: Watched):
        self._pending = pending
        self._watched = watched

    def wait(self) -> None:
        begun = process_time()
        self._pending.wait()
        self._watched.seconds += process_time() - begun

    def test(self) -> bool:
        return self._pending.test()
