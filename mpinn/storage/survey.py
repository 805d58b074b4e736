"""What the ranks hold and where their copies differ, agreed on before a save."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mpinn.array.typing import Array, Dtype, Shape
from mpinn.storage.schema import BLOCK, VectorSpec, check_names

DIGEST = 16
TAG = 0

Host = Callable[[Array], Array]
"""Copies an array of the device to the host; an array of the host may come back as it is."""


class Pending(Protocol):
    """A message under way."""

    def wait(self) -> object:
        """Return when it is complete."""


class Channel(Protocol):
    """What a save needs of the control channel; arrays only."""

    @property
    def rank(self) -> int:
        """This rank."""

    @property
    def size(self) -> int:
        """The number of ranks."""

    def send(self, array: Array, to: int, tag: int, /) -> Pending:
        """Send; the array is not written before ``wait``."""

    def receive(self, into: Array, source: int, tag: int, /) -> Pending:
        """Receive into an array of the same shape and type."""

    def all_gather(self, array: Array, into: Array, /) -> Pending:
        """Gather to ``into``, of shape (size, *array.shape)."""

    def broadcast(self, array: Array, root: int, /) -> Pending:
        """Overwrite the array by that of ``root``."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One vector as rank 0 must know it to write it: kind, type, and (name, shape) of every parameter."""

    kind: str
    dtype: Dtype
    entries: tuple[tuple[str, Shape], ...]


@dataclass(frozen=True, slots=True)
class Column:
    """The ranks that hold the same parameters, one per replica and in that order, and which of their vectors differ."""

    ranks: tuple[int, ...]
    replicas: tuple[int, ...]
    differs: tuple[bool, ...]
    plan_bytes: int


def encode(specs: Sequence[VectorSpec]) -> bytes:
    """The plan of a rank's vectors; equal for ranks that hold the same parameters."""
    for spec in specs:
        check_names(tuple(spec.kind.split("/")))
        for entry in spec.layout:
            check_names(entry.path)
    plan = [[spec.kind, spec.layout.dtype.str, [[entry.name, entry.shape] for entry in spec.layout]] for spec in specs]
    return json.dumps(plan, ensure_ascii=False).encode("utf-8")


def decode(plan: bytes) -> list[Planned]:
    """The inverse of ``encode``."""
    return [
        Planned(kind, np.dtype(dtype), tuple((name, tuple(shape)) for name, shape in entries))
        for kind, dtype, entries in json.loads(plan)
    ]


def survey(channel: Channel, replica: int, specs: Sequence[VectorSpec], host: Host) -> list[Column]:
    """The columns of the grid in the order of their first ranks, the same on every rank. Collective."""
    plan = encode(specs)
    identity = np.frombuffer(hashlib.blake2b(plan, digest_size=DIGEST).digest(), dtype=np.int64)
    mine = np.array([replica, len(specs), len(plan), *identity], dtype=np.int64)
    headers = np.empty((channel.size, len(mine)), dtype=np.int64)
    channel.all_gather(mine, headers).wait()
    columns: dict[bytes, list[int]] = {}
    for rank in range(channel.size):
        columns.setdefault(headers[rank, 1:].tobytes(), []).append(rank)
    alone = len(columns[mine[1:].tobytes()]) == 1
    digests = _digests(channel, [] if alone else specs, host, int(headers[:, 1].max()))
    return [_column(ranks, headers, digests) for ranks in columns.values()]


def survey_alone(channel: Channel, replica: int, specs: Sequence[VectorSpec]) -> list[Column]:
    """A column for every rank that has vectors which no other rank has, in the order of ranks. Collective."""
    headers = np.empty((channel.size, 3), dtype=np.int64)
    channel.all_gather(np.array([replica, len(specs), len(encode(specs))], dtype=np.int64), headers).wait()
    return [
        Column((rank,), (int(held_by),), (False,) * int(count), int(size))
        for rank, (held_by, count, size) in enumerate(headers)
        if count
    ]


def _column(ranks: list[int], headers: Array, digests: Array) -> Column:
    ranks = sorted(ranks, key=lambda rank: int(headers[rank, 0]))
    replicas = tuple(int(headers[rank, 0]) for rank in ranks)
    if len(set(replicas)) < len(replicas):
        raise ValueError(
            f"ranks {ranks} hold the same parameters of the replicas {replicas}: one rank each is possible"
        )
    count, plan_bytes = int(headers[ranks[0], 1]), int(headers[ranks[0], 2])
    differs = (digests[ranks] != digests[ranks[0]]).any(axis=(0, 2))[:count]
    return Column(tuple(ranks), replicas, tuple(differs.tolist()), plan_bytes)


def _digests(channel: Channel, specs: Sequence[VectorSpec], host: Host, count: int) -> Array:
    mine = np.zeros((count, DIGEST), dtype=np.uint8)
    everyone = np.empty((channel.size, count, DIGEST), dtype=np.uint8)
    for row, spec in zip(mine, specs, strict=False):
        row[:] = np.frombuffer(_digest(spec.vector, host), dtype=np.uint8)
    channel.all_gather(mine, everyone).wait()
    return everyone


def _digest(vector: Array, host: Host) -> bytes:
    # processors that have instructions for SHA-256 do it at twice the speed of BLAKE2b
    digest, length = hashlib.sha256(), max(1, BLOCK // vector.itemsize)
    for start in range(0, len(vector), length):
        digest.update(np.ascontiguousarray(host(vector[start : start + length])).data)
    return digest.digest()[:DIGEST]
