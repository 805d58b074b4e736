"""Optimizers in the words of PyTorch's documentation (torch.optim.SGD, Adam, AdamW), and the learning rate."""

from math import inf

import numpy as np

from mpinn.array.typing import Array


def sgd(
    theta: Array,
    gradients: list[Array],
    lr: list[float],
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Array:
    """torch.optim.SGD with dampening 0."""
    b = None
    for g, gamma in zip(gradients, lr, strict=True):
        g = g + weight_decay * theta
        if momentum:
            b = g if b is None else momentum * b + g
            g = g + momentum * b if nesterov else b
        theta = theta - gamma * g
    return theta


def adam(
    theta: Array,
    gradients: list[Array],
    lr: list[float],
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> Array:
    """torch.optim.Adam, and AdamW when the decay is decoupled."""
    m = v = np.zeros_like(theta)
    for t, (g, gamma) in enumerate(zip(gradients, lr, strict=True), 1):
        if decoupled:
            theta = theta - gamma * weight_decay * theta
        else:
            g = g + weight_decay * theta
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        theta = theta - gamma * m_hat / (np.sqrt(v_hat) + eps)
    return theta


def learning_rate(
    decay: str, step: int, total: int, warmup: int, milestones: tuple[int, ...], factor: float, floor: float
) -> float:
    """The share of the full rate, case by case."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if decay == "step":
        passed = [milestone for milestone in milestones if milestone <= step]
        return float(np.prod([factor] * len(passed)))
    if decay == "cosine":
        angle = np.pi * (step - warmup) / (total - warmup) if total > warmup else inf
        return floor + (1 - floor) * (1 + np.cos(min(angle, np.pi))) / 2
    return 1.0
