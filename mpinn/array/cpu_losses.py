"""The losses compiled: value and gradient in one pass."""

from typing import Any

import numpy as np

from mpinn.array.cpu_math import exp
from mpinn.array.jit import kernel, sums


@kernel  # not `sums`: exp rounds by adding a large number and taking it away again
def softmax_cross_entropy(logits: Any, target: Any, smoothing: float, dy: Any) -> float:
    """The loss of logits: (B, O), summed; writes dy: (B, O). Raises IndexError for a class that is not there."""
    number = logits.dtype.type
    classes = logits.shape[1]
    share, chosen = number(smoothing / classes), number(1 - smoothing)
    loss = 0.0
    for i in range(logits.shape[0]):
        wanted = target[i]
        if wanted < 0 or wanted >= classes:
            raise IndexError("a target is not the number of a class")
        most = logits[i, 0]
        for j in range(1, classes):
            most = max(most, logits[i, j])
        for j in range(classes):
            dy[i, j] = exp(logits[i, j] - most)
        total = 0.0
        for j in range(classes):
            total += dy[i, j]
        loss += np.log(total) - (1 - smoothing) * np.float64(logits[i, wanted] - most)
        if smoothing:
            for j in range(classes):
                loss -= np.float64(logits[i, j] - most) * (smoothing / classes)
        for j in range(classes):
            dy[i, j] = dy[i, j] / number(total) - share
        dy[i, wanted] -= chosen
    return loss


@sums
def half_square(y: Any, target: Any, dy: Any) -> float:
    """|y - target|^2 / 2 of vectors; writes dy = y - target."""
    total = 0.0
    for i in range(y.size):
        dy[i] = y[i] - target[i]
        total += np.float64(dy[i]) * np.float64(dy[i])
    return 0.5 * total


@sums
def half_square_of_classes(y: Any, target: Any, dy: Any) -> float:
    """The same for y: (B, O) and one-hot rows, given by class numbers (B,)."""
    total = 0.0
    for i in range(y.shape[0]):
        wanted = target[i]
        if wanted < 0 or wanted >= y.shape[1]:
            raise IndexError("a target is not the number of a class")
        for j in range(y.shape[1]):
            dy[i, j] = y[i, j]
        dy[i, wanted] -= y.dtype.type(1)
        for j in range(y.shape[1]):
            total += np.float64(dy[i, j]) * np.float64(dy[i, j])
    return 0.5 * total
