"""Graphs of replicas and the matrix of their mixing."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpinn.consensus.graphs import GRAPHS, Neighbours, complete, metropolis, ring, sides, torus

REPLICAS = range(1, 26)
EPS = np.finfo(float).eps


def matrix(neighbours, replicas: int) -> np.ndarray:
    found = np.zeros((replicas, replicas))
    for s in range(replicas):
        for r, share in metropolis(neighbours, s):
            found[s, r] = share
    return found


def test_neighbours_of_a_ring() -> None:
    assert [ring(5, r) for r in range(5)] == [(1, 4), (0, 2), (1, 3), (2, 4), (0, 3)]
    assert [ring(2, r) for r in range(2)] == [(1,), (0,)]
    assert ring(1, 0) == ()


def test_neighbours_on_a_torus() -> None:
    # 0 1 2 3
    # 4 5 6 7
    # 8 9 10 11
    assert torus(12, 5) == (1, 4, 6, 9)
    assert torus(12, 0) == (1, 3, 4, 8)
    assert torus(6, 0) == (1, 2, 3)
    assert torus(4, 0) == (1, 2)
    assert torus(2, 1) == (0,)


def test_a_torus_is_nearly_square_and_of_a_prime_number_a_ring() -> None:
    assert [sides(n) for n in (1, 2, 3, 4, 6, 12, 16, 18, 24)] == [
        *((1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 4), (4, 4), (3, 6), (4, 6)),
    ]
    for prime in (2, 3, 5, 7, 13):
        assert [torus(prime, r) for r in range(prime)] == [ring(prime, r) for r in range(prime)]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("replicas", REPLICAS)
def test_a_graph_is_symmetric_and_connected(name: str, replicas: int) -> None:
    graph = partial(GRAPHS[name], replicas)
    reached, border = {0}, {0}
    while border:
        border = {r for s in border for r in graph(s)} - reached
        reached |= border
    assert reached == set(range(replicas))
    for s in range(replicas):
        assert s not in graph(s)
        assert list(graph(s)) == sorted(set(graph(s)))
        assert all(s in graph(r) for r in graph(s))


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("replicas", REPLICAS)
def test_mixing_is_symmetric_doubly_stochastic_and_contracts(name: str, replicas: int) -> None:
    a = matrix(partial(GRAPHS[name], replicas), replicas)
    np.testing.assert_array_equal(a, a.T)
    np.testing.assert_allclose(a.sum(axis=1), 1, rtol=0, atol=4 * EPS)
    assert (np.diag(a) > 0).all()
    sigma = np.linalg.svd(a, compute_uv=False)
    assert sigma[0] == pytest.approx(1, abs=1e-12)
    assert replicas == 1 or sigma[1] < 1 - 1e-3


def test_on_a_complete_graph_all_weigh_exactly_the_same() -> None:
    for replicas in REPLICAS:
        a = matrix(partial(complete, replicas), replicas)
        assert (a == 1 / replicas).all()


@st.composite
def graphs(draw: st.DrawFn) -> list[Neighbours]:
    size = draw(st.integers(1, 9))
    pairs = [(s, r) for s in range(size) for r in range(s)]
    edges = draw(st.sets(st.sampled_from(pairs))) if pairs else set()
    return [tuple(r for r in range(size) if (s, r) in edges or (r, s) in edges) for s in range(size)]


@settings(max_examples=60)
@given(graphs())
def test_metropolis_is_doubly_stochastic_on_any_graph(lists: list[Neighbours]) -> None:
    a = matrix(lists.__getitem__, len(lists))
    np.testing.assert_array_equal(a, a.T)
    np.testing.assert_allclose(a.sum(axis=0), 1, rtol=0, atol=4 * EPS)
    assert (a >= 0).all()
    for s, around in enumerate(lists):
        for r in around:
            assert a[s, r] == 1 / (1 + max(len(around), len(lists[r])))


def test_a_star_by_hand() -> None:
    lists = [(1, 2, 3), (0,), (0,), (0,)]
    assert metropolis(lists.__getitem__, 0) == [(0, 0.25), (1, 0.25), (2, 0.25), (3, 0.25)]
    assert metropolis(lists.__getitem__, 2) == [(0, 0.25), (2, 0.75)]
