"""Pools hand out again what was freed, as CuPy's do: to the same stream at once, also while it is captured."""

from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np
import pytest

UNIT = 512
KERNELS = r"""
extern "C" __global__ void shift(float* out, long long by) { out[threadIdx.x + by] = 1; }
extern "C" __global__ void beyond(const float* x, float* out, long long by) {
    out[threadIdx.x] = x[threadIdx.x + by];
}
"""


@pytest.fixture
def stream() -> Any:
    with cupy.cuda.Stream(non_blocking=True) as made:
        yield made


@pytest.fixture
def pool(stream: Any) -> Iterator[Any]:
    """A pool of its own that arrays come from."""
    made = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(made.malloc):
        yield made


def units(count: int) -> Any:
    """An array of so many units of the allocator."""
    return cupy.empty(count * UNIT, np.uint8)


def place(array: Any) -> int:
    return int(array.data.ptr)


def kernel(name: str) -> Any:
    return cupy.RawModule(code=KERNELS).get_function(name)


def test_what_is_freed_last_is_handed_out_first(pool: Any) -> None:
    first, second, larger = units(1), units(1), units(2)
    places = [place(first), place(second)]
    del first
    del second
    held = [cupy.empty(3), cupy.empty(60)]
    assert [place(array) for array in held] == places[::-1]
    assert place(units(1)) not in (*places, place(larger))


def test_the_smallest_piece_that_fits_is_split_and_becomes_one_again(pool: Any) -> None:
    large, small = units(8), units(3)
    place_large, place_small = place(large), place(small)
    del large
    del small
    one, two, three = units(2), units(1), units(4)
    assert (place(one), place(two), place(three)) == (place_small, place_small + 2 * UNIT, place_large)
    four = units(4)
    assert place(four) == place_large + 4 * UNIT
    assert pool.n_free_blocks() == 0
    del four
    del three
    assert place(units(8)) == place_large


def test_bytes_are_counted(pool: Any) -> None:
    free_before = cupy.cuda.runtime.memGetInfo()[0]
    array, other = cupy.empty(1000, np.uint8), units(1)
    assert (pool.used_bytes(), pool.free_bytes(), pool.total_bytes()) == (3 * UNIT, 0, 3 * UNIT)
    del array
    assert (pool.used_bytes(), pool.free_bytes(), pool.total_bytes()) == (UNIT, 2 * UNIT, 3 * UNIT)
    array = units(1)
    pool.free_all_blocks()
    assert (pool.used_bytes(), pool.free_bytes(), pool.n_free_blocks()) == (2 * UNIT, UNIT, 1)
    del array
    del other
    assert cupy.cuda.runtime.memGetInfo()[0] == free_before - 3 * UNIT
    pool.free_all_blocks()
    assert (pool.used_bytes(), pool.total_bytes(), pool.n_free_blocks()) == (0, 0, 0)
    assert cupy.cuda.runtime.memGetInfo()[0] == free_before


def test_a_full_device_gets_back_what_is_free(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    used = cupy.cuda.runtime.memGetInfo()[1] - cupy.cuda.runtime.memGetInfo()[0]
    monkeypatch.setenv("MPINN_EMULATED_MEMORY", str(used + 4 * UNIT))
    array = units(3)
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
        units(4)
    del array
    assert units(4).size == 4 * UNIT


def test_each_stream_gets_its_own_back(pool: Any, stream: Any) -> None:
    array, other = units(1), cupy.cuda.Stream(non_blocking=True)
    there = place(array)
    with other:
        del array
        assert place(units(1)) != there
    assert place(units(1)) == there


def test_what_is_handed_out_again_is_poisoned(pool: Any) -> None:
    there = place(cupy.zeros(4))
    again = cupy.empty(4)
    assert place(again) == there
    assert np.isnan(again.get()).all()


def test_reuse_in_a_capture(pool: Any, stream: Any) -> None:
    """What is written to an array from outside is lost where the graph has a use for the same bytes before."""
    a, safe = cupy.ones(4), cupy.zeros(4)
    stream.synchronize()
    stream.begin_capture()
    temporary = a + 1
    safe += temporary
    there = place(temporary)
    del temporary
    told = cupy.empty(4)
    safe += told
    graph = stream.end_capture()
    assert place(told) == there
    assert np.isnan(told.get()).all()
    told[...] = 10
    graph.launch()
    assert safe.get().tolist() == [2 + 2] * 4
    with cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc):
        assert place(cupy.empty(4)) != there
    del told
    assert place(cupy.empty(4)) == there


def test_what_a_graph_uses_may_be_given_back_to_the_device(stream: Any) -> None:
    a = cupy.ones(4)
    for how in ("free", "forget"):
        pool = cupy.cuda.MemoryPool()
        with cupy.cuda.using_allocator(pool.malloc):
            stream.begin_capture()
            np.copyto(a, a + 1)
            graph = stream.end_capture()
        graph.launch()
        if how == "free":
            pool.free_all_blocks()
        else:
            del pool
        with pytest.raises(RuntimeError, match="32 bytes that have been freed"):
            graph.launch()


def test_late_work_has_its_values_still(pool: Any, stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPINN_EMULATED_LATE", "1")
    a = cupy.full(4, 5.0)
    there, doubled = place(a), a * 2
    del a
    b = cupy.empty(4)
    untouched = b.copy()
    b[...] = 7
    assert place(b) == there
    assert doubled.get().tolist() == [10] * 4
    assert b.get().tolist() == [7] * 4
    assert np.isnan(untouched.get()).all()


def test_late_work_before_a_capture_has_its_values_still(
    pool: Any, stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPINN_EMULATED_LATE", "1")
    a = cupy.full(4, 5.0)
    there, doubled = place(a), a * 2
    del a
    stream.begin_capture()
    b = cupy.empty(4)
    b += doubled
    graph = stream.end_capture()
    assert place(b) == there
    b[...] = 1
    graph.launch()
    assert b.get().tolist() == [11] * 4


def test_another_stream_may_be_late_if_it_is_waited_for(
    pool: Any, stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPINN_EMULATED_LATE", "1")
    other, out = cupy.cuda.Stream(non_blocking=True), cupy.zeros(4)
    for waits in (True, False):
        a = cupy.full(4, 5.0)
        other.wait_event(stream.record())
        with other:
            out[...] = a
            done = other.record()
        if waits:
            stream.wait_event(done)
        del a
        b = cupy.full(4, 7.0)
        stream.synchronize()
        other.synchronize()
        assert b.get().tolist() == [7] * 4
        assert out.get().tolist() == [5 if waits else 7] * 4


def test_bytes_that_were_used_before_can_be_written_as_soon_as_that_is_done(
    pool: Any, stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPINN_EMULATED_LATE", "1")
    a, other = cupy.zeros(4), cupy.cuda.Stream(non_blocking=True)
    before = stream.record()
    del a
    b = cupy.empty(4)
    other.wait_event(before)
    with other:
        b[...] = 3
    other.synchronize()
    assert b.get().tolist() == [3] * 4


def test_neighbours_are_not_written_and_not_read(pool: Any, stream: Any) -> None:
    there = place(units(2))
    first, second = (cupy.full(UNIT // 4, value, np.float32) for value in (5, 6))
    assert (place(first), place(second)) == (there, there + UNIT)
    kernel("shift")((1,), (64,), (first, 64))
    stream.synchronize()
    with pytest.raises(RuntimeError, match="kernel shift wrote out of bounds of argument 0, a block of 512 bytes"):
        finish("shift", first, 128)
    assert (second == 6).all()
    out = cupy.zeros(64, np.float32)
    finish("beyond", first, out, 96)
    assert out.get()[:32].tolist() == [1] * 32
    assert np.isnan(out.get()[32:]).all()


def finish(name: str, *arguments: Any) -> None:
    kernel(name)((1,), (64,), arguments)
    cupy.cuda.get_current_stream().synchronize()


def test_later_blocks_around_those_of_a_graph_are_left_alone(pool: Any, stream: Any) -> None:
    shift = kernel("shift")
    stream.begin_capture()
    small = cupy.empty(64, np.float32)
    shift((1,), (64,), (small, 0))
    there = place(small)
    del small
    larger = cupy.empty(128, np.float32)
    larger[64:] = 2
    graph = stream.end_capture()
    assert place(larger) == there
    for _ in range(2):
        graph.launch()
        assert larger.get().tolist() == [1] * 64 + [2] * 64
