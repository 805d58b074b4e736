"""Checkpoint files of models that have not been trained: with drawn weights and statistics, by the program's writer."""

from pathlib import Path
from typing import Any

import numpy as np

from mpinn.array.typing import Array, Shape
from mpinn.config import load
from mpinn.nn.part import Part, build_part
from mpinn.storage import schema
from mpinn.storage.writer import Header, Piece, write
from mpinn.training.choices import CHOICES, DEFAULTS

CLASSES = 5


def draw(part: Part, seed: int) -> None:
    """Initial weights, then scales, shifts, biases and statistics away from 1 and 0, as training leaves them."""
    part.initialize(seed)
    rng = np.random.default_rng(seed + 100)
    for layout, vector in ((part.layout, part.weights), (part.state_layout, part.state)):
        for entry in layout:
            values = vector[entry.slice]
            if entry.path[-1] in ("scale", "variance"):
                values[:] = rng.uniform(0.5, 1.5, entry.size)
            elif entry.path[-1] in ("shift", "mean", "bias"):
                values[:] = rng.normal(0, 0.3, entry.size)


def save_model(
    path: Path,
    tables: dict[str, Any],
    shape: Shape,
    bounds: tuple[int, ...] = (),
    replicas: int = 1,
    mean: Array | None = None,
    std: Array | None = None,
) -> Path:
    """A file of the model that ``tables`` describe, for samples of ``shape`` and `CLASSES` classes."""
    config = load(tables, (), CHOICES, DEFAULTS)
    model = config.model.build(shape, CLASSES)
    bounds = bounds or (0, len(model.network))
    network = config.schedule.network(config.model, model, bounds)
    parts = []
    for replica in range(replicas):
        part = build_part("network", network, shape, np.dtype(config.run.dtype), ())
        draw(part, replica)
        parts.append(part)
    snapshot = schema.Snapshot(
        step=3, epoch=1, seed=0, grid=(replicas, 1, 1), dtype=config.run.dtype,
        configuration=config.tables(), vectors=[],
        data={"name": "digits", "sample_shape": " x ".join(map(str, shape)), "classes": CLASSES,
              "mean": np.linspace(-1, 2, shape[-1]) if mean is None else mean,
              "std": np.linspace(0.5, 3, shape[-1]) if std is None else std},
        scalars={"bounds": np.array(bounds), "samples": 30, "seconds": 0.5, "behind": 0, "behind_samples": 0},
        history={"step": np.array([1, 2]), "loss": np.array([0.5, np.nan])},
    )  # fmt: skip
    write(path, Header.of(snapshot, None), list(_pieces(parts)))
    return path


def _pieces(parts: list[Part]) -> Any:
    for kind, layout, vectors in (
        ("model/network", parts[0].layout, [part.weights for part in parts]),
        ("state/network", parts[0].state_layout, [part.state for part in parts]),
    ):
        groups = [(kind, np.mean(vectors, axis=0, dtype=layout.dtype))]
        groups += [(f"replica/{r}/{kind}", vector) for r, vector in enumerate(vectors) if len(vectors) > 1]
        for group, vector in groups:
            for entry in layout:
                values = vector[entry.slice].reshape(entry.shape)
                for block in schema.blocks(entry.shape, values.itemsize):
                    merged = len(vectors) > 1 and group == kind
                    yield Piece(group, kind, entry.name, entry.shape, block.selection, values[block.selection], merged)
