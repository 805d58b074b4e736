"""Coarse networks gathered on one rank, all ranks in one process: the parareal network to the last bit."""

import gc
import tracemalloc

import numpy as np
import pytest
from layer_examples import build, noise
from parareal_examples import noisy, parareal

from mpinn.array.pool import SMALL, Pool
from mpinn.models.mlp import MLP
from mpinn.models.parareal import parareal as parareal_of
from mpinn.nn.gathered import Gathered
from mpinn.nn.layer import Pass
from mpinn.nn.part import build_part

EACH = pytest.mark.parametrize(("count", "form"), [(n, form) for n in (2, 3, 4) for form in ("residual", "difference")])


class Box(dict):
    """A post within the process, in which those who send come first."""

    def send(self, parcel, number, array):
        self[parcel, number] = array

    def receive(self, parcel, number):
        return self.pop((parcel, number))


def shares(network):
    return [Gathered(network.blocks, block.number) for block in network.blocks]


def passed(network, built, x, dy, contexts):
    """The output, and the gradients by name, of all ranks: the last one's passes come between those of the others."""
    box, ranks, grads = Box(), shares(network), {}
    runs = [
        share.run(built.weights, built.state, x, context, box) for share, context in zip(ranks, contexts, strict=True)
    ]
    for share, (_, saved), context in reversed([*zip(ranks, runs, contexts, strict=True)]):
        swept = share.run_back(built.weights, saved, dy, context, box)
        grads |= {name: finish for name, _, finish in swept}
    assert not box
    return runs[-1][0], grads


@EACH
@pytest.mark.parametrize("make", [parareal, noisy])
def test_it_is_the_parareal_network_bit_for_bit(count, form, make):
    network = make(count, form, 1)
    built = build(network, (3,))
    outputs = network.output_shape((3,))
    x, dy = noise((6, 3)), noise((6, *outputs))
    expected, _, whole = built.gradients(x, dy, update_state=False, seed=4)
    contexts = [Pass(seed=4, update_state=False) for _ in range(count)]
    y, finishes = passed(network, built, x, dy, contexts)
    grads = np.full(built.layout.size, np.nan)
    views = built.layout.views(grads)
    for name, finish in finishes.items():
        finish(views.get(name, {}))
    np.testing.assert_array_equal(y, expected)
    for entry in built.layout:
        np.testing.assert_array_equal(grads[entry.slice], whole[entry.slice])


@EACH
def test_every_network_is_on_one_rank_and_their_order_is_known(count, form):
    network = parareal(count, form, 1)
    here = [name for share in shares(network) for name in share.parameters((3,))]
    assert sorted(here) == sorted(network.parameters((3,)))
    assert [here[place] for place in shares(network)[0].order] == [*network.parameters((3,))]
    assert [name for name in shares(network)[-1].parameters((3,)) if name.startswith("coarse")] == [
        f"coarse{j}" for j in range(2, count + 1)
    ]


@EACH
@pytest.mark.parametrize("make", [parareal, noisy])
def test_the_gradient_of_every_rank_is_complete_from_its_end_on(count, form, make):
    network = make(count, form, 1)
    for share in shares(network):
        built, context = build(share, (3,)), Pass()
        y, saved = share.forward(built.weights, built.state, noise((6, 3)), context)
        names = [name for name, _, _ in share.sweep(built.weights, saved, noise(y.shape), context)]
        assert [name for name in names if name in built.weights] == [*reversed(share.parameters((3,)))]


def test_initial_weights_are_those_of_the_network():
    network = parareal(3, "residual", 1)
    whole = build_part("network", network, (3,), np.dtype("f8"), ())
    whole.initialize(7)
    drawn = {entry.name: whole.weights[entry.slice] for entry in whole.layout}
    for share in shares(network):
        part = build_part("network", share, (3,), np.dtype("f8"), ())
        part.initialize(7)
        assert part.weights.any()
        for entry in part.layout:
            np.testing.assert_array_equal(part.weights[entry.slice], drawn[entry.name])


@pytest.mark.parametrize("form", ["residual", "difference"])
def test_a_steady_step_allocates_no_large_array(form):
    options = MLP(widths=(300, 300, 300))
    model = options.build((200,), 300)
    network = parareal_of(options, model, (0, 2, 3, 5), form)
    built = build(network, (200,), "float32")
    views = built.layout.views(np.zeros(built.layout.size, np.float32))
    x, dy = noise((128, 200), dtype="f4"), noise((128, 300), dtype="f4")
    pools = [Pool() for _ in network.blocks]

    def step(batch):
        _, grads = passed(network, built, x, dy, [Pass(pool=pool, batch=batch) for pool in pools])
        for name, finish in grads.items():
            finish(views[name])

    for batch in range(2):
        step(batch)
    held = sum(pool.nbytes for pool in pools)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        step(2)
        # the small arrays of three ranks, each of which is below half of any interface
        assert tracemalloc.get_traced_memory()[1] - before < 2 * SMALL < 128 * 300 * 4
    finally:
        tracemalloc.stop()
        gc.enable()
    assert sum(pool.nbytes for pool in pools) == held > 0
