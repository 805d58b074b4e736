from dataclasses import replace

import numpy as np
import pytest

from mpinn.bench import population
from mpinn.bench.farias import Arrays, Sums
from mpinn.schedules.members import population_of_part

SMALL = population.Work(1, 3, 5, 2, widest=4)


@pytest.mark.parametrize("outputs", [1, 2, 10])
def test_measures_every_program(outputs: int, capsys: pytest.CaptureFixture[str]) -> None:
    rows = population.run((replace(SMALL, outputs=outputs),), rounds=2, sample=0.0)
    by_name = {row.program: row for row in rows}
    assert {population.OURS, population.LOOP, population.NUMPY, population.PRODUCTS, population.COPY} <= {*by_name}
    assert all(row.seconds is not None and row.seconds.median > 0 for row in rows)
    # the same work is done: each gradient is that of float64, and is not zero
    errors = {name: row.error for name, row in by_name.items() if row.error is not None}
    assert {population.OURS, population.NUMPY} <= {*errors}
    assert all(1e-9 < error < 1e-5 for error in errors.values())
    assert by_name[population.LOOP].measured == 4
    population.print_rows(rows)
    assert "from 4 members" in capsys.readouterr().out


def test_what_needs_too_much_memory_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(population, "MOST", 100)
    rows = population.run((SMALL,), rounds=2, sample=0.0)
    row = next(row for row in rows if row.program == population.NUMPY)
    assert row.seconds is None
    population.print_rows(rows)
    assert f"{population.NUMPY:32}  left out" in capsys.readouterr().out


def test_the_sample_has_every_width_and_activations_take_turns() -> None:
    for repetitions in (1, 10):
        sample = population.Work(repetitions, 10, 32, 2).sample
        assert sorted(member.widths[0] for member in sample) == [*range(1, 101)]
        assert np.unique([member.activation for member in sample], return_counts=True)[1].tolist() == [10] * 10


def test_seconds_of_a_sample_stand_for_the_population(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {population.OURS: 1.0, population.LOOP: 2.0, population.PRODUCTS: 1.0, population.COPY: 1.0}
    monkeypatch.setattr(
        population, "alternate", lambda steps, **_: {name: np.full(3, taken.get(name, 1.0)) for name in steps}
    )
    rows = {row.program: row for row in population.run((SMALL,))}
    # 4 of 40 members, each for some steps, in 2 seconds
    ratio = rows[population.LOOP].ratio
    assert ratio is not None
    assert ratio.median == pytest.approx(2.0 * 10 / population.STEPS)
    # 2 * 100 units * 5 samples * (2 * 3 features + 3 * 2 outputs); 100 * (3 + 1 + 2) + 40 * 2 weights, there and back
    floors = [rows[name].seconds for name in (population.PRODUCTS, population.COPY)]
    assert [floor.median for floor in floors if floor] == pytest.approx(
        [12_000 / (2 * population.LARGE**3), 680 * 4 / population.COPIED]
    )


def test_members_are_in_the_order_of_the_authors() -> None:
    work = population.Work(2, 3, 5, 2, widest=3)
    heads = [(member.activation, member.seed, member.widths[0]) for member in work.members]
    assert heads[:7] == [("identity", seed, width) for seed in (0, 1) for width in (1, 2, 3)] + [("sigmoid", 0, 1)]
    part = population.part_of(work.model)
    arrays = Arrays.of(part, part.weights)
    assert arrays.weight.shape == (120, 3)
    # the fifth member is the second repetition of width 2
    found = [
        (name, panel, place)
        for name, panel in population_of_part(part).panels
        for place, member in enumerate(panel.members)
        if member.number == 4
    ]
    ((name, panel, place),) = found
    own = panel.own(part.weight_views["population"][name], place)
    np.testing.assert_array_equal(arrays.weight[7:9], own["hidden1"]["weight"])
    np.testing.assert_array_equal(arrays.head_bias[4], own["output"]["bias"])


def test_the_formulation_learns() -> None:
    work = population.Work(1, 3, 5, 2, widest=2)
    part, batch = population.part_of(work.model), work.data()
    start = Arrays.of(part, part.weights)
    own = start.copy()
    sums = Sums(own, work.members, batch.x, batch.target)
    sums.step()
    assert np.linalg.norm(own.vector - start.vector) == pytest.approx(
        population.RATE / 5 * np.linalg.norm(sums.grads.vector), rel=1e-2
    )
