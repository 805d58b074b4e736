"""Who is best, who learns no more, and who leaves."""

import numpy as np
import pytest

from mpinn.array.typing import Array
from mpinn.nn.optimizer import SGD
from mpinn.nn.packed import Member
from mpinn.population.ranking import Ranking
from mpinn.population.standing import standing


def sums(losses: list[float], right: list[float], samples: int = 10) -> Array:
    return np.array([losses, right, [samples] * len(losses)]).T * [[samples, 1, 1]]


def test_ranks_by_accuracy_then_loss_then_number_and_last_what_is_not_finite() -> None:
    ranking = Ranking(5, classes=3)
    ranking.take(sums([0.5, 0.4, 0.4, np.nan, 0.1], [8, 9, 9, 10, 7]), 1)
    assert ranking.order().tolist() == [1, 2, 0, 4, 3]
    assert ranking.best() == 1
    assert (ranking.quality(1).loss, ranking.quality(1).accuracy) == (pytest.approx(0.4), 0.9)
    assert ranking.worst(0.4).tolist() == [0, 4, 3]
    assert ranking.worst(0.0).tolist() == [2, 0, 4, 3]


def test_a_regression_is_ranked_by_its_loss() -> None:
    ranking = Ranking(3, classes=0)
    ranking.take(sums([0.5, 0.1, np.inf], [1, 1, 1]), 1)
    assert ranking.order().tolist() == [1, 0, 2]
    assert np.isnan(ranking.accuracy).all()
    members = [Member(number, (2,), "relu", 0) for number in range(3)]
    rows = standing(ranking, members, SGD())
    assert [row["validation_accuracy"] for row in rows] == [None] * 3
    assert [row["validation_loss"] for row in rows] == [pytest.approx(0.1), pytest.approx(0.5), None]


def test_half_of_an_odd_number_stays_rounded_up() -> None:
    ranking = Ranking(5, classes=0)
    ranking.take(sums([5, 4, 3, 2, 1], [0] * 5), 1)
    assert ranking.worst(0.5).tolist() == [1, 0]


def test_who_has_left_is_neither_ranked_nor_measured() -> None:
    ranking = Ranking(3, classes=2)
    ranking.take(sums([0.1, 0.2, 0.3], [9, 8, 7]), 1)
    ranking.left[0] = 1
    assert ranking.order().tolist() == [1, 2]
    ranking.take(sums([0.9, 0.2, 0.3], [1, 8, 7]), 2)
    assert ranking.accuracy[0] == 0.9


def test_without_patience_the_newest_measure_counts() -> None:
    ranking = Ranking(2, classes=2)
    ranking.take(sums([0.1, 0.2], [9, 8]), 1)
    better, ended = ranking.take(sums([0.4, 0.1], [5, 9]), 2)
    assert (better.tolist(), ended.tolist()) == ([1], [])
    assert ranking.accuracy.tolist() == [0.5, 0.9]


def test_with_patience_the_best_measure_counts_and_who_does_not_improve_stops() -> None:
    ranking = Ranking(2, classes=2, patience=2)
    assert ranking.take(sums([0.1, 0.2], [9, 5]), 1)[0].tolist() == [0, 1]
    # equally good is not better
    assert [found.tolist() for found in ranking.take(sums([0.05, 0.2], [9, 6]), 2)] == [[1], []]
    better, ended = ranking.take(sums([0.4, 0.1], [5, 7]), 3)
    assert (better.tolist(), ended.tolist()) == ([1], [0])
    assert ranking.stopped.tolist() == [3, 0]
    assert ranking.accuracy.tolist() == [0.9, 0.7]
    better, ended = ranking.take(sums([0.4, 0.1], [10, 6]), 4)
    assert (better.tolist(), ended.tolist()) == ([], [])
    assert ranking.accuracy.tolist() == [0.9, 0.7]


def test_goes_on_from_its_own_arrays() -> None:
    ranking, other = Ranking(2, classes=2, patience=2), Ranking(2, classes=2, patience=2)
    ranking.take(sums([0.1, 0.2], [9, 5]), 1)
    ranking.take(sums([0.3, 0.2], [8, 6]), 2)
    other.restore(ranking.arrays())
    for one in (ranking, other):
        one.take(sums([0.3, 0.2], [8, 6]), 3)
    for name, array in ranking.arrays().items():
        np.testing.assert_array_equal(array, other.arrays()[name])
    assert other.stopped.tolist() == [3, 0]
