"""Copies of weights that passes in flight were made with."""

from dataclasses import dataclass

import numpy as np

from mpinn.array.typing import Array
from mpinn.nn.layer import Tree
from mpinn.nn.part import Part


@dataclass(slots=True, eq=False)
class Version:
    """The weights after so many updates and meetings, and how many passes in flight refer to them."""

    updates: int
    meetings: int
    vector: Array
    views: Tree
    users: int = 0


class Stash:
    """One copy of a part's weights for each version that a pass in flight was made with; copies are used again."""

    def __init__(self, part: Part):
        self._part = part
        self._newest: Version | None = None
        self._free: list[Version] = []
        self.meetings = 0
        """At which the weights were changed between two updates."""

    def hold(self, updates: int) -> Version:
        """The part's weights as they are now, after so many updates."""
        return self.known(updates, self.meetings, self._part.weights)

    def known(self, updates: int, meetings: int, weights: Array) -> Version:
        """The ``weights`` (P,) after so many updates and meetings, which are copied where they are not held yet."""
        newest = self._newest
        if newest is None or (newest.updates, newest.meetings) != (updates, meetings) or not newest.users:
            newest = self._newest = self._room(updates, meetings)
            np.copyto(newest.vector[: len(weights)], weights)
        newest.users += 1
        return newest

    def _room(self, updates: int, meetings: int) -> Version:
        if self._free:
            version = self._free.pop()
            version.updates, version.meetings = updates, meetings
            return version
        vector = np.zeros_like(self._part.weights)
        return Version(updates, meetings, vector, self._part.layout.views(vector))

    def met(self) -> None:
        """The weights have been changed by no update."""
        self.meetings += 1

    def release(self, version: Version) -> None:
        """One pass less refers to it."""
        version.users -= 1
        if not version.users:
            self._free.append(version)
