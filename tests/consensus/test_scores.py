"""From scores to the weights of a mean."""

from math import fsum, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Average, shares

from mpinn.consensus.consensus import Qualities
from mpinn.consensus.scores import SCORES, Local, mean_weights

ALIKE = sorted(SCORES.keys() - {"best"})
ULP = np.finfo(float).eps
NUMBERS = st.lists(st.floats(0, 1) | st.just(nan), min_size=1, max_size=80).map(np.array)


def weights_of(name: str, numbers, sharpness: float = 1.0, epsilon: float = 1e-6):
    weights = mean_weights(SCORES[name], np.array(numbers, float)[:, None], sharpness, epsilon)
    return None if weights is None else weights[:, 0]


@pytest.mark.parametrize("name", SCORES)
@settings(max_examples=40)
@given(numbers=NUMBERS)
def test_weights_are_a_mean_of_what_is_finite(name: str, numbers: np.ndarray) -> None:
    weights = weights_of(name, numbers)
    finite = np.isfinite(numbers)
    if not finite.any():
        assert weights is None
        return
    assert abs(fsum(weights) - 1) <= ULP
    assert (weights >= 0).all()
    assert not weights[~finite].any()
    # numbers below the smallest normal one have no digits to be compared
    if numbers[finite].sum() > 1e-300:
        wanted = shares(numbers[finite], Average(score=name))
        np.testing.assert_allclose(weights[finite], wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", SCORES)
@settings(max_examples=40)
@given(numbers=NUMBERS, data=st.data())
def test_permuted_scores_give_permuted_weights(name: str, numbers: np.ndarray, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(numbers))))
    if name == "best" and len(set(numbers)) < len(numbers):
        return  # of equal ones the first is taken
    straight, turned = weights_of(name, numbers), weights_of(name, numbers[order])
    if straight is None:
        assert turned is None
    else:
        np.testing.assert_allclose(turned, straight[order], rtol=4 * len(numbers) * ULP, atol=1e-300)


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize("number", [0.0, 0.5, 1.0])
def test_equal_scores_weigh_alike(name: str, number: float) -> None:
    assert weights_of(name, [number] * 4).tolist() == [0.25] * 4
    assert weights_of(name, [number, nan, number]).tolist() == [0.5, 0, 0.5]


@pytest.mark.parametrize("name", SCORES)
@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_groups_know_nothing_of_one_another(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.uniform(size=(rng.integers(1, 5), 6))
    numbers[rng.uniform(size=numbers.shape) < 0.3] = nan
    numbers[:, 2] = nan
    together = mean_weights(SCORES[name], numbers, 3.0, 1e-6)
    for group, column in enumerate(numbers.T):
        alone = weights_of(name, column, sharpness=3.0)
        if alone is None:
            alone = np.full(len(column), 1 / len(column))
        if np.isfinite(numbers).any():
            np.testing.assert_array_equal(together[:, group], alone)


def test_best_takes_the_first_of_equals() -> None:
    assert weights_of("best", [0.2, 0.7, 0.7]).tolist() == [0, 1, 0]
    assert weights_of("best", [nan, 0.0, 0.0]).tolist() == [0, 1, 0]


def test_better_ones_weigh_more() -> None:
    for name in ("accuracy", "accuracy_shard", "inverse_error", "samples"):
        assert weights_of(name, [0.9, 0.5])[0] > 0.5, name
    for name in ("inverse_loss", "boltzmann", "inverse_gradient_norm"):
        assert weights_of(name, [0.9, 0.5])[0] < 0.5, name


def test_nothing_to_bring_is_not_the_best() -> None:
    assert weights_of("inverse_gradient_norm", [0.0, 2.0, 2.0]).tolist() == [0, 0.5, 0.5]


def test_sharp_boltzmann_tends_to_the_best_and_does_not_underflow() -> None:
    assert weights_of("boltzmann", [2.0, 1.0, 3.0], sharpness=1e6).tolist() == [0, 1, 0]
    assert weights_of("boltzmann", [2.0, 1.0, 3.0], sharpness=0).tolist() == pytest.approx([1 / 3] * 3)


def test_perfect_replicas_share() -> None:
    assert weights_of("inverse_error", [1.0, 1.0, 0.0]) == pytest.approx([0.5, 0.5, 0], abs=1e-5)
    assert weights_of("inverse_loss", [0.0, 0.0, 1.0]) == pytest.approx([0.5, 0.5, 0], abs=1e-5)


class Measured:
    """Knows different things of the two splits, and what was asked."""

    def __init__(self, loss: float = 0.25):
        self.asked: list[str] = []
        self.loss = loss

    def validation(self) -> Qualities:
        self.asked.append("validation")
        return Qualities(np.array([self.loss]), np.array([0.75]))

    def shard(self) -> Qualities:
        self.asked.append("shard")
        return Qualities(np.array([self.loss]), np.array([0.5]))


WANTED: dict[str, tuple[float, list[str]]] = {
    "uniform": (1, []),
    "accuracy": (0.75, ["validation"]),
    "accuracy_shard": (0.5, ["shard"]),
    "inverse_loss": (0.25, ["validation"]),
    "boltzmann": (0.25, ["validation"]),
    "inverse_error": (0.75, ["validation"]),
    "inverse_gradient_norm": (3, []),
    "samples": (40, []),
    "fisher": (1, []),
    "best": (0.75, ["validation"]),
}


@pytest.mark.parametrize("name", WANTED)
def test_a_score_asks_for_what_it_needs(name: str) -> None:
    measure = Measured()
    number = SCORES[name].ask(measure, Local(gradient_norm=np.array([3]), samples=40))
    assert (number, measure.asked) == WANTED[name]


@pytest.mark.parametrize("name", ["accuracy", "accuracy_shard", "inverse_error", "best"])
@pytest.mark.parametrize("loss", [nan, np.inf])
def test_accuracy_counts_only_with_a_finite_loss(name: str, loss: float) -> None:
    assert np.isnan(SCORES[name].ask(Measured(loss), Local(np.array([3]), 40)))
