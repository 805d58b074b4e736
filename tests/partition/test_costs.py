"""What schedules cost: every formula against a simulation of events, and against the ideal figures."""

import heapq
from itertools import combinations, pairwise, product

import numpy as np
import pytest

from mpinn.partition.costs import PIPELINES, SCHEDULES, Link, Stage, forecast, stages_of
from mpinn.partition.demands import demands
from mpinn.partition.profile import Cost
from mpinn.partition.split import Partition, partition
from mpinn.schedules.decoupled import DDGOptions, DecoupledOptions, FROptions
from mpinn.schedules.layerwise import LayerwiseOptions
from mpinn.schedules.registry import SCHEDULES as REGISTRY

OPTIONS = {name: REGISTRY[name]() for name in SCHEDULES}
DECOUPLED = {
    "ddg": DDGOptions(),
    "ddg, backward first": DDGOptions(order="backward_first"),
    "ddg, recompute": DDGOptions(recompute=True),
    "fr": FROptions(),
    "fr, backward first": FROptions(order="backward_first"),
    "fr, recompute = false": FROptions(recompute=False),
    "fdg": DecoupledOptions(),
    "fdg, forward first, recompute": DecoupledOptions(order="forward_first", recompute=True),
    "fdg, mixed": DecoupledOptions(versions="mixed"),
    "layerwise": LayerwiseOptions(),
    "layerwise, recompute = false": LayerwiseOptions(recompute=False),
}
"""By the name of the schedule, and what is not its default."""
FREE = Link(float("inf"), 0.0)
STEPS = 240


def stage(forward, backward, before=0, after=0):
    return Stage((Cost("unit", 1, forward, backward, before, after, 0, 0),), before, after)


def uneven(seed, count, top=9):
    """Stages with whole seconds and with bytes that fit each other."""
    rng = np.random.default_rng(seed)
    cuts = [0, *map(int, rng.integers(1, 5, count - 1)), 0]
    return [
        stage(*map(int, rng.integers(1, top, 2)), before, after)
        for before, after in pairwise(cuts)
    ]  # fmt: skip


def even(count, micro_batches=1):
    """Stages with backward passes of twice the length."""
    return [stage(1.0 * micro_batches, 2.0 * micro_batches) for _ in range(count)]


def simulate(programs, seconds, needs):
    """When each event ends: a stage takes its own events in order, each as soon as what it needs has ended."""
    ended, places, running = {}, [0] * len(programs), [False] * len(programs)
    queue, now = [], 0.0
    while True:
        for number, program in enumerate(programs):
            if not running[number] and places[number] < len(program):
                event = program[places[number]]
                if all(needed in ended for needed in needs(event)):
                    heapq.heappush(queue, (now + seconds(event), number, event))
                    running[number] = True
        if not queue:
            break
        now, number, event = heapq.heappop(queue)
        ended[event], running[number] = now, False
        places[number] += 1
    assert len(ended) == sum(map(len, programs)), "a deadlock"
    return ended


def durations(stages, link, micro_batches, replays=lambda k: False):
    """Seconds of the event (kind, stage, index): a pass, and the message after it."""
    last = len(stages) - 1

    def seconds(event):
        kind, k, _ = event
        own = stages[k]
        if kind == "F":
            return own.forward / micro_batches + (k < last and link.seconds(own.after / micro_batches))
        again = own.forward if replays(k) else 0
        return again + own.backward / micro_batches + (k > 0 and link.seconds(own.before / micro_batches))

    return seconds


def pipelined(schedule, stages, link, micro_batches):
    """The end of a step of a pipeline."""
    count = len(stages)
    programs = []
    for k in range(count):
        room = micro_batches if schedule == "gpipe" else count - k
        program, forward, backward = [], 0, 0
        while backward < micro_batches:
            if forward < micro_batches and forward - backward < room:
                program.append(("F", k, forward))
                forward += 1
            else:
                program.append(("B", k, backward))
                backward += 1
        programs.append(program)

    def needs(event):
        kind, k, index = event
        if kind == "F":
            return [("F", k - 1, index)] if k else []
        return [("B", k + 1, index)] if k < count - 1 else [("F", k, index)]

    return max(simulate(programs, durations(stages, link, micro_batches), needs).values()), programs


def turns(options, k, count):
    """What stage k of K does in an iteration, from 0; the last one always runs forward first."""
    return "BF" if options.order == "backward_first" and k < count - 1 else "FB"


def decoupled(options, stages, link, locked):
    """Seconds from step to step, late in a long run."""
    count, apart = len(stages), 0 if options.chained else 1
    programs = [[(kind, k, step) for step in range(STEPS) for kind in turns(options, k, count)] for k in range(count)]

    def needs(event):
        kind, k, step = event
        needed = []
        if kind == "F" and k and step >= apart:
            needed.append(("F", k - 1, step - apart))
        if kind == "B" and k < count - 1 and step:
            needed.append(("B", k + 1, step - 1))
        if locked and step:
            needed += [(kind, other, step - 1) for other in range(count) for kind in "FB"]
        return needed

    replays = lambda k: options.recompute and k < count - 1  # noqa: E731
    ended = simulate(programs, durations(stages, link, 1, replays), needs)
    first, last = (max(ended[kind, k, step] for k in range(count) for kind in "FB") for step in (STEPS - 61, STEPS - 1))
    return (last - first) / 60


LINKS = [FREE, Link(0.5, 1.0), Link(2.0, 0.0)]


@pytest.mark.parametrize(("count", "link"), [*product((1, 2, 3, 4, 5), LINKS)])
@pytest.mark.parametrize("schedule", PIPELINES)
def test_pipelines_take_what_a_simulation_takes(schedule, count, link):
    for seed, micro_batches in product(range(6), (1, 2, 3, 4, 9)):
        stages = uneven(seed, count)
        found = forecast(schedule, OPTIONS[schedule], stages, link, micro_batches)
        assert found.seconds == found.locked == pytest.approx(pipelined(schedule, stages, link, micro_batches)[0])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_one_batch_at_a_time(count):
    stages = uneven(count, count)
    naive = forecast("naive", OPTIONS["naive"], stages, LINKS[1], 4)
    assert naive.seconds == naive.locked == pytest.approx(pipelined("gpipe", stages, LINKS[1], 1)[0])
    serial = forecast("serial", OPTIONS["serial"], stages, LINKS[1], 4)
    assert serial.seconds == sum(own.forward + own.backward for own in stages)


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize(("count", "link"), [*product((1, 2, 4), LINKS)])
@pytest.mark.parametrize("name", DECOUPLED)
def test_decoupled_schedules_keep_the_pace_of_a_simulation(name, count, link, locked):
    for seed in range(4):
        stages = uneven(seed, count)
        found = forecast(name.split(",")[0], DECOUPLED[name], stages, link, 4)
        expected = decoupled(DECOUPLED[name], stages, link, locked)
        assert (found.locked if locked else found.seconds) == pytest.approx(expected)


def test_stages_with_losses_of_their_own_pay_for_messages_to_the_right_alone():
    units = [Cost(name, 1, 1.0, 2.0, 8, after, 0, 0) for name, after in (("a", 6), ("b", 4), ("c", 1))]
    stages = stages_of(units, Partition((0, 1, 2, 3)))
    assert forecast("local", OPTIONS["local"], stages, Link(2.0, 0.5), 4).seconds == 1 + 2 + 0.5 + 6 / 2


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_even_stages_have_the_ideal_speed_ups(count):
    K, m = count, 5
    # the last stage of fr does not run its forward pass again, so the chain of ddg takes as long
    chained = 3 * K / (K + 2)
    ideal = {"naive": 1, "ddg": chained, "fr": chained, "fdg": K, "local": K}
    told = {schedule: forecast(schedule, OPTIONS[schedule], even(K), FREE, m) for schedule in SCHEDULES}
    serial = told["serial"].seconds
    for schedule, speedup in ideal.items():
        assert serial / told[schedule].locked == pytest.approx(speedup)
    for schedule in PIPELINES:
        assert serial / told[schedule].seconds == pytest.approx(m * K / (m + K - 1))
    assert serial / told["ddg"].seconds == pytest.approx(K)
    assert serial / told["fr"].seconds == pytest.approx(3 * K / 4 if K > 1 else 1)


def test_the_slowest_stage_of_fdg_is_the_bottleneck_of_the_partition():
    rng = np.random.default_rng(0)
    sizes = [4, *map(int, rng.integers(1, 9, 8))]
    costs = [
        Cost(f"unit{n}", 1 + n % 2, *map(float, rng.integers(1, 9, 2)), before, after, 1, 1)
        for n, (before, after) in enumerate(pairwise(sizes))
    ]
    link = Link(2.0, 0.5)
    best = partition(costs, 3, bandwidth=link.bandwidth, latency=link.latency)
    found = forecast("fdg", OPTIONS["fdg"], stages_of(costs, best), link, 1).seconds
    layers = [0, *np.cumsum([cost.layers for cost in costs]).tolist()]
    others = [
        forecast(
            "fdg", OPTIONS["fdg"], stages_of(costs, Partition((0, layers[i], layers[j], layers[8]))), link, 1
        ).seconds
        for i in range(1, 8)
        for j in range(i + 1, 8)
    ]
    assert found == min(others) < max(others)


def test_stages_hold_the_totals_of_their_units():
    costs = [
        Cost("a", 2, 1.0, 2.0, 10, 20, 30, 40),
        Cost("b", 1, 3.0, 4.0, 20, 50, 60, 70),
        Cost("c", 3, 5.0, 6.0, 50, 80, 90, 100),
    ]
    first, second = stages_of(costs, Partition((0, 3, 6)))
    assert (first.forward, first.backward, first.parameter_bytes) == (4.0, 6.0, 110)
    assert (first.before, first.after, second.before, second.after) == (0, 50, 50, 0)
    assert second.costs == (costs[2],)


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 8])
@pytest.mark.parametrize("schedule", PIPELINES)
def test_micro_batches_in_flight(schedule, micro_batches):
    programs = pipelined(schedule, uneven(1, 4), FREE, micro_batches)[1]
    for k, program in enumerate(programs, 1):
        held = np.cumsum([1 if kind == "F" else -1 for kind, _, _ in program])
        assert demands(schedule, OPTIONS[schedule], micro_batches)(k, 4).passes == max(held) / micro_batches


@pytest.mark.parametrize("K", [1, 2, 3, 4])
@pytest.mark.parametrize("name", DECOUPLED)
def test_batches_in_flight(name, K):
    options = DECOUPLED[name]
    for k in range(1, K + 1):
        lags = {"F": 0, "B": K - k} if options.chained else {"F": k - 1, "B": 2 * K - k - 1}
        held, peak = set(), 0
        for t in range(1, 40):
            for kind in turns(options, k - 1, K):
                if t - lags[kind] < 1:
                    continue
                if kind == "F":
                    held.add(t - lags["F"])
                peak = max(peak, len(held))
                if kind == "B":
                    held.remove(t - lags["B"])
        demand = demands(name.split(",")[0], options)(k, K)
        assert demand.passes + demand.inputs == peak
        assert demand.weights == (peak if options.versions == "stash" and k < K else 0)
        assert demand.inputs == (peak - 1 if options.recompute else 0)
        assert demand.forwards == (2 if options.recompute and k < K else 1)


def test_bytes_in_flight_and_messages():
    units = [Cost("a", 1, 1.0, 1.0, 8, 16, 100, 1000), Cost("b", 1, 1.0, 1.0, 16, 4, 200, 3000)]
    stages = stages_of(units, Partition((0, 1, 2)))
    options = {**OPTIONS, "fdg": DecoupledOptions(order="forward_first")}
    found = {schedule: forecast(schedule, options[schedule], stages, FREE, 4) for schedule in SCHEDULES}
    last = 16 + 200
    assert {schedule: row.in_flight for schedule, row in found.items()} == {
        "serial": (8 + 300,),
        "naive": (108, last),
        "gpipe": (108, last),
        "1f1b": (108 / 2, last / 4),
        "ddg": (2 * 108 + 2 * 1000, last),
        "fr": (108 + 8, last),
        "fdg": (3 * 108 + 3 * 1000, last),
        "layerwise": (108 + 2 * 8, last),
        "local": (108, last),
    }
    messages = {schedule: row.messages for schedule, row in found.items()}
    assert messages == {**dict.fromkeys(SCHEDULES, 2), "serial": 0, "gpipe": 8, "1f1b": 8, "local": 1}


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("name", [name for name in DECOUPLED if "backward first" not in name])
def test_the_cut_is_the_fastest_of_all(name, stages):
    """As the schedule runs with its options, by the simulation."""
    options, rng = DECOUPLED[name], np.random.default_rng(stages)
    costs = [Cost(f"unit{n}", 1, *map(float, rng.integers(1, 9, 2)), 0, 0, 0, 0) for n in range(6)]
    rule = demands(name.split(",")[0], options)
    best = partition(costs, stages, bandwidth=FREE.bandwidth, latency=0.0, in_flight=rule)
    cuts = [Partition((0, *inside, 6)) for inside in combinations(range(1, 6), stages - 1)]
    seconds = {cut: decoupled(options, stages_of(costs, cut), FREE, locked=False) for cut in cuts}
    assert seconds[best] == min(seconds.values()) < max(seconds.values())
