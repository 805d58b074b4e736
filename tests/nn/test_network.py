"""Networks: slices, keyed random numbers, deferred gradients, and what a backward pass leaves out."""

import numpy as np
import pytest
from layer_examples import arrays, build, noise, points

from mpinn.nn.activation import Activation
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.dropout import Dropout
from mpinn.nn.flatten import Flatten
from mpinn.nn.layer import Pass
from mpinn.nn.layout import Layout
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm
from mpinn.nn.pool import GlobalAveragePool, MaxPool2d
from mpinn.nn.residual import Residual

SHAPE = (6, 5, 2)


def block(outputs, rate=0.2):
    body = Network([("conv", Conv2d(outputs, 3, activation="tanh")), ("norm", BatchNorm()), ("drop", Dropout(rate))])
    return Residual(body, Network([("conv", Conv2d(outputs, 1))]))


NETWORK = Network(
    [
        ("stem", Conv2d(4, 3, bias=False)),
        ("norm", BatchNorm()),
        ("act", Activation("elu")),
        ("pool", MaxPool2d()),
        ("block1", block(4)),
        ("block2", block(3)),
        ("flat", Flatten()),
        ("drop", Dropout(0.5)),
        ("out", Dense(5)),
    ]
)


def draws(seed):
    return lambda path: np.random.default_rng([seed, *path])


def initial(network, shape):
    layout, state = Layout(network.parameters(shape), "f8"), Layout(network.state(shape), "f8")
    vector, running = np.zeros(layout.size), np.zeros(state.size)
    network.initialize(layout.views(vector), state.views(running), draws(3))
    return layout, vector, layout.views(vector)


def shape_before(index):
    return NETWORK[:index].output_shape(SHAPE)


@pytest.mark.parametrize(("first", "last"), [(0, 3), (2, 6), (4, 5), (5, 9), (8, 9), (0, 9)])
def test_a_slice_starts_as_its_part_of_the_whole(first, last):
    layout, vector, _ = initial(NETWORK, SHAPE)
    part = NETWORK[first:last]
    _, found, _ = initial(part, shape_before(first))
    np.testing.assert_array_equal(found, vector[layout.span(part.names)])
    assert found.any()


def test_initial_weights_do_not_depend_on_the_other_layers():
    changed = Network([(name, Dropout(0.1) if name == "norm" else layer) for name, layer in NETWORK.layers])
    _, _, weights = initial(NETWORK, SHAPE)
    _, _, others = initial(changed, SHAPE)
    np.testing.assert_array_equal(others["out"]["weight"], weights["out"]["weight"])
    np.testing.assert_array_equal(
        others["block1"]["body"]["conv"]["weight"], weights["block1"]["body"]["conv"]["weight"]
    )


def test_equal_layers_at_different_places_start_differently():
    twice = Network([("a", Residual(Network([("d", Dense(4))]), Network([("d", Dense(4))]))), ("b", Dense(4))])
    _, _, weights = initial(twice, (4,))
    drawn = [weights["a"]["body"]["d"]["weight"], weights["a"]["projection"]["d"]["weight"], weights["b"]["weight"]]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not np.isclose(drawn[one], drawn[other]).any()


def test_slices_in_a_row_compute_what_the_whole_computes():
    built = build(NETWORK, SHAPE)
    x, dy = points((3, *SHAPE)), noise((3, 5))
    y, dx, grads = built.gradients(x, dy, wants_dx=True, update_state=False)
    context = Pass(wants_dx=True, update_state=False)
    parts = [NETWORK[:4], NETWORK[4:6], NETWORK[6:]]
    saved, found = [], x
    for part in parts:
        found, kept = part.forward(built.weights, built.state, found, context)
        saved.append(kept)
    np.testing.assert_array_equal(found, y)
    gathered, slope = np.zeros(built.layout.size), dy
    for part in reversed(parts):
        slope, finish = part.backward(built.weights, saved.pop(), slope, context)
        finish(built.layout.views(gathered))
    np.testing.assert_array_equal(slope, dx)
    np.testing.assert_array_equal(gathered, grads)


def test_finishes_may_run_after_all_backward_calls():
    built = build(NETWORK, SHAPE)
    batches = [(points((3, *SHAPE), seed), noise((3, 5), seed)) for seed in range(3)]
    at_once = [built.gradients(x, dy, update_state=False, batch=i)[2] for i, (x, dy) in enumerate(batches)]
    passes = [built.forward(x, update_state=False, batch=i) for i, (x, _) in enumerate(batches)]
    finishes = [
        NETWORK.backward(built.weights, saved, dy, context)[1]
        for (_, saved, context), (_, dy) in zip(passes, batches, strict=True)
    ]
    for finish, expected in zip(finishes, at_once, strict=True):
        found = np.zeros(built.layout.size)
        finish(built.layout.views(found))
        np.testing.assert_array_equal(found, expected)


def test_without_dx_the_layers_below_the_first_parameters_are_left_out():
    network = Network([("act", Activation("tanh")), ("flat", Flatten()), ("a", Dense(3)), ("b", Dense(2))])
    built = build(network, (2, 2))
    _, saved, context = built.forward(points((3, 2, 2)))
    swept = [(name, dx is None) for name, dx, _ in network.sweep(built.weights, saved, noise((3, 2)), context)]
    assert swept == [("b", False), ("a", True)]
    assert saved == []


@pytest.mark.parametrize("wants_dx", [False, True])
def test_a_residual_gives_none_where_dx_is_not_wanted(wants_dx):
    built = build(block(2), SHAPE)
    _, dx, grads = built.gradients(points((2, *SHAPE)), noise((2, *SHAPE)), wants_dx=wants_dx)
    assert (dx is not None) == wants_dx
    for entry in built.layout:
        if entry.path[-1] != "bias":
            assert grads[entry.slice].all()


def test_parameters_of_a_residual_are_nested():
    names = [entry.name for entry in build(Network([("block", block(3))]), SHAPE).layout]
    assert names == [
        "block/body/conv/weight",
        "block/body/conv/bias",
        "block/body/norm/scale",
        "block/body/norm/shift",
        "block/projection/conv/weight",
        "block/projection/conv/bias",
    ]


def test_an_evaluation_keeps_nothing():
    built = build(NETWORK, SHAPE)
    _, saved, _ = built.forward(points((2, *SHAPE)), training=False)
    assert saved == [None] * len(NETWORK)
    _, saved, _ = built.forward(points((2, *SHAPE)), training=False, gradients=True)
    assert len(arrays(saved)) > len(NETWORK)


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (Network([("a", Dense(3)), ("b", GlobalAveragePool())]), (4,), "b: .* images of shape"),
        (Network([("a", Dense(3))]), (4, 4, 1), "a: .* flatten"),
        (Network([("a", Conv2d(3, 5, padding="valid"))]), (4, 9, 1), "a: a 5x5 kernel is larger"),
        (Network([("a", MaxPool2d(3))]), (2, 9, 1), "a: a 3x3 kernel is larger"),
        (Network([("a", Residual(Network([("b", Dense(3))])))]), (4,), r"a: the body gives .*\(3,\).*\(4,\)"),
    ],
)
def test_shapes_that_a_layer_cannot_take_are_refused_with_its_name(network, shape, message):
    with pytest.raises(ValueError, match=message):
        network.output_shape(shape)


def test_two_layers_of_one_name_are_refused():
    with pytest.raises(ValueError, match="same name"):
        Network([("a", Dense(3)), ("a", Dense(3))])
