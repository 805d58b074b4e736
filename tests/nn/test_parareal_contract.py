"""What parareal networks promise as layers."""

import gc
import tracemalloc

import numpy as np
import pytest
from layer_examples import arrays, build, noise, points
from parareal_examples import fine, grid, noisy, parareal, serial

from mpinn.array.pool import SMALL, Pool
from mpinn.models.mlp import MLP
from mpinn.models.parareal import parareal as parareal_of
from mpinn.nn.block import Block
from mpinn.nn.layer import Pass
from mpinn.nn.parareal import Parareal


@grid(3)
def test_passes_write_to_none_of_their_inputs_and_do_not_disturb_each_other(count, form, iterations):
    built = build(noisy(count, form, iterations), (3,))
    xs, dy = [points((4, 3), seed) for seed in (1, 2)], noise((4, 3))
    alone = [built.gradients(x, dy, wants_dx=True, update_state=False, batch=i) for i, x in enumerate(xs)]
    kept = [array.copy() for array in (*xs, dy, built.vector)]
    flight = [built.forward(x, wants_dx=True, update_state=False, batch=i) for i, x in enumerate(xs)]
    back = [built.layer.backward(built.weights, saved, dy, context) for _, saved, context in flight]
    for (y, dx, grads), (found, _, context), (found_dx, finish) in zip(alone, flight, back, strict=True):
        own = np.zeros_like(grads)
        finish(built.layout.views(own))
        for expected, array in ((y, found), (dx, found_dx), (grads, own)):
            np.testing.assert_array_equal(expected, array)
        assert context.path == []
        assert context.wants_dx
    for before, after in zip(kept, (*xs, dy, built.vector), strict=True):
        np.testing.assert_array_equal(before, after)


@grid(2, 3)
def test_running_statistics_move_once_for_a_batch(count, form, iterations):
    built = build(noisy(count, form, iterations), (3,))
    x = points((6, 3))
    once = build(noisy(count, form, iterations), (3,))
    built.forward(x)
    moved = [array.copy() for array in arrays(built.state)]
    assert all((a != b).all() for a, b in zip(moved, arrays(once.state), strict=True))
    # the first block sees x in one sweep, so its statistics are those of the serial network
    alone = build(noisy(1, form, 1), (3,))
    for name in ("weight", "bias"):
        alone.weights["fine1"]["dense"][name][...] = built.weights["fine1"]["dense"][name]
    for name in ("mean", "variance"):
        alone.state["fine1"]["norm"][name][...] = once.state["fine1"]["norm"][name]
    alone.forward(x)
    for name in ("mean", "variance"):
        np.testing.assert_array_equal(alone.state["fine1"]["norm"][name], built.state["fine1"]["norm"][name])


def test_initial_weights_of_fine_blocks_are_those_of_the_network_that_was_cut():
    network = parareal(3)
    built, whole = build(network, (3,)), build(serial(3), (3,))
    draws = lambda path: np.random.default_rng([7, *path])  # noqa: E731
    network.initialize(built.weights, built.state, draws)
    whole.layer.initialize(whole.weights, whole.state, draws)
    for name in whole.weights:
        own = built.weights if name == "output" else built.weights[f"fine{name[1]}"]
        np.testing.assert_array_equal(own[name]["weight"], whole.weights[name]["weight"])
    drawn = [entry for entry in built.layout if entry.path[-1] == "weight"]
    values = {float(built.vector[entry.start]) for entry in drawn}
    assert len(values) == len(drawn)


def test_an_evaluation_keeps_nothing():
    built = build(parareal(3, iterations=2), (3,))
    _, saved, _ = built.forward(points((2, 3)), training=False)
    assert arrays([list(filter(None, _flat(saved)))]) == []


def test_what_is_kept_grows_with_the_sweeps_and_no_faster():
    """Between forward and backward; of four blocks those in the middle compute in each of two sweeps."""

    def kept(iterations):
        built = build(parareal(4, iterations=iterations), (3,))
        _, saved, _ = built.forward(points((50, 3)))
        own = (array for array in arrays([list(filter(None, _flat(saved)))]) if array.size >= 50)
        return sum(array.nbytes for array in {id(array): array for array in own}.values())

    one, two, three = (kept(iterations) for iterations in (1, 2, 3))
    assert 1.25 * one < two <= 2 * one
    assert three <= 3 * one


def _flat(tree):
    if isinstance(tree, list):
        for item in tree:
            yield from _flat(item)
    else:
        yield tree


def test_a_part_of_the_blocks_has_their_names_and_rehearses_alone():
    whole = parareal(4, iterations=2)
    names = [entry.name for entry in build(whole, (3,)).layout]
    parts = [build(whole[j : j + 1], (3,)) for j in range(4)]
    assert [entry.name for part in parts for entry in part.layout] == names
    for part, width in zip(parts, (2, 4, 3, 2), strict=True):
        y, _, grads = part.gradients(points((3, 3)), noise((3, width)))
        assert y.shape == (3, width)
        assert np.isfinite(grads).all()


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (lambda: parareal(3, form="sum"), "form is 'sum'"),
        (lambda: Block(1, 2, (3,), fine(1, 4), iterations=3), "iterations is 3"),
        (lambda: Block(2, 3, (2,), fine(2, 4)), "predictor 2 of 3 is missing"),
        (lambda: Block(2, 3, (2,), fine(2, 4), fine(1, 2)), "coarse network 2 of 3 is missing"),
        (lambda: Parareal((parareal(3).blocks[0], parareal(3).blocks[2])), "not the blocks of one network"),
        (lambda: Parareal((parareal(2).blocks[0], parareal(2, "difference").blocks[1])), "not the blocks"),
        (lambda: parareal(3).output_shape((9,)), r"block 1 takes samples of shape \(3,\)"),
        (
            lambda: Block(2, 2, (2,), fine(2, 4), fine(1, 3), fine(2, 4)).output_shape((3,)),
            r"block 2 is from \(2,\) to \(4,\)",
        ),
    ],
)
def test_blocks_that_do_not_fit_are_refused(problem, message):
    with pytest.raises(ValueError, match=message):
        problem()


@pytest.mark.parametrize(("form", "iterations"), [("residual", 1), ("difference", 2)])
def test_a_steady_step_allocates_no_large_array(form, iterations):
    options = MLP(widths=(300, 300, 300))
    model = options.build((200,), 300)
    network = parareal_of(options, model, (0, 2, 3, 5), form, iterations)
    built = build(network, (200,), "float32")
    grads = np.zeros(built.layout.size, np.float32)
    views = built.layout.views(grads)
    x, dy, pool = noise((128, 200), dtype="f4"), noise((128, 300), dtype="f4"), Pool()

    def step(batch):
        context = Pass(pool=pool, batch=batch)
        _, saved = network.forward(built.weights, built.state, x, context)
        for name, _, finish in network.sweep(built.weights, saved, dy, context):
            finish(views[name])

    for batch in range(2):
        step(batch)
    held = pool.nbytes
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for batch in range(2, 5):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            step(batch)
            assert tracemalloc.get_traced_memory()[1] - before < 3 * SMALL
    finally:
        tracemalloc.stop()
        gc.enable()
    assert pool.nbytes == held
