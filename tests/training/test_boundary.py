"""Copies of a rank's state at the last boundaries."""

import numpy as np
import pytest

from mpinn.nn.layout import Layout
from mpinn.storage.schema import VectorSpec
from mpinn.training.boundary import Boundaries, Standing


def standing(step: int) -> Standing:
    return Standing(step, 10 * step, 0.5 * step, None, 0, 0, 0.0)


def spec(kind: str, shapes: dict[str, tuple[int, ...]]) -> VectorSpec:
    layout = Layout(shapes, np.float64)
    return VectorSpec(kind, layout, np.zeros(layout.size))


def test_the_last_two_are_kept_as_they_were() -> None:
    weights = spec("model/network", {"a": (3,), "b": (2, 2)})
    boundaries = Boundaries([weights], (0, 1))
    for step in range(4):
        weights.vector[:] = step
        boundaries.keep(standing(step))
        assert boundaries.latest == step
    weights.vector[:] = 9
    boundaries.keep(standing(3))  # a boundary at which it saves too
    for step in (2, 3):
        boundary = boundaries.at(step)
        assert boundary.standing == standing(step)
        boundary.fill([weights], (0, 1))
        assert (weights.vector == step).all()
    with pytest.raises(StopIteration):
        boundaries.at(1)


def test_shares_of_replicas_that_are_gone_are_dealt_to_the_others() -> None:
    shapes = {"samples": (1,), "agreed": (1,)}
    before = spec("consensus/averaging", {"merge": (4,), **shapes})
    views = before.layout.views(before.vector)
    views["merge"][:], views["samples"][:], views["agreed"][:] = [0.1, 0.2, 0.3, 0.4], 7, 1
    boundaries = Boundaries([before], (0, 2, 5, 6))
    boundaries.keep(standing(1))
    after = spec("consensus/averaging", {"merge": (2,), **shapes})
    boundaries.at(1).fill([after], (2, 6))
    left = after.layout.views(after.vector)
    np.testing.assert_allclose(left["merge"], [1 / 3, 2 / 3], rtol=1e-15)
    assert (left["samples"], left["agreed"]) == (7, 1)


def test_replicas_without_a_share_get_equal_ones() -> None:
    before = spec("consensus/averaging", {"merge": (3,)})
    before.vector[:3] = 0, 1, 0
    boundaries = Boundaries([before], (0, 1, 2))
    boundaries.keep(standing(1))
    after = spec("consensus/averaging", {"merge": (2,)})
    boundaries.at(1).fill([after], (0, 2))
    assert after.vector[:2].tolist() == [0.5, 0.5]


def test_what_a_vector_held_between_its_parameters_is_given_back_too() -> None:
    start = spec("consensus/outer/start/network", {"a": (3,)})
    boundaries = Boundaries([start], (0, 1))
    boundaries.keep(standing(1))
    fresh = spec("consensus/outer/start/network", {"a": (3,)})
    fresh.vector[:] = np.nan  # as an outer optimizer makes it
    boundaries.at(1).fill([fresh], (0,))
    assert not fresh.vector.any()
