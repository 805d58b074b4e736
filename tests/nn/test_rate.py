"""The course of the learning rate."""

from itertools import pairwise

import formulas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpinn.nn.rate import Decay, share


def course(decay: Decay, total: int = 100, warmup: int = 0, milestones: tuple[int, ...] = (), floor: float = 0.0):
    return [share(decay, step, total, warmup, milestones, 0.1, floor) for step in range(total + 1)]


def test_warm_up_is_a_line_that_reaches_the_full_rate() -> None:
    for decay in ("constant", "step", "cosine"):
        assert course(decay, warmup=4)[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
        assert course(decay)[0] == 1.0


def test_cosine_at_exact_points() -> None:
    values = course("cosine", total=120, warmup=20, floor=0.1)
    assert values[20] == 1.0
    assert values[70] == pytest.approx(0.55, abs=1e-15)
    assert values[120] == pytest.approx(0.1, abs=1e-15)
    assert values[53] > 0.1 + 0.9 * 0.75 > values[54]
    assert share("cosine", 1000, 120, 20, (), 0.1, 0.1) == values[120]


def test_steps_fall_at_their_milestones() -> None:
    values = course("step", milestones=(30, 60))
    assert [values[step] for step in (0, 29, 30, 59, 60, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01], rel=1e-15)


def test_constant_stays() -> None:
    assert set(course("constant", warmup=3)[3:]) == {1.0}


def test_a_run_that_is_all_warm_up() -> None:
    assert course("cosine", total=3, warmup=5) == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6])


@given(
    decay=st.sampled_from(["constant", "step", "cosine"]),
    total=st.integers(1, 60),
    warmup=st.integers(0, 70),
    floor=st.floats(0, 0.9),
)
def test_rises_then_falls_like_the_oracle(decay: Decay, total: int, warmup: int, floor: float) -> None:
    values = course(decay, total, warmup, (total // 2,), floor)[:total]
    assert all(a < b for a, b in pairwise(values[:warmup]))
    assert all(a >= b for a, b in pairwise(values[warmup:]))
    assert all(0 <= value <= 1 for value in values)
    wanted = [formulas.learning_rate(decay, s, total, warmup, (total // 2,), 0.1, floor) for s in range(total)]
    assert values == pytest.approx(wanted, abs=1e-14)
