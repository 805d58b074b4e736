"""Copies of weights that passes in flight were made with."""

from dataclasses import dataclass

import numpy as np

from mpinn.array.typing import Array
from mpinn.nn.layer import Tree
from mpinn.nn.part import Part


@dataclass(slots=True, eq=False)
class Version:
    """The weights after ``number`` updates, and how many passes in flight refer to them."""

    number: int
    vector: Array
    views: Tree
    users: int = 0


class Stash:
    """One copy of a part's weights for each version that a pass in flight was made with; copies are used again."""

    def __init__(self, part: Part):
        self._part = part
        self._newest: Version | None = None
        self._free: list[Version] = []

    def hold(self, number: int) -> Version:
        """The part's weights as they are now, after ``number`` updates."""
        return self.known(number, self._part.weights)

    def known(self, number: int, weights: Array) -> Version:
        """The ``weights`` (P,) after ``number`` updates, which are copied where they are not held yet."""
        if self._newest is None or self._newest.number != number or not self._newest.users:
            self._newest = self._room(number)
            np.copyto(self._newest.vector[: len(weights)], weights)
        self._newest.users += 1
        return self._newest

    def _room(self, number: int) -> Version:
        if self._free:
            version = self._free.pop()
            version.number = number
            return version
        vector = np.zeros_like(self._part.weights)
        return Version(number, vector, self._part.layout.views(vector))

    def release(self, version: Version) -> None:
        """One pass less refers to it."""
        version.users -= 1
        if not version.users:
            self._free.append(version)
