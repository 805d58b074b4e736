"""The pool never hands out what somebody still holds, and stops growing once every buffer has been there."""

import gc
from itertools import count

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mpinn.array.pool import SMALL, Pool, RestingPool

FLOATS = np.dtype(np.float32)
SHAPES = [(SMALL // 4,), (SMALL // 4 + 1,), (2, SMALL // 4), (3,)]

actions = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.sampled_from(SHAPES)),
        st.tuples(st.just("view"), st.integers(0, 20)),
        st.tuples(st.just("drop"), st.integers(0, 20)),
    ),
    max_size=40,
)


@given(actions)
@settings(max_examples=150, deadline=None)
def test_a_busy_buffer_is_never_handed_out(script):
    pool, held = Pool(), []
    for number, (action, what) in enumerate(script):
        if action == "take":
            array = pool.empty(what, FLOATS)
            array.fill(number)
            held.append((array, number))
        elif held and action == "view":
            # a slice of a reshaped view keeps the buffer just as well
            array, mark = held[what % len(held)]
            held[what % len(held)] = (array.reshape(-1)[1:].reshape(1, -1), mark) if array.size > 1 else (array, mark)
        elif held:
            del held[what % len(held)]
        for array, mark in held:
            assert (array == mark).all()


@given(st.lists(st.sampled_from(SHAPES), max_size=12))
@settings(max_examples=50, deadline=None)
def test_the_second_step_takes_nothing_new(shapes):
    pool = Pool()
    for step in range(4):
        taken = [pool.empty(shape, FLOATS) for shape in shapes]
        assert len({array.ctypes.data for array in taken}) == len(taken)
        del taken
        gc.collect(0)
        if step == 0:
            held = pool.nbytes
        assert pool.nbytes == held
    assert held == sum(4 * np.prod(shape) for shape in shapes if 4 * np.prod(shape) >= SMALL)


def test_a_buffer_comes_back_once_its_last_view_is_gone():
    pool = Pool()
    array = pool.empty((SMALL,), FLOATS)
    place, view = array.ctypes.data, array[10:20]
    del array
    assert pool.empty((SMALL,), FLOATS).ctypes.data != place
    del view
    assert place in {pool.empty((SMALL,), FLOATS).ctypes.data for _ in range(2)}


def test_shape_and_type_are_as_asked():
    pool = Pool()
    for dtype in (np.float32, np.float64, np.bool_, np.uint32):
        array = pool.empty((300, 300), np.dtype(dtype))
        assert (array.shape, array.dtype) == ((300, 300), np.dtype(dtype))
        assert array.flags.c_contiguous
        assert array.flags.writeable


def base(array):
    return array.ctypes.data


@given(actions)
@settings(max_examples=150, deadline=None)
def test_a_buffer_that_rested_was_asked_for_nothing_since_its_event(script):
    """Whoever has a buffer asks the device for something with it at any time, and last when it gives it back."""
    clock, asked, held = count(), {}, []
    pool = RestingPool(np, lambda: next(clock))
    for action, what in script:
        if action == "take":
            array, event = pool.rested(what, FLOATS)
            assert all(not np.shares_memory(array, other) for other in held)
            assert asked.get(base(array), -1) < event
            held.append(array)
        elif held:
            asked[base(held[what % len(held)])] = next(clock)
            if action == "drop":
                del held[what % len(held)]


def test_buffers_rest_for_one_call_and_are_no_more_than_that_takes():
    clock = count()
    pool = RestingPool(np, lambda: next(clock))
    held, ages = [], []
    for call in range(12):
        array, event = pool.rested((3,), FLOATS)
        held.append(array)
        ages.append(call - event)
        del array, held[:-2]
    # two are in use, and one rests
    assert len(list(pool)) == 4
    assert ages == [0, 0, 0, 0, *[1] * 8]
