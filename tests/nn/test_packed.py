"""Networks that are trained together are those that are trained alone: METHODS of ParallelMLPs, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from packs import Plainly, alone, batches, members, outputs_of, own, part_of, population, train, write

from mpinn.array import cpu
from mpinn.array import ops as plain
from mpinn.array.typing import Array
from mpinn.nn.layer import Pass
from mpinn.nn.loss import CrossEntropy, SquaredError
from mpinn.nn.optimizer import SGD, Adam, Optimizer
from mpinn.nn.packed import LAYER, ROOM, Member, Packed, packed
from mpinn.nn.part import Part

KERNELS = pytest.mark.parametrize("ops", [plain, cpu], ids=["plain", "compiled"])
MANY = [(1,), (100,), (3,), (2, 5), (2, 4), (7, 7), (7, 7, 2)]
"""One to three hidden layers, of widths that differ."""
MIXED = ["relu", "gelu", "mish", "tanh", "elu", "selu", "tanh"]


def data(samples: int = 50, features: int = 30, outputs: int = 3) -> tuple[Array, Array]:
    rng = np.random.default_rng(samples)
    return rng.normal(size=(samples, features)), rng.integers(0, outputs, samples)


def close(one: Array, other: Array, tolerance: float) -> None:
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


class Noted:
    """The loss of every member of every panel, in the order in which they are asked for."""

    def __init__(self) -> None:
        self._found: list[Array] = []

    def members(self, y: Array, target: Array, context: Pass) -> tuple[Array, Array]:
        losses, dy = CrossEntropy().members(y, target, context)
        self._found.append(losses.copy())
        return losses, dy

    def of_members(self, batches: int) -> Array:
        """(M, batches), of panel after panel; in each batch the last panel came first."""
        panels = len(self._found) // batches
        each = [self._found[first : first + panels][::-1] for first in range(0, len(self._found), panels)]
        return np.array([np.concatenate(losses) for losses in each]).T


@KERNELS
@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [(SGD(momentum=0.0), 0.1), (SGD(weight_decay=1e-3, nesterov=True), 0.02), (Adam(), 0.01)],
    ids=["sgd", "momentum", "adam"],
)
def test_every_member_is_the_network_that_is_trained_alone(ops: Any, optimizer: Optimizer, rate: float) -> None:
    x, target = data()
    several = members([(1,), (2,), (3,)]) + [
        Member(100 + number, widths, activation, number)
        for number, (widths, activation) in enumerate(zip(MANY, MIXED, strict=True))
    ]
    together = population(several, (30,), slots=optimizer.slots, ops=ops)
    single = {member.number: alone(together, member, (30,), slots=optimizer.slots) for member in several}
    # 50 samples in batches of 32: the second one is ragged
    steps, loss, update = batches(x, target, 32, 100), Noted(), Plainly(optimizer, rate)
    summed = np.array(train(together, steps, update, loss))
    apart = {number: np.array(train(part, steps, update)) for number, part in single.items()}
    close(summed, sum(apart.values()), 1e-12)
    for member, found in zip(packed(several, 3).members, loss.of_members(len(steps)), strict=True):
        close(found, apart[member.number], 1e-12)
    for member in several:
        expected = single[member.number]
        found = alone(together, member, (30,))
        close(found.weights, expected.weights, 1e-12)
        assert np.abs(found.weights).max() > 0.01


@KERNELS
def test_one_member_is_an_ordinary_network(ops: Any) -> None:
    x, target = data()
    member = Member(0, (9, 4), "tanh")
    together = population([member], (30,), ops=ops)
    single = alone(together, member, (30,))
    close(outputs_of(together, x)[:, 0], outputs_of(single, x), 1e-14)
    steps = batches(x, target, 20, 5)
    update = Plainly(SGD(momentum=0.0), 0.1)
    close(np.array(train(together, steps, update)), np.array(train(single, steps, update)), 1e-13)


@KERNELS
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_bit_of_a_member_depends_on_another(ops: Any, bad: float) -> None:
    """A product with a matrix of zeros between the members would fail here: 0 * NaN is NaN."""
    x, target = data()
    several = members([(2,), (5,), (3, 3)])
    parts = [population(several, (30,), slots=("momentum",), ops=ops) for _ in range(2)]
    for array in own(parts[1], 4)["hidden1"].values():
        array.reshape(-1)[0] = bad
    with np.errstate(all="ignore"):
        for part in parts:
            train(part, batches(x, target, 20, 3), Plainly(SGD(), 0.1))
    assert not np.isfinite(own(parts[1], 4)["output"]["bias"]).all()
    for member in several:
        for vector in ("weights", "grads"):
            found = [own(part, member.number, getattr(part, vector)) for part in parts]
            bits = [[array.tobytes() for layer in tree.values() for array in layer.values()] for tree in found]
            assert (bits[0] == bits[1]) == (member.number != 4), (member, vector)


@KERNELS
@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(0.1), SquaredError()])
def test_the_gradient_is_that_of_the_sum_of_the_losses(ops: Any, loss: Any) -> None:
    x, target = data(13, 4)
    part = population(members([(1,), (4,), (3, 2)]), (4,), ops=ops)
    rng = np.random.default_rng(5)
    total = summed(part, x, target, loss)
    backward(part, x, target, loss)
    grads = part.grads.copy()
    assert np.isfinite(total)
    for entry in part.layout:
        for place in rng.choice(entry.size, min(entry.size, 8), replace=False) + entry.start:
            slope = difference(part, int(place), lambda: summed(part, x, target, loss))
            assert grads[place] == pytest.approx(slope, rel=1e-5, abs=1e-7), entry.name


def difference(part: Part, place: int, function: Callable[[], float]) -> float:
    before, values = part.weights[place], []
    for step in (1e-6, -1e-6):
        part.weights[place] = before + step
        values.append(function())
    part.weights[place] = before
    return (values[0] - values[1]) / 2e-6


def summed(part: Part, x: Array, target: Array, loss: Any) -> float:
    context = Pass(part.pool, part.ops)
    y, _ = part.network.forward(part.weight_views, {}, x, context)
    return float(loss.members(y, target, context)[0].sum())


def backward(part: Part, x: Array, target: Array, loss: Any, wants_dx: bool = False) -> Any:
    context = Pass(part.pool, part.ops, wants_dx=wants_dx)
    y, saved = part.network.forward(part.weight_views, {}, x, context)
    _, dy = loss.members(y, target, context)
    dx, finish = part.network.backward(part.weight_views, saved, dy, context)
    finish(part.grad_views)
    return dx


@KERNELS
def test_the_input_gradient_is_the_sum_over_the_members(ops: Any) -> None:
    x, target = data(6, 4)
    part = population(members([(4,), (3, 2)], ["tanh", "gelu"]), (4,), ops=ops)
    dx = backward(part, x, target, CrossEntropy(), wants_dx=True)
    step = np.zeros_like(x)
    step[2, 1] = 1e-6
    slope = (summed(part, x + step, target, CrossEntropy()) - summed(part, x - step, target, CrossEntropy())) / 2e-6
    assert dx[2, 1] == pytest.approx(slope, rel=1e-6)


def test_an_update_by_the_mean_over_the_members_would_be_another_one() -> None:
    """The rate of a member does not shrink with the number of members."""
    x, target = data()
    few, more = (population(members([(4,)], names), (30,)) for names in (["relu"], ["relu", "tanh", "elu"]))
    for part in (few, more):
        train(part, batches(x, target, 50, 1), Plainly(SGD(momentum=0.0), 0.1))
    close(own(few, 0)["hidden1"]["weight"], own(more, 0)["hidden1"]["weight"], 1e-14)


@KERNELS
def test_the_order_of_the_members_permutes_the_results(ops: Any) -> None:
    x, target = data()
    several = members([(2,), (40,), (3, 3)])
    ends = []
    for order in (several, several[::-1], several[5:] + several[:5]):
        numbered = [Member(n, m.widths, m.activation, m.seed) for n, m in enumerate(order)]
        part = population(numbered, (30,), ops=ops)
        train(part, batches(x, target, 20, 3), Plainly(SGD(momentum=0.0), 0.1))
        ends.append({m.seed: own(part, m.number)["output"]["weight"].copy() for m in numbered})
    for seed in ends[0]:
        close(ends[0][seed], ends[1][seed], 1e-12)
        close(ends[0][seed], ends[2][seed], 1e-12)


@KERNELS
def test_a_panel_computes_the_same_wherever_it_is(ops: Any) -> None:
    """Members are dealt to ranks in whole panels: the bits are those of the whole population."""
    x, target = data()
    several = members([(width,) for width in range(1, 101)])
    whole = packed(several, 3)
    assert len(whole.panels) > 20
    parts = [part_of(whole, (30,), ops=ops), *(part_of(whole.shard(n, 3, (30,)), (30,), ops=ops) for n in range(3))]
    for part in parts:
        train(part, batches(x, target, 17, 1), Plainly(SGD(momentum=0.0), 0.1))
    owners = whole.dealt(3, (30,))
    assert sorted(owners) == list(range(1000))
    for member in several:
        shard = parts[1 + owners[member.number]]
        for name, arrays in own(shard, member.number).items():
            for leaf, array in arrays.items():
                assert array.tobytes() == own(parts[0], member.number)[name][leaf].tobytes()


def test_shards_have_about_the_same_work_and_whole_panels() -> None:
    whole = packed(members([(width,) for width in range(1, 101)]), 3)
    for shards in (2, 3, 4):
        owners = whole.dealt(shards, (30,))
        costs = [sum(panel.cost(30) for _, panel in whole.shard(n, shards, (30,)).panels) for n in range(shards)]
        assert sum(costs) == sum(panel.cost(30) for _, panel in whole.panels)
        assert max(costs) < 1.1 * sum(costs) / shards
        for _, panel in whole.panels:
            assert len({owners[member.number] for member in panel.members}) == 1


def test_small_panels_go_where_there_is_least_work() -> None:
    """Three panels of about 1,700 units and three of five, on two shards: not three and three."""
    several = members([(width,) for width in range(1, 101)], ["relu"])
    small = [Member(200 + number, (5,), name, number) for number, name in enumerate(["tanh", "elu", "selu"])]
    owners = packed([*several, *small], 3).dealt(2, (30,))
    (shard,) = {owners[member.number] for member in small}
    units = [sum(number + 1 for number in range(100) if owners[number] == one) for one in (0, 1)]
    assert units[shard] < units[1 - shard]


def test_a_panel_has_one_depth_one_name_and_a_bounded_number_of_units() -> None:
    several = members([(1,), (900,), (800,), (5, 5)], ["relu", "tanh"])
    whole = packed(several, 3)
    assert sorted(member.number for member in whole.members) == list(range(len(several)))
    assert len({name for name, _ in whole.panels}) == len(whole.panels)
    for name, panel in whole.panels:
        assert name == f"panel{panel.members[0].number}"
        assert len({len(member.widths) for member in panel.members}) == 1
        assert len(panel.members) == 1 or panel.starts[0][-1] <= 1.5 * ROOM
        assert all(starts[-1] <= panel.room for starts in panel.starts)


def test_initial_weights_follow_the_members_own_fan_in_and_nothing_else() -> None:
    several = [
        Member(0, (4,), "relu", 7),
        Member(1, (900,), "relu", 7),
        Member(2, (4,), "tanh", 7),
        Member(3, (4,), "tanh", 8),
    ]
    part, other = population(several, (25,)), population(several[2:], (25,))
    bounds = {"hidden1": 1 / 5, "output": 1 / 2}
    for name, arrays in own(part, 0).items():
        for array in arrays.values():
            assert np.abs(array).max() <= bounds[name]
        assert np.abs(arrays["weight"]).max() > 0.7 * bounds[name]
    assert np.abs(own(part, 1)["output"]["weight"]).max() <= 1 / 30
    alike = [own(part, number)["hidden1"]["weight"] for number in (0, 2, 3)]
    np.testing.assert_array_equal(alike[0], alike[1])
    assert not np.array_equal(alike[1], alike[2])
    np.testing.assert_array_equal(own(other, 3)["output"]["bias"], own(part, 3)["output"]["bias"])


def test_arrays_of_members_tile_the_vector() -> None:
    """Every number belongs to one member, and a member's arrays are views of the vector."""
    several = members([(2,), (5, 3), (4, 4)])
    part = population(several, (6,))
    part.weights.fill(-1)
    for member in several:
        for arrays in own(part, member.number).values():
            for array in arrays.values():
                assert (array == -1).all()
                array[...] = member.number
    assert all((part.weights[entry.slice] >= 0).all() for entry in part.layout)


def test_a_single_network_takes_the_arrays_of_a_member() -> None:
    member = Member(0, (5, 3), "selu")
    part = population([member, Member(1, (2,), "relu")], (2, 3, 1))
    single = alone(part, member, (2, 3, 1))
    x = np.random.default_rng(1).normal(size=(7, 2, 3, 1))
    pack = part.chain.layers[0][1]
    assert isinstance(pack, Packed)
    place = [m.number for m in pack.members].index(0)
    close(outputs_of(part, x)[:, place], outputs_of(single, x), 1e-14)
    before = single.weights.copy()
    write(single.weight_views, own(part, 0))
    np.testing.assert_array_equal(single.weights, before)
    assert part.chain.names == (LAYER,)
