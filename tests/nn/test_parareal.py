"""Parareal networks: when they are the network that was cut, their exact gradients, and what depends on what."""

import numpy as np
import pytest
from layer_examples import build, central_difference, noise, points, relative_error
from parareal_examples import FORMS, WIDTHS, grid, noisy, parareal, serial

from mpinn.nn import sweeps
from mpinn.nn.block import Block
from mpinn.nn.dense import Dense
from mpinn.nn.layer import Pass
from mpinn.nn.network import Network
from mpinn.nn.parareal import Parareal

TOLERANCE = 1e-7


def cut(built, count, **options):
    """The network that was cut, with the weights of the fine blocks."""
    whole = build(serial(count, **options), (WIDTHS[0],))
    for name, views in whole.weights.items():
        source = built.weights if name == "output" else built.weights[f"fine{name[1]}"]
        for parameter, view in views.items():
            view[...] = source[name][parameter]
    return whole


def interfaces(built, x, monkeypatch):
    """Every (way, interface, sweep) that is sent in a forward pass, and the output."""
    sent = {}

    class Listening(dict):
        def __setitem__(self, key, array):
            sent[key] = array.copy()
            super().__setitem__(key, array)

    original, shared = Parareal._links, Listening()
    with monkeypatch.context() as patch:
        patch.setattr(Parareal, "_links", lambda self, block, like, letters: original(self, block, like, shared))
        y, *_ = built.forward(x)
    return sent, y


# When it is the network that was cut


@pytest.mark.parametrize("form", FORMS)
def test_one_block_is_the_network_bit_for_bit(form):
    built = build(parareal(1, form), (3,))
    whole = cut(built, 1)
    x, dy = points((4, 3)), noise((4, 2))
    for found, expected in zip(
        built.gradients(x, dy, wants_dx=True), whole.gradients(x, dy, wants_dx=True), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_affine_blocks_with_their_linear_parts_are_exact_for_any_predictors(count, form):
    layers = [Network([("a", Dense(width))]) for width in WIDTHS[1:]]
    blocks = []
    for j in range(1, count + 1):
        guess = Network([("any", Dense(WIDTHS[j - 1], "tanh"))]) if j > 1 else None
        linear = Network([("a", Dense(WIDTHS[j], bias=False))]) if j > 1 else None
        blocks.append(Block(j, count, (WIDTHS[j - 1],), layers[j - 1], guess, linear, form=form))
    built = build(Parareal(blocks), (3,))
    expected = x = points((4, 3))
    for j in range(1, count + 1):
        affine = built.weights[f"fine{j}"]["a"]
        if j > 1:
            built.weights[f"coarse{j}"]["a"]["weight"][...] = affine["weight"]
        expected = expected @ affine["weight"] + affine["bias"]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(built.forward(x)[0], expected, rtol=0, atol=1e-13 * scale)
    built.weights[f"fine{count}"]["a"]["weight"][0, 0] += 1e-3
    assert np.abs(built.forward(x)[0] - expected).max() > 1e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_exact_predictors_give_the_network_bit_for_bit(count, form):
    prefix = serial(count, head=False)
    built = build(parareal(count, form, predictor=lambda j: prefix[: 2 * j - 2]), (3,))
    for j in range(2, count + 1):
        for name, views in built.weights[f"predictor{j}"].items():
            for parameter, view in views.items():
                view[...] = built.weights[f"fine{name[1]}"][name][parameter]
    x = points((4, 3))
    np.testing.assert_array_equal(built.forward(x)[0], cut(built, count).forward(x)[0])
    built.weights["predictor2"]["a1"]["weight"][0, 0] += 1e-3
    assert (built.forward(x)[0] != cut(built, count).forward(x)[0]).all()


def imitated(count, form, iterations=1):
    """Coarse networks that are the fine ones, without bias."""
    blocks = []
    for j in range(1, count + 1):
        same = Network([("a", Dense(WIDTHS[j], "tanh", bias=False))])
        guess = Network([("any", Dense(WIDTHS[j - 1], "tanh"))]) if 1 < j <= count - iterations + 1 else None
        coarse = same if j > 1 and iterations < count else None
        blocks.append(Block(j, count, (WIDTHS[j - 1],), same, guess, coarse, form=form, iterations=iterations))
    built = build(Parareal(blocks), (3,))
    for j in range(2, count + 1):
        if iterations < count:
            built.weights[f"coarse{j}"]["a"]["weight"][...] = built.weights[f"fine{j}"]["a"]["weight"]
    return built


@pytest.mark.parametrize(("count", "iterations"), [(2, 1), (3, 1), (4, 1), (3, 2), (4, 3)])
def test_the_difference_form_is_exact_where_the_coarse_networks_are_the_fine_ones(count, iterations):
    built = imitated(count, "difference", iterations)
    expected = x = points((4, 3))
    for j in range(1, count + 1):
        expected = np.tanh(expected @ built.weights[f"fine{j}"]["a"]["weight"])
    np.testing.assert_allclose(built.forward(x)[0], expected, rtol=0, atol=1e-14)
    residual = imitated(count, "residual", iterations).forward(x)[0]
    assert np.abs(residual - expected).max() > 1e-3


@grid(2, 3, 4)
def test_after_k_sweeps_interfaces_up_to_k_are_exact_to_the_last_bit(count, form, iterations, monkeypatch):
    built = build(parareal(count, form, iterations, head=False), (3,))
    whole = cut(built, count, head=False)
    x = points((4, 3))
    sent, y = interfaces(built, x, monkeypatch)
    for j in range(1, min(iterations, count - 1) + 1):
        exact = whole.layer[: 2 * j].forward(whole.weights, whole.state, x, Pass())[0]
        np.testing.assert_array_equal(sent["fine", j, j], exact)
        assert ("coarse", j, j) not in sent  # a coarse value would be zero: u_j is y_j
    serial_y = whole.forward(x)[0]
    assert np.array_equal(y, serial_y) == (iterations == count)
    # and sweeps that compute nothing new are left out
    for j in range(1, count):
        assert [s for way, i, s in sent if (way, i) == ("fine", j)] == [*built.layer.blocks[j - 1].sweeps]


@pytest.mark.parametrize("form", FORMS)
def test_more_sweeps_come_closer(form):
    x = points((4, 3))
    errors = []
    for iterations in (1, 2, 3, 4):
        built = imitated(4, form, iterations)
        expected = x
        for j in range(1, 5):
            expected = np.tanh(expected @ built.weights[f"fine{j}"]["a"]["weight"])
        errors.append(np.abs(built.forward(x)[0] - expected).max())
    assert errors[-1] == 0
    if form == "residual":
        assert errors[0] > errors[1] > errors[2] > 1e-6
    else:
        assert max(errors) < 1e-14


def test_a_sweep_is_the_formula():
    """The paper's form and the classical one, written out for three blocks."""
    for form in FORMS:
        built = build(parareal(3, form, head=False), (3,))
        w, x = built.weights, points((4, 3))

        def dense(tree, u):
            return np.tanh(u @ tree["weight"] + tree.get("bias", 0))

        def g(j, u, w=w):
            return dense(w[f"fine{j}"][f"b{j}"], dense(w[f"fine{j}"][f"a{j}"], u))

        def big_f(j, u, w=w):
            return dense(w[f"coarse{j}"]["small"], u)

        x2, x3 = (dense(w[f"predictor{j}"]["guess"], x) for j in (2, 3))
        y1, y2, y3 = g(1, x), g(2, x2), g(3, x3)
        if form == "residual":
            r1, r2 = y1 - x2, y2 - x3
            expected = y3 + big_f(3, r2 + big_f(2, r1))
        else:
            u1 = y1
            u2 = y2 + big_f(2, u1) - big_f(2, x2)
            expected = y3 + big_f(3, u2) - big_f(3, x3)
        np.testing.assert_allclose(built.forward(x)[0], expected, rtol=0, atol=1e-14)


# Gradients


def value_of(built, x, dy):
    return lambda: float(np.vdot(built.forward(x, update_state=False)[0], dy))


@grid(1, 2, 3, more=[(4, "residual", 3), (4, "difference", 2)])
def test_gradients_of_every_network_are_exact(count, form, iterations):
    built = build(parareal(count, form, iterations), (3,))
    x, dy = points((2, 3)), noise((2, 2))
    _, dx, grads = built.gradients(x, dy, wants_dx=True)
    value = value_of(built, x, dy)
    assert relative_error(dx, central_difference(value, x)) < TOLERANCE
    slope = central_difference(value, built.vector)
    for entry in built.layout:
        assert relative_error(grads[entry.slice], slope[entry.slice]) < TOLERANCE, entry.name
        assert np.abs(slope[entry.slice]).max() > 1e-6, entry.name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("iterations", [1, 2])
def test_without_the_term_of_the_error_the_gradient_of_predictors_is_wrong(form, iterations, monkeypatch):
    built = build(parareal(4, form, iterations), (3,))
    x, dy = points((3, 3)), noise((3, 2))
    slope = central_difference(value_of(built, x, dy), built.vector)
    with monkeypatch.context() as patch:
        patch.setattr(sweeps.BackwardSweeps, "back_coarse", dropped(sweeps.BackwardSweeps.back_coarse))
        _, _, grads = built.gradients(x, dy)
    wrong = {e.path[0] for e in built.layout if relative_error(grads[e.slice], slope[e.slice]) > 1e-3}
    predictors = {f"predictor{j}" for j in range(2, 5) if j <= 4 - iterations + 1}
    assert predictors <= wrong
    if iterations == 1:
        assert wrong == predictors


def dropped(original):
    def without(self, *arguments):
        less, arrived = original(self, *arguments)
        return np.zeros_like(less), arrived

    return without


@pytest.mark.parametrize(("count", "form", "iterations"), [(3, "residual", 1), (3, "difference", 2)])
def test_gradients_with_dropout_and_batch_norm(count, form, iterations):
    network = noisy(count, form, iterations)
    built = build(network, (3,))
    x, dy = points((6, 3)), noise((6, 3))
    _, dx, grads = built.gradients(x, dy, wants_dx=True, update_state=False, seed=4)
    value = lambda: float(np.vdot(built.forward(x, update_state=False, seed=4)[0], dy))  # noqa: E731
    assert relative_error(dx, central_difference(value, x)) < TOLERANCE
    slope = central_difference(value, built.vector)
    for entry in built.layout:
        assert relative_error(grads[entry.slice], slope[entry.slice]) < TOLERANCE, entry.name


# What depends on what


def changed(built, name, x, monkeypatch):
    """What is sent otherwise when a weight of the named network moves, and whether the output does."""
    before, y = interfaces(built, x, monkeypatch)
    view = next(iter(built.weights[name].values()))["weight"]
    view[0, 0] += 0.01
    after, moved = interfaces(built, x, monkeypatch)
    view[0, 0] -= 0.01
    return {key[:2] for key in before if not np.array_equal(before[key], after[key])}, not np.array_equal(y, moved)


@pytest.mark.parametrize("form", FORMS)
def test_a_fine_block_moves_no_other_and_the_errors_after_it(form, monkeypatch):
    built = build(parareal(4, form), (3,))
    moved, output = changed(built, "fine1", points((4, 3)), monkeypatch)
    assert moved == {("fine", 1), ("coarse", 2), ("coarse", 3)}
    assert output
    moved, _ = changed(built, "fine3", points((4, 3)), monkeypatch)
    assert moved == {("fine", 3)}


@pytest.mark.parametrize("form", FORMS)
def test_a_predictor_moves_its_own_fine_block_and_the_error_before_it(form, monkeypatch):
    built = build(parareal(4, form), (3,))
    moved, output = changed(built, "predictor4", points((4, 3)), monkeypatch)
    assert moved == set()  # y_4 and the error at interface 3 stay on the last block
    assert output
    moved, _ = changed(built, "predictor2", points((4, 3)), monkeypatch)
    assert moved == {("fine", 2), ("coarse", 2), ("coarse", 3)}
