"""A whole population at once, with the plain kernels, beside panel after panel."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from packs import Plainly, batches, members, own, population, train

from mpinn.array import ops as plain
from mpinn.nn import fleet
from mpinn.nn.fleet import fleets
from mpinn.nn.layer import Pass
from mpinn.nn.loss import CrossEntropy, SquaredError
from mpinn.nn.optimizer import SGD
from mpinn.schedules.members import Members, population_of_part

SINGLE = np.dtype(np.float32)
TOGETHER: Any = SimpleNamespace(**{name: getattr(plain, name) for name in plain.__all__ if name != "TOGETHER"})
TOGETHER.LIBRARY, TOGETHER.TOGETHER = np, True
SEVERAL = members([(1,), (9,), (40,), (3, 7), (4, 2), (5, 3, 6)])


def samples(count: int = 50) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, 5)), rng.integers(0, 3, count)


@pytest.mark.parametrize("most", [1, 100 * 8 * 50, fleet.MOST], ids=["many fleets", "some fleets", "one fleet"])
@pytest.mark.parametrize("loss", [CrossEntropy(0.1), SquaredError()], ids=repr)
def test_all_at_once_is_panel_by_panel(most: int, loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "MOST", most)
    steps = batches(*samples(), 16, 2)
    parts = [population(SEVERAL, (5,), slots=("momentum",), ops=ops) for ops in (plain, TOGETHER)]
    losses = [train(part, steps, Plainly(SGD(), 0.05), loss) for part in parts]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-12)
    for vector in ("weights", "grads"):
        one, other = (getattr(part, vector) for part in parts)
        np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-13)
        assert np.abs(one).max() > 0.01
    sums = [Members(part, loss, 0).measure(steps) for part in parts]
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-12)


def test_each_fleet_is_of_panels_that_are_wanted() -> None:
    part = population(SEVERAL, (5,))
    pack = population_of_part(part)
    names = [name for name, _ in pack.panels]
    everyone = fleets(pack, part.layout, plain, names, 100)
    assert len(everyone) > 2
    assert [place for one in everyone for place in one.places] == list(range(len(SEVERAL)))
    assert sum(one.units for one in everyone) == sum(sum(member.widths) for member in SEVERAL)
    some = fleets(pack, part.layout, plain, names[1::2], 100)
    wanted = [n for name, panel in pack.panels if name in names[1::2] for n in (m.number for m in panel.members)]
    assert [pack.members[place].number for one in some for place in one.places] == wanted
    assert not fleets(pack, part.layout, plain, [], 100)


def test_panels_in_which_nobody_learns_are_left_out() -> None:
    part = population(SEVERAL, (5,), ops=TOGETHER)
    schedule = Members(part, CrossEntropy(), 0)
    names = [name for name, _ in schedule.population.panels]
    (batch,) = batches(*samples(), 50, 1)
    update = Plainly(SGD(momentum=0.0), 1e-30)
    before = float(schedule.step(batch, update)[0].loss)
    apart = schedule.measure([batch], [names[0]])[:, 0].sum()
    idle = own(part, schedule.population.panels[0][1].members[0].number, part.grads)
    idle["output"]["bias"].fill(7)
    schedule.idle = frozenset({names[0]})
    after = float(schedule.step(batch, update)[0].loss)
    assert after == pytest.approx(before - apart)
    assert (idle["output"]["bias"] == 0).all()
    schedule.idle = frozenset(names)
    assert float(schedule.step(batch, update)[0].loss) == 0


@pytest.mark.parametrize("most", [1, 30, 10**9])
def test_fleets_share_buffers_that_are_as_large_as_the_largest_needs(most: int) -> None:
    """So one is given back for the next: a pool has an array for each shape."""
    samples = 3000
    part = population(SEVERAL, (5,), ops=TOGETHER)
    pack = population_of_part(part)
    found = fleets(pack, part.layout, plain, [name for name, _ in pack.panels], most)
    room, seats = max(one.units for one in found), max(one.members for one in found)
    assert (len(found) > 1) == (most < 10**9)
    for one in found:
        y, units = one.forward(part.weights, np.zeros((samples, 5)), Pass(part.pool, TOGETHER))
        assert (y.shape, units.shape) == ((samples, one.members, 3), (one.units, samples))
        assert units.base.shape == (room, samples)
        assert y.base.shape == (seats, 3, samples)


def test_the_larger_a_batch_the_smaller_the_fleets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their buffers have as many bytes."""
    assert fleet.units_of(256, SINGLE) * 256 * 4 == fleet.MOST == 2 * 2**30
    assert fleet.units_of(4096, SINGLE) * 4096 * 4 == fleet.MOST
    monkeypatch.setattr(fleet, "MOST", 100 * 8 * 10)
    schedule = Members(population(SEVERAL, (5,), ops=TOGETHER), CrossEntropy(), 0)
    few, many = (schedule._fleets_of(schedule._names(), samples) for samples in (1, 100))
    assert len(few) < len(many)
    assert sum(one.units for one in few) == sum(one.units for one in many)
