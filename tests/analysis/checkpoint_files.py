"""Checkpoint files for the tests of what reads them."""

import math
from pathlib import Path

import numpy as np

from mpinn.nn.layout import Layout
from mpinn.storage import schema
from mpinn.storage.writer import Header, Piece, write

LAYOUT = Layout({"hidden1": {"dense": {"weight": (40, 5), "bias": (5,)}}, "output": {"scale": ()}}, "float32")


def values(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {entry.name: np.asarray(rng.standard_normal(entry.shape), "float32") for entry in LAYOUT}


def write_file(
    path: Path,
    step: int,
    arrays: dict[str, dict[str, np.ndarray]],
    replicas: int = 1,
    model: dict[str, object] | None = None,
    scalars: dict[str, np.ndarray] | None = None,
) -> None:
    """A checkpoint with the arrays of each group."""
    snapshot = schema.Snapshot(
        step=step,
        epoch=1,
        seed=3,
        grid=(replicas, 1, 1),
        dtype="float32",
        configuration={"model": model or {"name": "mlp", "widths": [5]}, "consensus": {"name": "averaging"}},
        vectors=[],
        data={"position": 640},
        scalars={"best": math.nan, **(scalars or {})},
        history={"step": np.array([1, 2]), "accuracy": np.array([0.5, math.nan])},
    )
    pieces = []
    for group, tree in arrays.items():
        kind = group.split("/", 2)[2] if group.startswith("replica") else group
        for name, array in tree.items():
            for block in schema.blocks(array.shape, array.itemsize):
                merged = replicas > 1 and group == kind
                pieces.append(Piece(group, kind, name, array.shape, block.selection, array[block.selection], merged))
    write(path, Header.of(snapshot, None), pieces)
