"""What replicas exchange at a meeting, and how running statistics are merged."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import Problem
from packs import own, population

from mpinn.consensus.packing import Packing
from mpinn.consensus.statistics import extra_size, from_terms, merge_layer, to_terms
from mpinn.models.mlp import MLP
from mpinn.nn.layout import Layout
from mpinn.nn.optimizer import Adam
from mpinn.nn.packed import Member
from mpinn.nn.part import Part

MOVED = np.zeros(1, bool)
"""No group goes all the way."""
NORMED = Problem(model=MLP(widths=(9, 7), norm="batch"), optimizer=Adam())


def trained(problem: Problem, seed: int) -> Part:
    """A part with arbitrary contents and zero padding."""
    rng, part = np.random.default_rng(seed), problem.part()
    for layout, vector in [(part.layout, v) for v in (part.weights, *part.slots.values())]:
        for entry in layout:
            vector[entry.slice] = rng.normal(size=entry.size)
    for entry in part.state_layout:
        part.state[entry.slice] = rng.uniform(0.5, 2, entry.size)
    return part


def meet(parts: list[Part], weights: list[float], slots: bool = True) -> list[Packing]:
    packings = [Packing(part, slots) for part in parts]
    for packing, weight in zip(packings, weights, strict=True):
        packing.share(np.array([weight]))
    total = sum(packing.buffer for packing in packings)
    for packing in packings:
        packing.buffer[:] = total
        packing.merged()
    return packings


def test_a_share_of_one_comes_back() -> None:
    part = trained(NORMED, 1)
    before = [vector.copy() for vector in (part.weights, part.state, *part.slots.values())]
    (packing,) = meet([part], [1.0])
    for vector in (part.weights, part.state, *part.slots.values()):
        vector.fill(7)
    packing.move(1.0, MOVED)
    after = (part.weights, part.state, *part.slots.values())
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True))


def test_a_weight_of_zero_masks() -> None:
    good, bad = trained(NORMED, 1), trained(NORMED, 2)
    for vector in (bad.weights, bad.state, *bad.slots.values()):
        vector.fill(np.nan)
    assert not Packing(bad, slots=False).finite()
    assert Packing(good, slots=True).finite()
    packing = meet([good, bad], [1.0, 0.0])[1]
    packing.move(1.0, MOVED)
    assert bad.weights.tobytes() == good.weights.tobytes()
    assert bad.state.tobytes() == good.state.tobytes()


def test_slots_count_only_if_they_are_averaged() -> None:
    part = trained(NORMED, 1)
    part.slots["second_moment"][0] = np.inf
    assert Packing(part, slots=False).finite()
    assert not Packing(part, slots=True).finite()


@pytest.mark.parametrize("wild", [(0, 1), (1,)])
def test_members_that_are_forgotten_leave_the_count_of_steps_as_on_any_shard(wild: tuple[int, ...]) -> None:
    part = population([Member(0, (3,), "relu"), Member(1, (4,), "relu")], (6,), 3, slots=("momentum",))
    part.slots["momentum"].fill(1)
    part.counters.fill(5)
    Packing(part, slots=False).forget(part, np.isin([0, 1], wild))
    for number in (0, 1):
        kept = [array for layer in own(part, number, part.slots["momentum"]).values() for array in layer.values()]
        assert all((array == (number not in wild)).all() for array in kept)
    assert part.counters[0] == 5


def test_a_network_that_is_forgotten_counts_anew() -> None:
    part = trained(NORMED, 1)
    part.counters.fill(5)
    Packing(part, slots=False).forget(part, ~MOVED)
    assert not any(slot.any() for slot in part.slots.values())
    assert part.counters[0] == 0


@pytest.mark.parametrize("mix", [0.25, 1.0])
def test_moves_by_the_mix(mix: float) -> None:
    parts = [trained(NORMED, seed) for seed in (1, 2)]
    own = [part.weights.copy() for part in parts]
    packings = meet(parts, [0.75, 0.25])
    for packing in packings:
        packing.move(mix, MOVED)
    mean = 0.75 * own[0] + 0.25 * own[1]
    for part, before in zip(parts, own, strict=True):
        np.testing.assert_allclose(part.weights, before + mix * (mean - before), rtol=1e-14, atol=1e-15)


def test_a_model_without_state_sends_its_weights_alone() -> None:
    part = trained(Problem(), 1)
    packing = Packing(part, slots=False)
    assert packing.buffer.size == part.weights.size
    assert packing.statistics.size == packing.state.size == 0
    packing = meet([part, trained(Problem(), 2)], [0.5, 0.5])[0]
    assert packing.buffer.size == 2 * part.weights.size


def test_statistics_alone_can_be_summed() -> None:
    parts = [trained(NORMED, seed) for seed in (1, 2)]
    whole = meet(parts, [0.5, 0.5])[0].state.copy()
    packings = [Packing(part, slots=True) for part in parts]
    for packing in packings:
        packing.share(np.array([0.5]))
    packings[0].statistics[:] += packings[1].statistics
    packings[0].merged()
    assert packings[0].state.tobytes() == whole.tobytes()


LAYOUT = {"norm": {"mean": (5,), "variance": (5,)}, "other": {"count": (3,)}}


@given(
    replicas=st.integers(1, 40),
    offset=st.sampled_from([0.0, 1.0, -300.0, 3e4]),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 5),
)
def test_merged_in_one_message_as_from_a_file(replicas: int, offset: float, dtype: str, seed: int) -> None:
    layout, rng = Layout(LAYOUT, dtype), np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(replicas))
    states, extras = np.zeros((replicas, layout.size), dtype), np.zeros((replicas, extra_size(layout)), dtype)
    stacks = {"mean": [], "variance": []}
    for state in states:
        views = layout.views(state)
        views["norm"]["mean"][:] = offset + rng.normal(size=5)
        views["norm"]["variance"][:] = rng.uniform(0.5, 2, 5)
        views["other"]["count"][:] = rng.uniform(size=3)
        for name, stack in stacks.items():
            stack.append(views["norm"][name].copy())
    counts = weights @ np.array([layout.views(state)["other"]["count"] for state in states])
    wanted = merge_layer({name: np.array(stack) for name, stack in stacks.items()}, weights)
    for state, extra, weight in zip(states, extras, weights, strict=True):
        to_terms(layout, state, extra, weight)
    state, extra = states.sum(axis=0, dtype=dtype), extras.sum(axis=0, dtype=dtype)
    from_terms(layout, state, extra)
    views, eps = layout.views(state), np.finfo(dtype).eps
    # a sum of second moments in float32 would be wrong by offset^2 * 1e-7, which is 100 for the largest
    digits = 2**-33 if dtype == "float32" else 2**-48
    np.testing.assert_allclose(views["norm"]["mean"], wanted["mean"], rtol=2 * eps, atol=2 * eps)
    np.testing.assert_allclose(views["norm"]["variance"], wanted["variance"], rtol=1e1 * eps, atol=offset**2 * digits)
    np.testing.assert_allclose(views["other"]["count"], counts, rtol=replicas * eps)


def test_statistics_of_a_file_are_those_of_all_samples() -> None:
    data = np.random.default_rng(0).normal(size=(3, 100, 4)) + np.arange(3)[:, None, None]
    merged = merge_layer({"mean": data.mean(axis=1), "variance": data.var(axis=1)}, np.full(3, 1 / 3))
    pooled = data.reshape(-1, 4)
    np.testing.assert_allclose(merged["mean"], pooled.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(merged["variance"], pooled.var(axis=0), rtol=1e-13)
