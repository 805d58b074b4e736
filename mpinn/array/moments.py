"""What the optimizers' kernels for all devices share."""

from math import sqrt


def bias_corrected(rate: float, betas: tuple[float, float], epsilon: float, updates: int) -> tuple[float, float]:
    """The rate and the epsilon with which the moments of update number ``updates`` need no correction of their own."""
    correction = sqrt(1 - betas[1] ** updates)
    return rate / (1 - betas[0] ** updates) * correction, epsilon * correction
