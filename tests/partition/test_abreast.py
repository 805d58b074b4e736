"""What a step of a parareal network takes, and cuts that count what stands beside a fine block."""

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from nn.parareal_examples import parareal

from mpinn.array import ops
from mpinn.errors import InputError
from mpinn.partition.abreast import NOTHING, Abreast, forecast, head_of, waits
from mpinn.partition.costs import Link
from mpinn.partition.cuts import cut, divide, learn
from mpinn.partition.profile import Cost
from mpinn.partition.split import STEP, partition_abreast
from mpinn.training.choices import build_model, read_config

FREE = Link(1e30, 0.0)


def cost(forward, backward=None, size=0, parameters=0):
    return Cost("x", 1, forward, 2 * forward if backward is None else backward, size, size, 0, parameters)


def blocks(count, fine, guess, small, head, form="residual", iterations=1, size=0):
    found = []
    for block in parareal(count, form, iterations).blocks:
        j = block.number - 1
        found.append(
            Abreast(
                block,
                (3,),
                cost(fine[j], size=size),
                cost(guess[j]) if block.predictor else NOTHING,
                cost(small[j]) if block.coarse else NOTHING,
                cost(head) if block.last else NOTHING,
            )
        )
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_fine_blocks_at_once_and_coarse_networks_in_turn(count):
    """With B = 2F: the passes add up to 3, and half of a coarse network's backward pass waits for the end."""
    found = forecast(blocks(count, [5] * 4, [1] * 4, [0.5] * 4, 0.25), FREE)
    others = count - 1
    first = 5 + (count > 1)
    # forward, coarse chain, head and loss, the chain back; the last to begin its way back is block 2, or the only one
    chain = first + 0.5 * others + 0.75 + 0.5 * others
    last = chain + 10 + (2 + 0.5) * (count > 1)
    assert found.seconds == pytest.approx(last)
    assert found.messages == (0 if count == 1 else 3 * count - 4)


def test_a_slow_first_block_is_waited_for():
    found = forecast(blocks(3, [50, 5, 5, 5], [1] * 4, [0.5] * 4, 0.25), FREE)
    # what is after it waits for its value, and it is done last
    assert found.seconds == pytest.approx(50 + 2 * 0.5 + 0.75 + 2 * 0.5 + 100)


def test_messages_take_time():
    even = blocks(3, [5] * 4, [1] * 4, [0.5] * 4, 0.25, size=1000)
    free, slow = forecast(even, FREE), forecast(even, Link(1000.0, 0.5))
    # the second block sends its value, c and an adjoint, and has waited for the adjoint of the third
    assert slow.seconds - free.seconds == pytest.approx(4 * 1.5)


def test_all_sweeps_are_serial():
    """As many sweeps as blocks: every block once, in turn, and nothing beside it."""
    found = forecast(blocks(4, [5, 6, 7, 8], [1] * 4, [1] * 4, 0.25, iterations=4), FREE)
    assert found.seconds == pytest.approx(3 * (5 + 6 + 7 + 8) + 0.75)


def test_the_difference_form_runs_coarse_networks_twice():
    one, two = (
        forecast(blocks(3, [5] * 4, [1] * 4, [0.5] * 4, 0.25, form), FREE) for form in ("residual", "difference")
    )
    assert two.seconds - one.seconds == pytest.approx(2 * 0.5 + 2 * 0.5 + 0.5)


def test_a_gathered_sweep_saves_latency_and_pays_for_bytes():
    even = blocks(4, [5] * 4, [1] * 4, [0.5] * 4, 0.25, size=1000)
    late, narrow = Link(1e30, 1.0), Link(1e3, 0.0)
    chain, gather = (forecast(even, late, gathered) for gathered in (False, True))
    assert (chain.messages, gather.messages) == (3 + 2 + 3, 5 + 5)
    # once there, in place of a hop for every block; what goes back is there before the last rank is done
    assert gather.seconds - forecast(even, FREE, gathered=True).seconds == pytest.approx(1.0)
    assert chain.seconds - forecast(even, FREE).seconds == pytest.approx(6.0)
    assert forecast(even, narrow, gathered=True).seconds > forecast(even, narrow).seconds


def test_without_messages_it_makes_no_difference_to_fine_blocks():
    even = blocks(4, [5] * 4, [1] * 4, [0.0] * 4, 0.25)
    assert forecast(even, FREE).seconds == pytest.approx(forecast(even, FREE, gathered=True).seconds)


def test_waits_are_those_of_messages():
    network = parareal(4)
    chain, gather = waits(network.blocks, 8, Link(1e30, 1.0))
    assert (chain, gather) == (pytest.approx(6.0), pytest.approx(2.0))


def test_no_partition_is_better():
    rng = np.random.default_rng(0)
    for _ in range(40):
        size, stages = int(rng.integers(3, 8)), int(rng.integers(2, 4))
        costs = [cost(1.0)] * size
        inside = np.triu(np.ones((size + 1, size + 1), bool), 1)
        times, chained = (
            [np.where(inside, rng.random((size + 1, size + 1)), np.inf) for _ in range(stages)] for _ in range(2)
        )

        def total(cuts, times=times, chained=chained):
            pairs = [*pairwise(cuts)]
            longest = max(time[pair] for time, pair in zip(times, pairs, strict=True))
            return longest + sum(added[pair] for added, pair in zip(chained, pairs, strict=True)), longest

        best, longest = min(total((0, *inner, size)) for inner in combinations(range(1, size), stages - 1))
        found = total(partition_abreast(costs, times, chained).bounds)[0]
        assert found <= best + (STEP + 1e-6) * longest


def test_what_is_beside_a_block_moves_the_cut():
    """Eight equal layers in two blocks: the second has less where its predictor is dear; a coarse network is shared."""
    config = read_config(None, ("model.widths=[8,8,8,8,8,8,8,8]", "schedule.name=parareal", "grid.stages=2"))
    model = build_model(config, (5,), 3)
    costs = learn(config, model, 3, 16, ops, measure=False)
    units = [replace(unit, forward=1.0, backward=2.0) for unit in costs.units]

    def bounds(guess, small):
        beside = [cost(guess), cost(small)]
        found = divide(config, model, replace(costs, units=units, beside=beside), 2, lambda k, K: None, FREE)
        return found.bounds

    # the head is nobody's: it waits for all
    assert bounds(0, 0) == bounds(0, 3) == (0, 5, 10)
    assert bounds(2, 0) == (0, 6, 10)
    assert bounds(4, 0) == (0, 7, 10)


def test_a_dear_coarse_network_is_avoided():
    config = read_config(None, ("model.widths=[8,8,8,90,8,8]", "schedule.name=parareal", "grid.stages=2"))
    model = build_model(config, (5,), 3)
    costs = learn(config, model, 3, 16, ops, measure=False)
    names = costs.sides.names

    def bounds(dear):
        beside = [cost(100.0 if name == dear else 0.1) for name in names]
        return divide(config, model, replace(costs, beside=beside), 2, lambda k, K: None, FREE).bounds

    best = bounds("")
    for dear in (costs.sides.predictors[best[1]], costs.sides.coarses[best[1:]]):
        other = bounds(dear)
        assert dear not in (costs.sides.predictors[other[1]], costs.sides.coarses[other[1:]])
    assert head_of(model, costs.units).name == "output"


def test_the_cuts_of_a_run_are_those_of_the_plan_and_count_memory():
    config = read_config(None, ("model.widths=[30,30,30,30]", "schedule.name=parareal", "grid.stages=3"))
    model = build_model(config, (5,), 3)
    costs = learn(config, model, 3, 128, ops, measure=False)
    expected = divide(config, model, costs, 3, lambda k, K: None)
    assert cut(config, model, 3, 1, ops, measure=False).bounds == expected.bounds
    with pytest.raises(InputError, match=r"grid\.stages: no partition into 3 stages fits into 100 bytes"):
        divide(config, model, costs, 3, lambda k, K: None, FREE, memory=100)
