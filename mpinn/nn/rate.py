"""The learning rate as a function of the batch index."""

from math import cos, pi
from typing import Literal, TypeAlias

Decay: TypeAlias = Literal["constant", "step", "cosine"]


def share(
    decay: Decay, step: int, total: int, warmup: int, milestones: tuple[int, ...], factor: float, floor: float
) -> float:
    """The share of the full rate at batch ``step`` of a run of ``total`` steps.

    It rises linearly over the first ``warmup`` steps, then stays (constant), is multiplied by ``factor`` at each of the
    ``milestones``, which are step numbers (step), or falls along half a cosine to ``floor`` at the end (cosine).
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if decay == "step":
        return factor ** sum(step >= milestone for milestone in milestones)
    if decay == "cosine":
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return floor + (1 - floor) * 0.5 * (1 + cos(pi * done))
    return 1.0
