"""How a replica is scored, and how scores become weights of a mean (METHODS of weighted averaging, by rule)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import fsum
from typing import Literal, TypeAlias

import numpy as np

from mpinn.array.typing import Array
from mpinn.consensus.consensus import Measure, Qualities

ScoreName: TypeAlias = Literal[
    "uniform",
    "accuracy",
    "accuracy_shard",
    "inverse_loss",
    "boltzmann",
    "inverse_error",
    "inverse_gradient_norm",
    "samples",
    "fisher",
    "best",
]


@dataclass(frozen=True, slots=True)
class Local:
    """What a replica knows without measuring: the root mean square of the norms of its gradients, and its samples.

    Both since the last meeting; one batch's norm would be too noisy to rank replicas, and an empty batch has none. The
    norm is that of each group, (G,).
    """

    gradient_norm: Array
    samples: float


Ask: TypeAlias = Callable[[Measure, Local], Array | float]
Rule: TypeAlias = Callable[[Array, float, float], Array]


@dataclass(frozen=True, slots=True)
class Score:
    """``ask`` gives one replica's number for each group, (G,), or one for all.

    ``rule(numbers, sharpness, epsilon)`` makes weights of numbers, both (R, G), up to a factor for each group. NaN, of
    a replica that is left out, need not stay NaN; each group has a number on some replica.
    """

    ask: Ask
    rule: Rule


def _proportional(numbers: Array, sharpness: float, epsilon: float) -> Array:
    return numbers


def _inverse(numbers: Array, sharpness: float, epsilon: float) -> Array:
    weights: Array = 1 / (numbers + epsilon)
    return weights


def _boltzmann(losses: Array, sharpness: float, epsilon: float) -> Array:
    # shifting all exponents alike changes no weight and avoids underflow of all of them
    exponents = -sharpness * losses / (np.nansum(losses, axis=0) + epsilon)
    weights: Array = np.exp(exponents - np.nanmax(exponents, axis=0))
    return weights


def _inverse_error(accuracies: Array, sharpness: float, epsilon: float) -> Array:
    return _inverse(1 - accuracies, sharpness, epsilon)


def _inverse_norm(norms: Array, sharpness: float, epsilon: float) -> Array:
    # without any gradient, because of no samples or a dead network, a replica has nothing to bring
    return np.where(norms > 0, _inverse(norms, sharpness, epsilon), 0)


def _best(numbers: Array, sharpness: float, epsilon: float) -> Array:
    weights: Array = np.arange(len(numbers))[:, None] == np.nanargmax(numbers, axis=0)
    return weights


def _one(measure: Measure, local: Local) -> float:
    return 1.0


def _trusted(quality: Qualities) -> Array:
    # finite weights can be so large that outputs are not; what is then counted as right is chance
    return np.where(np.isfinite(quality.loss), quality.accuracy, np.nan)


def _accuracy(measure: Measure, local: Local) -> Array:
    return _trusted(measure.validation())


def _accuracy_shard(measure: Measure, local: Local) -> Array:
    return _trusted(measure.shard())


def _loss(measure: Measure, local: Local) -> Array:
    return measure.validation().loss


def _gradient_norm(measure: Measure, local: Local) -> Array:
    return local.gradient_norm


def _samples(measure: Measure, local: Local) -> float:
    return local.samples


SCORES: Mapping[str, Score] = {
    "uniform": Score(_one, _proportional),
    "accuracy": Score(_accuracy, _proportional),
    "accuracy_shard": Score(_accuracy_shard, _proportional),
    "inverse_loss": Score(_loss, _inverse),
    "boltzmann": Score(_loss, _boltzmann),
    "inverse_error": Score(_accuracy, _inverse_error),
    "inverse_gradient_norm": Score(_gradient_norm, _inverse_norm),
    "samples": Score(_samples, _proportional),
    "fisher": Score(_one, _proportional),
    "best": Score(_accuracy, _best),
}

MEMBER_SCORES = tuple(score for score in SCORES if score != "fisher")
"""Those that are measured for the members of a population."""


def mean_weights(score: Score, numbers: Array, sharpness: float, epsilon: float) -> Array | None:
    """Weights (R, G) that add up to 1 for each group, from the replicas' numbers, NaN where one is to be left out.

    Numbers that are all zero give equal weights, and so does a group that all replicas leave out. None when every
    replica is left out of every group.
    """
    finite = np.isfinite(numbers)
    if not finite.any():
        return None
    known = finite.any(axis=0)
    numbers = np.where(finite, numbers, np.nan)[:, known].astype(np.float64)
    shares = np.where(finite[:, known], score.rule(numbers, sharpness, epsilon), 0)
    totals = np.array([fsum(column) for column in shares.T])
    none = totals <= 0
    shares[:, none], totals[none] = finite[:, known][:, none], finite[:, known][:, none].sum(axis=0)
    weights = np.full(finite.shape, 1 / len(finite))
    weights[:, known] = shares / totals
    return weights
