"""Streaming the vectors of all ranks to rank 0, block by block."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from mpinn.array.typing import Array, Dtype, Shape
from mpinn.storage.merge import Mean, MergeLayer, Shares
from mpinn.storage.schema import Block, VectorSpec, blocks, replica_path
from mpinn.storage.survey import TAG, Channel, Column, Host, Pending, Planned, decode
from mpinn.storage.writer import Piece, Queue

AHEAD = 4
"""Messages that are under way at a time, on either side."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One block of one parameter: the ``number``-th of its vector."""

    kind: str
    dtype: Dtype
    number: int
    name: str
    shape: Shape
    block: Block

    @property
    def layer(self) -> str:
        """The path of the layer."""
        return self.name.rpartition("/")[0]

    @property
    def leaf(self) -> str:
        """The name of the parameter in its layer."""
        return self.name.rpartition("/")[2]

    @property
    def block_shape(self) -> Shape:
        """The shape of the block."""
        return tuple(s.stop - s.start for s in self.block.selection)


def send(channel: Channel, column: Column, plan: bytes, specs: Sequence[VectorSpec], host: Host) -> None:
    """The part of every rank but 0: send what differs, and what does not if this is the first rank of the column."""
    first = column.ranks[0] == channel.rank
    pending: deque[Pending] = deque()
    if first:
        pending.append(channel.send(np.frombuffer(plan, dtype=np.uint8), 0, TAG))
    for spec, differs in zip(specs, column.differs, strict=True):
        for entry in spec.layout if first or differs else ():
            for block in blocks(entry.shape, spec.vector.itemsize):
                if block.stop > block.start:
                    values = spec.vector[entry.start + block.start : entry.start + block.stop]
                    pending.append(channel.send(host(values), 0, TAG))
                if len(pending) > AHEAD:
                    pending.popleft().wait()
    for message in pending:
        message.wait()


class Collection:
    """The part of rank 0: receive in an order that all ranks know, merge what differs, fill the queue."""

    def __init__(
        self,
        channel: Channel,
        specs: Sequence[VectorSpec],
        weights: Array,
        merges: Mapping[str, MergeLayer],
        host: Host,
        queue: Queue,
        shares: Shares | None = None,
    ):
        self._channel = channel
        self._specs = specs
        self._weights = weights
        self._merges = merges
        self._host = host
        self._queue = queue
        self._shares = shares

    def column(self, column: Column, own: bytes) -> None:
        """Take all vectors of one column; ``own`` is the plan of rank 0."""
        plan = decode(self._plan(column, own))
        incoming = _ahead(self._receive(column, plan))
        for planned, differs in zip(plan, column.differs, strict=True):
            merge = self._merges.get(planned.kind.split("/")[0])
            if not differs:
                self._shared(planned, incoming)
            elif merge is None:
                self._mean(planned, column, incoming)
            else:
                self._layers(planned, column, incoming, merge)

    def _plan(self, column: Column, own: bytes) -> bytes:
        if column.ranks[0] == 0:
            return own
        plan = np.empty(column.plan_bytes, dtype=np.uint8)
        self._channel.receive(plan, column.ranks[0], TAG).wait()
        return plan.tobytes()

    def _receive(self, column: Column, plan: list[Planned]) -> Iterator[tuple[Array, Pending | None]]:
        for index, (planned, differs) in enumerate(zip(plan, column.differs, strict=True)):
            for cut in _cuts(planned):
                for rank in column.ranks if differs else column.ranks[:1]:
                    yield self._post(rank, index, cut)

    def _post(self, rank: int, index: int, cut: Cut) -> tuple[Array, Pending | None]:
        if rank == 0:
            spec = self._specs[index]
            start = spec.layout.entries[cut.number].start
            values = spec.vector[start + cut.block.start : start + cut.block.stop]
            here = self._host(values)
            return here.copy() if here is values else here, None
        into = np.empty(cut.block.stop - cut.block.start, cut.dtype)
        return into, self._channel.receive(into, rank, TAG) if into.size else None

    def _shared(self, planned: Planned, incoming: Iterator[Array]) -> None:
        for cut in _cuts(planned):
            self._put(cut.kind, cut, next(incoming))

    def _mean(self, planned: Planned, column: Column, incoming: Iterator[Array]) -> None:
        for cut in _cuts(planned):
            mean = Mean(self._weights_of(cut)[list(column.replicas)], planned.dtype)
            for number, values in enumerate(self._replicas(cut, column, incoming)):
                mean.add(number, values)
            self._put(cut.kind, cut, mean.result(), merged=True)

    def _weights_of(self, cut: Cut) -> Array:
        """(R,), or (R, *block)."""
        shares = self._shares(cut.name) if self._shares else None
        if shares is None:
            return self._weights
        return shares[:, cut.block.start : cut.block.stop].reshape(len(shares), *cut.block_shape)

    def _layers(self, planned: Planned, column: Column, incoming: Iterator[Array], merge: MergeLayer) -> None:
        weights = self._weights[list(column.replicas)]
        for _, group in groupby(_cuts(planned), key=lambda cut: cut.layer):
            cuts = list(group)
            stacks = {cut.leaf: np.empty((len(weights), *cut.shape), cut.dtype) for cut in cuts}
            for cut in cuts:
                for number, values in enumerate(self._replicas(cut, column, incoming)):
                    stacks[cut.leaf][number][cut.block.selection] = values
            merged = merge({leaf: stack[weights != 0] for leaf, stack in stacks.items()}, weights[weights != 0])
            for cut in cuts:
                values = merged[cut.leaf].reshape(cut.shape)[cut.block.selection]
                self._put(cut.kind, cut, values.astype(cut.dtype), merged=True)

    def _replicas(self, cut: Cut, column: Column, incoming: Iterator[Array]) -> Iterator[Array]:
        for replica in column.replicas:
            values = next(incoming).reshape(cut.block_shape)
            self._put(replica_path(replica, cut.kind), cut, values)
            yield values

    def _put(self, group: str, cut: Cut, values: Array, *, merged: bool = False) -> None:
        values = values.reshape(cut.block_shape)
        self._queue.put(Piece(group, cut.kind, cut.name, cut.shape, cut.block.selection, values, merged))


def _cuts(planned: Planned) -> Iterator[Cut]:
    for number, (name, shape) in enumerate(planned.entries):
        for block in blocks(shape, planned.dtype.itemsize):
            yield Cut(planned.kind, planned.dtype, number, name, shape, block)


def _ahead(messages: Iterable[tuple[Array, Pending | None]]) -> Iterator[Array]:
    waiting: deque[tuple[Array, Pending | None]] = deque()
    for message in messages:
        waiting.append(message)
        if len(waiting) > AHEAD:
            yield _complete(*waiting.popleft())
    while waiting:
        yield _complete(*waiting.popleft())


def _complete(values: Array, pending: Pending | None) -> Array:
    if pending is not None:
        pending.wait()
    return values
