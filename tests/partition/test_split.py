"""Partitions: the best one against every other, explicit ones, and models that are taken apart and put together."""

from dataclasses import replace
from itertools import combinations, pairwise
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpinn.errors import InputError
from mpinn.models.cnn import CNN
from mpinn.models.mlp import MLP
from mpinn.models.resnet import ResNet
from mpinn.models.vgg import VGG
from mpinn.nn.layer import Pass
from mpinn.nn.network import Network
from mpinn.nn.part import build_part
from mpinn.partition.profile import Cost, estimate, units
from mpinn.partition.split import Demand, Partition, merge, parse, partition, split, stage_bytes

F4 = np.dtype("f4")
SHAPE = (32, 32, 3)
MODELS = {
    "resnet": ResNet().build(SHAPE, 10),
    "vgg": VGG().build(SHAPE, 10),
    "mlp": MLP(widths=(11, 12, 13), norm="batch", dropout=0.2).build((5, 4), 10),
    "cnn": CNN(channels=(3, 4), widths=(6,), dropout=0.3).build((8, 8, 1), 10),
}
COSTS = {id(model): estimate(model, 4, F4) for model in MODELS.values()}
every = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
free = {"bandwidth": inf, "latency": 0.0}


def chain(*rows: tuple[float, ...]) -> list[Cost]:
    """Units of (forward, backward, output bytes, kept bytes, parameter bytes), one after the other."""
    sizes = [8, *(row[2] for row in rows)]
    return [
        Cost(f"unit{number}", 1, row[0], row[1], sizes[number], row[2], row[3], row[4])
        for number, row in enumerate(rows)
    ]


def random_costs(rng, count, top=9):
    return chain(*(tuple(map(int, rng.integers(1, top, 5))) for _ in range(count)))


def bottleneck(costs, cuts, bandwidth, latency, in_flight):
    """The largest time of a stage, term by term."""
    stages, times = len(cuts) - 1, []
    for number, (start, stop) in enumerate(pairwise(cuts), 1):
        demand = in_flight(number, stages)
        time = sum(demand.forwards * cost.forward + cost.backward for cost in costs[start:stop])
        time += latency + costs[start - 1].output_bytes / bandwidth if start else 0
        time += latency + costs[stop - 1].output_bytes / bandwidth if stop < len(costs) else 0
        times.append(time)
    return max(times)


def crossing(costs, cuts):
    return sum(costs[cut - 1].output_bytes for cut in cuts[1:-1])


def by_trying_all(costs, stages, bandwidth, latency, memory, slots, in_flight):
    """(bottleneck, bytes across cuts) of the best partition, or None."""
    found = []
    for inner in combinations(range(1, len(costs)), stages - 1):
        cuts = (0, *inner, len(costs))
        held = [
            stage_bytes(costs[start:stop], in_flight(number, stages), slots)
            for number, (start, stop) in enumerate(pairwise(cuts), 1)
        ]
        if memory is None or max(held) <= memory:
            found.append((bottleneck(costs, cuts, bandwidth, latency, in_flight), crossing(costs, cuts)))
    return min(found, default=None)


def fdg(stage, stages):
    return Demand(2 * (stages - stage) + 1, weights=2 * (stages - stage))


def replayed(stage, stages):
    return Demand(1, inputs=stages - stage, forwards=2 if stage < stages else 1)


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 12),
    stages=st.integers(1, 4),
    top=st.sampled_from([2, 3, 9, 1000]),
    link=st.sampled_from([(inf, 0.0), (1.0, 0.0), (0.5, 2.0), (8.0, 1.0)]),
    tight=st.sampled_from([None, 0.5, 0.8, 1.1]),
    in_flight=st.sampled_from([lambda stage, stages: Demand(), fdg, replayed]),
)
@settings(max_examples=200, deadline=None)
def test_no_partition_is_better(seed, count, stages, top, link, tight, in_flight):
    stages = min(stages, count)
    costs = random_costs(np.random.default_rng(seed), count, top)
    options = {"bandwidth": link[0], "latency": link[1], "slots": 1, "in_flight": in_flight}
    options["memory"] = None if tight is None else tight * stage_bytes(costs, Demand(2), 1) / stages
    best = by_trying_all(costs, stages, **options)
    if best is None:
        with pytest.raises(InputError, match=r"^grid\.stages: no partition"):
            partition(costs, stages, **options)
    else:
        cuts = partition(costs, stages, **options).bounds
        assert (bottleneck(costs, cuts, *link, in_flight), crossing(costs, cuts)) == best


def test_of_equal_bottlenecks_the_one_with_fewer_bytes_counts():
    rows = [(4, 4, 9, 0, 0), (1, 1, 7, 0, 0), (1, 1, 2, 0, 0), (4, 4, 5, 0, 0)]
    assert partition(chain(*rows), 2, **free).bounds == (0, 2, 4)
    rows[0] = (3, 3, 1, 0, 0)
    assert partition(chain(*rows), 2, **free).bounds == (0, 3, 4)
    # A prefix with a worse bottleneck of its own is right if the rest is worse still.
    rows = [(2, 0, 9, 0, 0), (1, 0, 1, 0, 0), (1, 0, 4, 0, 0), (5, 0, 0, 0, 0)]
    assert partition(chain(*rows), 3, **free).bounds == (0, 2, 3, 4)


def test_messages_count():
    rows = [(3, 3, 60, 0, 0), (1, 1, 1, 0, 0), (3, 3, 5, 0, 0), (3, 3, 9, 0, 0)]
    assert partition(chain(*rows), 2, **free).bounds == (0, 2, 4)
    rows[1] = (1, 1, 40, 0, 0)
    assert partition(chain(*rows), 2, bandwidth=10, latency=0).bounds == (0, 3, 4)


@pytest.mark.parametrize("seed", range(20))
def test_more_stages_are_never_slower_where_messages_are_free(seed):
    costs = random_costs(np.random.default_rng(seed), 12, 50)
    found = [
        bottleneck(costs, partition(costs, stages, **free).bounds, inf, 0, lambda stage, stages: Demand())
        for stages in range(1, 13)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


@pytest.mark.parametrize("factor", [1e-7, 1 / 3, 3.7, 1e6])
@pytest.mark.parametrize("seed", range(10))
def test_the_unit_of_time_does_not_matter(seed, factor):
    costs = random_costs(np.random.default_rng(seed), 12, 4)
    scaled = [replace(cost, forward=cost.forward * factor, backward=cost.backward * factor) for cost in costs]
    for stages in (2, 3, 4):
        expected = partition(costs, stages, bandwidth=3.0, latency=0.1)
        assert partition(scaled, stages, bandwidth=3.0 / factor, latency=0.1 * factor) == expected


def test_a_stage_must_fit_into_memory():
    costs = chain((1, 1, 10, 100, 50), (1, 1, 10, 100, 50), (1, 1, 10, 10, 50), (1, 1, 10, 10, 50))
    assert partition(costs, 2, **free).bounds == (0, 2, 4)
    first, rest = stage_bytes(costs[:1], fdg(1, 2), 1), stage_bytes(costs[1:], fdg(2, 2), 1)
    assert (first, rest) == ((3 + 2) * 50 + 3 * (100 + 8), 3 * 150 + (120 + 10))
    tight = {"memory": max(first, rest), "slots": 1, "in_flight": fdg, **free}
    assert partition(costs, 2, **tight).bounds == (0, 1, 4)
    with pytest.raises(
        InputError, match=r"grid\.stages: no partition into 2 .* 580 bytes .* needs 580 at least"
    ) as told:
        partition(costs, 2, **{**tight, "memory": 579.9})
    assert told.value.path == "grid.stages"


def test_more_stages_than_units_are_refused():
    costs = chain(*[(1, 1, 1, 1, 1)] * 3)
    assert partition(costs, 3).stages == 3
    with pytest.raises(InputError, match=r"^grid\.stages: the model has 3 units .* at most 3, got 4$"):
        partition(costs, 4)


def test_bounds_are_layers():
    costs = [
        replace(cost, layers=layers) for cost, layers in zip(chain(*[(1, 1, 1, 1, 1)] * 3), (2, 1, 3), strict=True)
    ]
    found = partition(costs, 3)
    assert found == Partition((0, 2, 3, 6))
    assert found.spans == (slice(0, 2), slice(2, 3), slice(3, 6))
    assert found.stages == 3


@every
def test_no_cut_goes_through_a_unit(model):
    borders = {unit.start for unit in units(model)} | {len(model.network)}
    costs = COSTS[id(model)]
    for stages in range(1, len(costs) + 1):
        bounds = partition(costs, stages).bounds
        assert set(bounds) <= borders
        assert (bounds[0], bounds[-1], len(set(bounds))) == (0, len(model.network), stages + 1)
        assert bounds[-2] <= len(model.network) - model.head
        assert stages == 1 or bounds[1] >= model.stem


@every
def test_an_explicit_partition_is_the_one_that_is_meant(model):
    for stages in range(1, len(units(model)) + 1):
        found = partition(COSTS[id(model)], stages)
        assert parse(model, found.starts(model.network)) == found
        assert parse(model, found.bounds[1:-1]) == found


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        (["hiden2"], r"'hiden2' \(did you mean hidden2\?\): stages begin at hidden2, hidden3, output"),
        (["hidden1"], "no stage can begin at 'hidden1'"),
        ([0], "no stage can begin at 0"),
        ([9], "no stage can begin at 9"),
        ([-1], "no stage can begin at -1"),
        (["hidden3", "hidden2"], "hidden2 does not come after hidden3"),
        (["hidden3", 3], "hidden3 does not come after hidden3"),
    ],
)
def test_an_explicit_partition_that_is_none_is_refused(starts, said):
    with pytest.raises(InputError, match=said) as told:
        parse(MODELS["mlp"], starts, "schedule.cuts")
    assert told.value.path == "schedule.cuts"


def test_a_model_of_one_unit_cannot_be_cut():
    with pytest.raises(InputError, match="the model has a single unit"):
        parse(MLP(widths=()).build((3,), 2), ["output"])


def filled(model):
    """A part of the whole model, all of whose vectors are random."""
    part = build_part("network", model.network, model.shape, F4, ("momentum", "square"))
    part.initialize(7)
    rng = np.random.default_rng(3)
    for vector, layout in [
        (part.grads, part.layout), *((slot, part.layout) for slot in part.slots.values()),
    ]:  # fmt: skip
        for entry in layout:
            rng.standard_normal(out=vector[entry.slice], dtype=F4)
    for entry in part.state_layout:
        part.state[entry.slice] = rng.uniform(1, 2, entry.size)
    part.counters[0] = 41
    return part


def plans(model):
    """The best partitions into every number of stages, and every single cut; two of a model that is large."""
    costs = COSTS[id(model)]
    best = [partition(costs, stages) for stages in range(1, len(costs) + 1)]
    if model is MODELS["vgg"]:
        return [best[2]]
    return [*best, *(Partition((0, unit.start, len(model.network))) for unit in units(model)[1:])]


def vectors(part):
    return {"weights": part.weights, "grads": part.grads, "state": part.state, "counters": part.counters, **part.slots}


@every
def test_stages_put_together_are_the_model_bit_for_bit(model):
    whole = filled(model)
    for plan in plans(model):
        joined = merge(split(whole, plan))
        assert joined.network == Network(list(model.network.layers))
        for layout in ("layout", "state_layout"):
            assert getattr(joined, layout).entries == getattr(whole, layout).entries
            assert getattr(joined, layout).size == getattr(whole, layout).size
        for name, vector in vectors(whole).items():
            assert vectors(joined)[name].tobytes() == vector.tobytes(), name


@pytest.mark.parametrize("model", [MODELS["resnet"], MODELS["mlp"], MODELS["cnn"]])
def test_a_stage_that_is_cut_out_is_one_that_is_built(model):
    whole, plan = filled(model), plans(model)[1]
    for span, part in zip(plan.spans, split(whole, plan), strict=True):
        shape = model.network[: span.start].output_shape(model.shape)
        built = build_part("network", model.network[span], shape, F4, ("momentum", "square"))
        built.initialize(7)
        assert part.layout.entries == built.layout.entries
        assert part.state_layout.entries == built.state_layout.entries
        assert part.network.start == span.start
        np.testing.assert_array_equal(part.weights, built.weights)


def test_what_is_cut_out_is_a_copy():
    whole = filled(MODELS["mlp"])
    before = {name: vector.copy() for name, vector in vectors(whole).items()}
    for part in split(whole, Partition((0, 2, 5))):
        for vector in vectors(part).values():
            vector += 1
    for name, vector in vectors(whole).items():
        np.testing.assert_array_equal(vector, before[name])


def test_counters_of_stages_that_differ():
    parts = split(filled(MODELS["mlp"]), Partition((0, 2, 3, 5)))
    for number, part in enumerate(parts):
        part.counters[0] = (5, 9, 7)[number]
    assert merge(parts).counters[0] == 9


@every
def test_stages_in_a_row_compute_what_the_model_computes(model):
    whole = filled(model)
    (expected,) = split(whole, Partition((0, len(model.network))))
    x = np.random.default_rng(1).normal(size=(2, *model.shape)).astype(F4)
    context = Pass(seed=3, batch=5, wants_dx=True)
    y, saved = expected.network.forward(expected.weight_views, expected.state_views, x, context)
    dy = np.random.default_rng(2).normal(size=y.shape).astype(F4)
    dx, finish = expected.network.backward(expected.weight_views, saved, dy, context)
    finish(expected.grad_views)
    for plan in [plan for plan in plans(model) if plan.stages in (2, 3)][:4]:
        parts, kept, passed = split(whole, plan), [], x
        for part in parts:
            passed, saved = part.network.forward(part.weight_views, part.state_views, passed, context)
            kept.append(saved)
        np.testing.assert_array_equal(passed, y)
        slope = dy
        for part in reversed(parts):
            slope, finish = part.network.backward(part.weight_views, kept.pop(), slope, context)
            finish(part.grad_views)
        np.testing.assert_array_equal(slope, dx)
        joined = merge(parts)
        np.testing.assert_array_equal(joined.grads, expected.grads)
        np.testing.assert_array_equal(joined.state, expected.state)


def test_layers_without_parameters_are_no_stage():
    model = MODELS["cnn"]
    assert all(part.layout.size for plan in plans(model) for part in split(filled(model), plan))
