"""A saved model in Python: its weights as arrays, its history as columns, and what it predicts."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mpinn.analysis.network import Trained, trained_network
from mpinn.analysis.normalisation import Normalisation, normalisation_of
from mpinn.array import ops as plain
from mpinn.array.pool import Pool
from mpinn.array.typing import Array, Dtype
from mpinn.config import InputError
from mpinn.nn.layer import Pass, Tree
from mpinn.nn.layout import Layout
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import checkpoint_of
from mpinn.storage.schema import NETWORK

STATE = NETWORK.replace("model", "state", 1)
BATCH = 256
"""Samples that are predicted at once."""


class Arrays(Mapping[str, Array]):
    """The arrays of a checkpoint by their names, each read when it is asked for: ``arrays["hidden1/weight"]``."""

    def __init__(self, checkpoint: Checkpoint, kind: str, replica: int | None):
        self._checkpoint, self._kind, self._replica = checkpoint, kind, replica
        self._names = [parameter.name for parameter in checkpoint.parameters(kind)]

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(f"{name}; there are {', '.join(self._names)}")
        return self._checkpoint.weights(name, self._kind, self._replica)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class SavedModel:
    """One checkpoint, open for reading; see `mpinn.open`. Nothing that it gives out changes the file."""

    def __init__(self, path: str | Path, replica: int | None = None, best: bool = False):
        self.notes: list[str] = []
        """What had to be said about files that were passed over."""
        self.checkpoint = Checkpoint(checkpoint_of(Path(path), best, self.notes.append))
        """The file itself, with everything in it: `mpinn.storage.reader.Checkpoint`."""
        self.replica = replica
        if replica is not None and not 0 <= replica < self.checkpoint.grid[0]:
            self.close()
            raise InputError(str(path), f"it has {self.checkpoint.grid[0]} replicas, from 0: there is no {replica}")

    def close(self) -> None:
        """Close the file."""
        self.checkpoint.close()

    def __enter__(self) -> "SavedModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        name = self.configuration.get("model", {}).get("name", "model")
        return f"<{name} of {self.checkpoint.path}, step {self.step}>"

    @property
    def step(self) -> int:
        """Optimizer steps that it has been trained for."""
        return self.checkpoint.step

    @cached_property
    def configuration(self) -> dict[str, Any]:
        """Every key of the run's configuration, table by table."""
        return self.checkpoint.configuration

    @property
    def weights(self) -> Arrays:
        """The weights by name: ``weights["hidden1/weight"]`` (inputs, outputs)."""
        return Arrays(self.checkpoint, NETWORK, self.replica)

    @property
    def state(self) -> Arrays:
        """The running statistics of batch norms by name."""
        return Arrays(self.checkpoint, STATE, self.replica)

    @property
    def layers(self) -> list[str]:
        """The layers that have weights, in order: ``hidden1``, ``block3/sum/body/conv1``."""
        return [*dict.fromkeys(name.rpartition("/")[0] for name in self.weights)]

    def layer(self, name: str) -> dict[str, Array]:
        """The weights of one layer: ``{"weight": ..., "bias": ...}``."""
        weights = self.weights
        found = {entry.rpartition("/")[2]: weights[entry] for entry in weights if entry.rpartition("/")[0] == name}
        if not found:
            raise KeyError(f"{name}; there are {', '.join(self.layers)}")
        return found

    @property
    def history(self) -> dict[str, Array]:
        """The metrics so far as columns of equal length, NaN where a line has no such value."""
        return self.checkpoint.history

    @cached_property
    def trained(self) -> Trained:
        """The network that was trained, without its weights."""
        return trained_network(self.checkpoint)

    @cached_property
    def normalisation(self) -> Normalisation:
        """What is done to a sample before it enters the network."""
        return normalisation_of(self.checkpoint)

    @cached_property
    def views(self) -> tuple[Tree, Tree]:
        """All weights and running statistics, as trees by layer; read the first time."""
        trained, dtype = self.trained, np.dtype(self.checkpoint.dtype)
        weights = self._filled(Layout(trained.network.parameters(trained.shape), dtype), NETWORK)
        return weights, self._filled(Layout(trained.network.state(trained.shape), dtype), STATE)

    def _filled(self, layout: Layout, kind: str) -> Tree:
        vector = np.zeros(layout.size, layout.dtype)
        self.checkpoint.fill(layout, vector, kind, self.replica)
        vector.flags.writeable = False
        return layout.views(vector)

    def predict(self, x: Array) -> Array:
        """x: (B, *sample) as the data set has them, not normalised, to the outputs (B, O) before any softmax."""
        x = np.asarray(x)
        shape = self.trained.shape
        if x.shape[1:] != shape or x.ndim != len(shape) + 1:
            raise ValueError(f"expected x of shape (B, {', '.join(map(str, shape))}), got {x.shape}")
        found = np.empty((len(x), self.trained.outputs), self.checkpoint.dtype)
        context = Pass(Pool(), plain, training=False)
        for start in range(0, len(x), BATCH):
            part = self.normalisation.apply(x[start : start + BATCH], found.dtype)
            found[start : start + BATCH] = self.forward(part, context)
        return found

    def forward(self, x: Array, context: Pass) -> Array:
        """x: (B, *sample), normalised, to (B, O)."""
        weights, state = self.views
        y: Array = self.trained.network.forward(weights, state, x, context)[0]
        return y

    @property
    def dtype(self) -> Dtype:
        """The type that the run computed in."""
        return np.dtype(self.checkpoint.dtype)
