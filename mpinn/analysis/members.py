"""The members of a population, as its checkpoint tells of them: how many there are, and the best."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpinn.config import InputError
from mpinn.models.population import Population
from mpinn.storage.reader import Checkpoint

SHOWN = 10
"""The best members that are described."""


def describe_members(file: Checkpoint, options: Any) -> dict[str, Any] | None:
    """The members, how many are still there and in how many panels, and the best; None for any other model.

    They stand in the order in which a run ranks them: by validation accuracy, or loss if there are no classes, then by
    loss, then by number.
    """
    scalars = file.scalars
    if not isinstance(options, Population) or "member_loss" not in scalars:
        return None
    loss, accuracy, left, panel = (
        np.asarray(scalars[f"member_{name}"]) for name in ("loss", "accuracy", "left", "panel")
    )
    members = options.members()
    if len(members) != len(loss):
        raise InputError(str(file.path), f"it has {len(loss)} members, but its configuration makes {len(members)}")
    there = np.flatnonzero(left == 0)
    known, classes = np.isfinite(loss), int(file.data.get("classes", 0))
    score = np.where(known, accuracy if classes else -loss, -np.inf)[there]
    order = there[np.lexsort((there, np.where(known, loss, np.inf)[there], -score))]
    optimizer = file.configuration["optimizer"]
    counts = np.unique(panel[panel >= 0], return_counts=True)[1]
    return {
        "members": len(members),
        "there": len(there),
        "panels": len(counts),
        "panel_members": [int(counts.min()), int(counts.max())] if len(counts) else [],
        "best": [
            _row(members[n], float(loss[n]), float(accuracy[n]) if classes else None, optimizer)
            for n in order[:SHOWN].tolist()
        ],
    }


def _row(member: Any, loss: float, accuracy: float | None, optimizer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "member": member.number,
        "validation_accuracy": accuracy,
        "validation_loss": loss,
        "layers": len(member.widths),
        "width": member.widths[0],
        "activation": member.activation,
        "rate": optimizer["rate"] if member.rate is None else member.rate,
        "weight_decay": optimizer["weight_decay"] if member.weight_decay is None else member.weight_decay,
        "seed": member.seed,
    }
