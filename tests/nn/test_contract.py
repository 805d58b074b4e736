"""What every layer promises: purity, passes that do not disturb each other, float32, empty batches."""

import copy

import numpy as np
import pytest
from layer_examples import arrays, build, cases, noise, points, title

from mpinn.array.pool import Pool
from mpinn.nn.layer import Pass
from mpinn.nn.layers import LAYERS

CASES = list(cases())
WIDE = [(layer, shape) for layer, shape, samples in CASES if samples == 3]
each = pytest.mark.parametrize(("layer", "shape", "samples"), CASES, ids=title)
each_once = pytest.mark.parametrize(("layer", "shape"), WIDE, ids=title)


def test_every_name_is_a_layer_with_examples():
    assert {type(layer) for layer, _ in WIDE} == set(LAYERS.values())


@each
def test_passes_write_to_none_of_their_inputs(layer, shape, samples):
    built = build(layer, shape)
    x, dy = points((samples, *shape)), noise((samples, *layer.output_shape(shape)))
    originals = copy.deepcopy((x, dy, built.vector))
    y, saved, context = built.forward(x, wants_dx=True, update_state=False)
    kept, result = copy.deepcopy((arrays(saved), y))
    held = arrays(saved)
    _, finish = layer.backward(built.weights, saved, dy, context)
    grads = np.zeros(built.layout.size)
    finish(built.layout.views(grads))
    for before, after in zip((*originals, *kept, result), (x, dy, built.vector, *held, y), strict=True):
        np.testing.assert_array_equal(before, after)


@each_once
def test_passes_in_flight_do_not_disturb_each_other(layer, shape):
    built = build(layer, shape)
    pool = Pool()
    xs = [np.repeat(points((3, *shape), seed), 40, axis=0) for seed in (1, 2, 3)]
    dy = np.repeat(noise((3, *layer.output_shape(shape))), 40, axis=0)
    options = [{"batch": batch, "wants_dx": True, "update_state": False} for batch in range(3)]
    alone = [built.gradients(x, dy, **option) for x, option in zip(xs, options, strict=True)]
    flight = [built.forward(x, pool=pool, **option) for x, option in zip(xs, options, strict=True)]
    backward = [layer.backward(built.weights, saved, dy, context) for _, saved, context in flight]
    for (y, dx, grads), (found, _, _), (found_dx, finish) in zip(alone, flight, backward, strict=True):
        found_grads = np.zeros(built.layout.size)
        finish(built.layout.views(found_grads))
        for expected, array in ((y, found), (dx, found_dx), (grads, found_grads)):
            np.testing.assert_array_equal(expected, array)


@each
def test_weight_gradients_do_not_depend_on_whether_the_input_gradient_is_wanted(layer, shape, samples):
    built = build(layer, shape)
    x, dy = points((samples, *shape)), noise((samples, *layer.output_shape(shape)))
    _, _, with_dx = built.gradients(x, dy, wants_dx=True, update_state=False)
    _, _, without = built.gradients(x, dy, wants_dx=False, update_state=False)
    np.testing.assert_array_equal(with_dx, without)


@each
def test_padding_of_the_vector_stays_zero(layer, shape, samples):
    built = build(layer, shape)
    x, dy = points((samples, *shape)), noise((samples, *layer.output_shape(shape)))
    _, _, grads = built.gradients(x, dy)
    inside = np.zeros(built.layout.size, bool)
    for entry in built.layout:
        inside[entry.slice] = True
    assert not grads[~inside].any()


@each_once
def test_float32_is_close_to_float64(layer, shape):
    x, dy = points((3, *shape)), noise((3, *layer.output_shape(shape)))
    double = build(layer, shape).gradients(x, dy, wants_dx=True)
    single = build(layer, shape, "float32").gradients(x.astype("f4"), dy.astype("f4"), wants_dx=True)
    layout = build(layer, shape).layout
    pairs = [(double[0], single[0]), (double[1], single[1])]
    narrow = build(layer, shape, "float32").layout
    pairs += [(double[2][a.slice], single[2][b.slice]) for a, b in zip(layout, narrow, strict=True)]
    for wide, found in pairs:
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wide, rtol=1e-4, atol=1e-5 * max(1, np.abs(wide).max()))


@each_once
def test_a_batch_gives_the_sum_of_its_pieces(layer, shape):
    # in evaluation, since batch norm sees other statistics in a piece; dropout in pieces is tested with its masks
    built = build(layer, shape)
    options = {"training": False, "gradients": True, "wants_dx": True}
    x, dy = points((5, *shape)), noise((5, *layer.output_shape(shape)))
    y, dx, grads = built.gradients(x, dy, **options)
    pieces = [built.gradients(x[part], dy[part], **options) for part in (slice(0, 2), slice(2, 5))]
    np.testing.assert_allclose(np.concatenate([piece[0] for piece in pieces]), y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.concatenate([piece[1] for piece in pieces]), dx, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sum(piece[2] for piece in pieces), grads, rtol=1e-12, atol=1e-12)


@each_once
def test_an_empty_batch_has_gradient_zero_and_moves_no_statistics(layer, shape):
    built = build(layer, shape)
    before = copy.deepcopy(arrays(built.state))
    x, dy = np.empty((0, *shape)), np.empty((0, *layer.output_shape(shape)))
    y, dx, grads = built.gradients(x, dy, wants_dx=True)
    assert (y.shape, dx.shape) == (dy.shape, x.shape)
    assert not grads.any()
    for old, new in zip(before, arrays(built.state), strict=True):
        np.testing.assert_array_equal(old, new)


@each
def test_a_pass_run_again_gives_the_same(layer, shape, samples):
    built = build(layer, shape)
    x = points((samples, *shape))
    first = built.forward(x, seed=3, batch=7, update_state=False)[0]
    again, _, context = built.forward(x, seed=3, batch=7, update_state=False)
    np.testing.assert_array_equal(first, again)
    assert context.path == []


@each
def test_the_output_has_the_declared_shape_in_evaluation(layer, shape, samples):
    y, _, _ = build(layer, shape).forward(points((samples, *shape)), training=False)
    assert y.shape == (samples, *layer.output_shape(shape))


def test_a_layer_keeps_only_arrays():
    for layer, shape in WIDE:
        _, saved, _ = build(layer, shape).forward(points((2, *shape)))
        assert arrays(saved) or saved == ()


def test_an_evaluation_keeps_nothing_unless_gradients_are_wanted():
    assert (Pass(training=True).keeps, Pass(training=False).keeps) == (True, False)
    assert Pass(training=False, gradients=True).keeps
