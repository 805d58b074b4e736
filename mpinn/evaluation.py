"""The evaluations of a run, as its metrics have them, beside the checkpoints that were saved."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from mpinn.words import loss_text

MEASURES = ("validation_accuracy", "validation_loss")
"""Of a line of the metrics; the first that it has counts."""


def best_seen(records: Sequence[Mapping[str, Any]]) -> tuple[float, dict[str, Any]] | None:
    """The score of the best evaluation, the earliest of equals, and its step and value; None without evaluations.

    A score is an accuracy or a loss below 0, as that of a checkpoint: higher is better.
    """
    found = [known for known in map(_evaluation, records) if known is not None]
    return max(found, key=lambda known: known[0], default=None)


def unsaved_best(records: Sequence[Mapping[str, Any]], saved: float | None) -> dict[str, Any] | None:
    """The step and the value of the best evaluation, if it is better than ``saved``, the best score of a checkpoint."""
    best = best_seen(records)
    return None if best is None or (saved is not None and best[0] <= saved) else best[1]


def unsaved_text(found: Mapping[str, Any]) -> str:
    """What `unsaved_best` found as people read it."""
    (name, value) = next((name, value) for name, value in found.items() if name != "step")
    return f"step {found['step']}, {name} {loss_text(value)}, not saved: only saved steps can be --best"


def _evaluation(record: Mapping[str, Any]) -> tuple[float, dict[str, Any]] | None:
    for name in MEASURES:
        value = record.get(name)
        if value is not None:
            score = -value if name.endswith("loss") else value
            told = {"step": record["step"], name.removeprefix("validation_"): value}
            return (score, told) if isfinite(value) else None
    return None
