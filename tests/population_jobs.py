"""Populations as jobs for the tests, and what their checkpoints say of the members."""

from pathlib import Path

import numpy as np
from train_jobs import SMALL, datasets

POPULATION = (
    *SMALL[1:],
    "model.name=population",
    "model.widths=[3, 40, 50]",
    "model.layers=[1, 2]",
    "model.activations=['relu', 'tanh', 'gelu', 'identity']",
    "model.repetitions=2",
    "optimizer.rate=0.2",
    "grid.replicas=1",
    "grid.shards=0",
)
"""48 members in 8 panels."""
CHOOSY = (
    "model.rungs=['6 steps', '14 steps']",
    "model.patience=1",
    "train.evaluate=3 steps",
    "model.rates={draw = 'log_uniform', low = 0.01, high = 1}",
)


def members(path: Path) -> dict[str, np.ndarray]:
    """All that a checkpoint says of the members."""
    wanted = ("model/", "optimizer/", "scalars/member_")
    return {name: array for name, array in datasets(path).items() if name.startswith(wanted)}


def newest(directory: Path) -> Path:
    return (directory / "latest").resolve()


def same(one: Path, other: Path) -> None:
    first, second = members(newest(one)), members(newest(other))
    assert first.keys() == second.keys()
    different = [name for name in first if first[name].tobytes() != second[name].tobytes()]
    assert not different
