"""The schedule of a population: panel after panel does what the whole network does at once."""

import numpy as np
import pytest
from packs import Plainly, batches, members, own, population, train

from mpinn.array import cpu
from mpinn.nn.layer import Pass
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.optimizer import SGD
from mpinn.nn.packed import LAYER
from mpinn.schedules.members import Members, population_of_part

SEVERAL = members([(3,), (8,), (4, 2)])


def samples() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(40, 5)), rng.integers(0, 3, 40)


def test_panels_one_by_one_give_the_bits_of_the_whole_network() -> None:
    one, other = (population(SEVERAL, (5,), ops=cpu) for _ in range(2))
    update, steps = Plainly(SGD(momentum=0.0), 0.1), batches(*samples(), 16, 2)
    train(one, steps, update)
    for batch in steps:
        context = Pass(other.pool, other.ops)
        y, saved = other.network.forward(other.weight_views, {}, batch.x, context)
        rows = np.ascontiguousarray(y.transpose(1, 2, 0)).transpose(2, 0, 1)
        _, dy = CrossEntropy().members(rows, batch.target, context)
        other.network.backward(other.weight_views, saved, dy, context)[1](other.grad_views)
        update(other, batch)
    np.testing.assert_array_equal(one.weights, other.weights)


def test_the_loss_is_the_mean_over_the_members_that_are_finite() -> None:
    part = population(SEVERAL, (5,))
    schedule = Members(part, CrossEntropy(), 0, share=1 / len(SEVERAL))
    (batch,) = batches(*samples(), 40, 1)
    update = Plainly(SGD(momentum=0.0), 1e-30)
    (before,) = schedule.step(batch, update)
    sums = schedule.measure([batch])
    assert float(before.loss) == pytest.approx(sums[:, 0].sum() / len(SEVERAL))
    own(part, 4)["output"]["bias"].fill(np.nan)
    with np.errstate(all="ignore"):
        (after,) = schedule.step(batch, update)
    numbers = [member.number for member in population_of_part(part).members]
    without = sums[:, 0].sum() - sums[numbers.index(4), 0]
    assert float(after.loss) == pytest.approx(without / len(SEVERAL))


def test_a_rank_without_samples_takes_part_in_the_step() -> None:
    part = population(SEVERAL, (5,))
    part.grads.fill(7)
    seen = []
    empty = batches(np.empty((0, 5)), np.empty(0, np.int64), 4, 1)
    assert not empty
    (batch,) = batches(*samples(), 40, 1)
    nobody = type(batch)(0, 0, batch.x[:0], batch.target[:0], 0, 40, (0, 1), batch.rows)

    class Seen(Plainly):
        def ready(self, part, span) -> None:  # type: ignore[no-untyped-def]
            seen.append((span.start, span.stop))

    assert not Members(part, CrossEntropy(), 0).step(nobody, Seen(SGD(momentum=0.0), 0.1))
    assert seen == [(0, part.layout.size)]
    assert not part.grads.any()


@pytest.mark.parametrize("idle", [(), (0,), (1,), (19,), tuple(range(20))])
def test_the_gradient_of_each_panel_is_ready_before_the_next_one_is_computed(idle: tuple[int, ...]) -> None:
    part = population(SEVERAL, (5,), ops=cpu)
    schedule = Members(part, CrossEntropy(), 0)
    names = [name for name, _ in schedule.population.panels]
    assert len(names) == 20
    schedule.idle = frozenset(names[place] for place in idle)
    (batch,) = batches(*samples(), 40, 1)
    seen: list[slice] = []
    early: list[np.ndarray] = []

    class Seen(Plainly):
        def ready(self, part, span) -> None:  # type: ignore[no-untyped-def]
            seen.append(span)
            early.append(part.grads[span].copy())

    part.grads.fill(0)
    schedule.step(batch, Seen(SGD(momentum=0.0), 0.0))
    assert [span.stop for span in seen] == [part.layout.size, *(span.start for span in seen[:-1])]
    assert seen[-1].start == 0
    assert len(seen) == 20 - len(idle) + (0 in idle)
    for span, gradient in zip(seen, early, strict=True):
        np.testing.assert_array_equal(part.grads[span], gradient)


def test_panels_in_which_nobody_learns_are_not_computed() -> None:
    part = population(SEVERAL, (5,))
    schedule = Members(part, CrossEntropy(), 0)
    name, panel = schedule.population.panels[0]
    schedule.idle = frozenset({name})
    (batch,) = batches(*samples(), 40, 1)
    own(part, panel.members[0].number)["output"]["bias"].fill(np.nan)
    part.grads.fill(0)
    schedule.step(batch, Plainly(SGD(momentum=0.0), 0.0))
    grads = part.layout.views(part.grads)[LAYER]
    assert not any(array.any() for layer in grads[name].values() for array in layer.values())
    others = [grads[other] for other, _ in schedule.population.panels[1:]]
    assert all(array.any() for tree in others for layer in tree.values() for array in layer.values())


def test_measures_every_member_or_some_panels() -> None:
    part = population(SEVERAL, (5,))
    schedule = Members(part, CrossEntropy(), 0)
    steps = batches(*samples(), 16, 1)
    sums = schedule.measure(steps)
    x, target = samples()
    y = part.network.forward(part.weight_views, {}, x, Pass(training=False))[0]
    right = (y.argmax(axis=2) == target[:, None]).sum(axis=0)
    np.testing.assert_array_equal(sums[:, 1], right)
    assert (sums[:, 2] == 40).all()
    name, panel = schedule.population.panels[1]
    some = schedule.measure(steps, [name])
    place = len(schedule.population.panels[0][1].members)
    rows = slice(place, place + len(panel.members))
    np.testing.assert_array_equal(some[rows], sums[rows])
    assert np.count_nonzero(some[:, 2]) == len(panel.members)


def test_gradients_of_idle_panels_are_zero_so_that_no_sum_makes_them_grow() -> None:
    part = population(members([(3,), (6,), (4, 2)], ["relu"]), (5,), ops=cpu)
    schedule = Members(part, CrossEntropy(), 0)
    part.grads.fill(1)
    name, *others = (name for name, _ in schedule.population.panels)
    schedule.idle = frozenset([name])
    views = part.grad_views[LAYER]
    assert not any(array.any() for values in views[name].values() for array in values.values())
    assert all(array.all() for other in others for values in views[other].values() for array in values.values())
