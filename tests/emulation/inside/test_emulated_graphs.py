"""Captures record and do nothing; launches do it, on the same memory."""

from collections.abc import Callable
from typing import Any

import cupy
import cupyx
import numpy as np
import pytest

from mpinn.array.cuda_graph import Recorder
from mpinn.errors import LocalError

runtime = cupy.cuda.runtime


@pytest.fixture
def stream() -> Any:
    with cupy.cuda.Stream(non_blocking=True) as made:
        yield made


def test_a_capture_records(stream: Any) -> None:
    code = 'extern "C" __global__ void twice(double* x) { x[threadIdx.x] *= 2; }'
    twice = cupy.RawModule(code=code).get_function("twice")
    pool = cupy.cuda.MemoryPool()
    a, b = cupy.zeros(4), cupy.zeros(4)
    mail = cupyx.empty_pinned((4,), np.float64)
    with cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        assert stream.is_capturing()
        a += 1
        twice((1,), (4,), (a,))
        c = (a * 10)[1:] + np.arange(3, like=a)
        b[...] = 5
        b[1:] = c
        np.copyto(b, 7, where=a < 0)
        runtime.memcpyAsync(mail.ctypes.data, b.data.ptr, 32, runtime.memcpyDeviceToHost, stream.ptr)
        graph = stream.end_capture()
    assert not stream.is_capturing()
    assert not a.get().any()
    assert not b.get().any()
    graph.launch()
    stream.synchronize()
    assert a.get().tolist() == [2] * 4
    assert mail.tolist() == [5, 20, 21, 22]
    graph.launch(stream)
    stream.synchronize()
    assert a.get().tolist() == [6] * 4
    assert mail.tolist() == [5, 60, 61, 62]


WAITING: dict[str, Callable[[Any, Any], Any]] = {
    "get": lambda a, s: a.get(),
    "float": lambda a, s: float(a[0]),
    "bool": lambda a, s: bool(a[0] == 0),
    "stream": lambda a, s: s.synchronize(),
    "device": lambda a, s: cupy.cuda.Device().synchronize(),
    "asarray": lambda a, s: cupy.asarray(np.ones(3)),
    "set": lambda a, s: a.set(np.ones(4)),
    "mask": lambda a, s: a[a > 0],
    "nonzero": lambda a, s: np.flatnonzero(a),
    "print": lambda a, s: str(a),
    "event": lambda a, s: s.record().synchronize(),
}


@pytest.mark.parametrize("how", WAITING)
def test_nothing_waits_in_a_capture(how: str, stream: Any) -> None:
    a = cupy.zeros(4)
    stream.synchronize()
    stream.begin_capture()
    try:
        with pytest.raises(runtime.CUDARuntimeError, match="Unsupported: operation not permitted when"):
            WAITING[how](a, stream)
    finally:
        stream.end_capture()


def test_a_graph_does_not_own_memory(stream: Any) -> None:
    a = cupy.zeros(4)
    stream.begin_capture()
    a += 1
    graph = stream.end_capture()
    graph.launch()
    del a
    with pytest.raises(RuntimeError, match="32 bytes that have been freed"):
        graph.launch()


def test_streams_fork_and_join_in_a_capture(stream: Any) -> None:
    a, other = cupy.zeros(4), cupy.cuda.Stream(non_blocking=True)
    stream.synchronize()
    stream.begin_capture()
    other.wait_event(stream.record())
    with other:
        a += 1
    with pytest.raises(runtime.CUDARuntimeError, match="unjoined"):
        stream.end_capture()
    stream.begin_capture()
    other.wait_event(stream.record())
    with other:
        a += 1
    stream.wait_event(other.record())
    graph = stream.end_capture()
    graph.launch()
    assert a.get().tolist() == [1] * 4


def test_the_null_stream_cannot_be_captured() -> None:
    with pytest.raises(RuntimeError, match="legacy"):
        cupy.cuda.Stream.null.begin_capture()


def test_copies_between_places_on_the_device(stream: Any) -> None:
    a, b = cupy.arange(8.0), cupy.zeros(8)
    runtime.memcpyAsync(b.data.ptr + 16, a.data.ptr, 24, runtime.memcpyDeviceToDevice, stream.ptr)
    assert b.get().tolist() == [0, 0, 0, 1, 2, 0, 0, 0]
    with pytest.raises(runtime.CUDARuntimeError):
        runtime.memcpyAsync(b.data.ptr, a.data.ptr, 999, runtime.memcpyDeviceToDevice, stream.ptr)
    with pytest.raises(runtime.CUDARuntimeError):
        runtime.memcpyAsync(b.data.ptr, a.data.ptr, 8, runtime.memcpyHostToDevice, stream.ptr)


def test_events_measure_time(stream: Any) -> None:
    first, last = cupy.cuda.Event(), cupy.cuda.Event()
    first.record(stream)
    last.record(stream)
    last.synchronize()
    assert cupy.cuda.get_elapsed_time(first, last) >= 0


def test_late_work_reads_pinned_memory_late(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPINN_EMULATED_LATE", "1")
    pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(32), np.float64)
    pinned[...] = 1
    a, b = cupy.zeros(4), cupy.zeros(4)
    a.set(pinned)
    pinned[...] = 2  # too early: the copy may not have begun
    b.set(np.full(4, 3.0))
    assert a.get().tolist() == [2] * 4
    assert b.get().tolist() == [3] * 4


def test_a_full_device_takes_no_memory_from_recorded_work(monkeypatch: pytest.MonkeyPatch, stream: Any) -> None:
    """What is free in the pool of a graph is used by what was recorded before."""
    recorder, x = Recorder(), cupy.zeros(4, np.float32)

    def times(count: int, size: int) -> Any:
        def work(inputs: Any, *others: Any) -> Any:
            total = inputs[0].copy()
            for value in range(count):
                temporary = cupy.empty(size, np.float32)
                temporary[...] = value
                total += temporary[:4]
                del temporary
            return total

        return lambda: float(recorder(size, (x,), lambda path: (), work)[0])

    small, large = times(3, 1 << 20), times(2, 3 << 20)
    assert [small(), small(), large()] == [3, 3, 1]
    cupy.get_default_memory_pool().free_all_blocks()
    free, total = runtime.memGetInfo()
    # enough for the large one with what the small one has, but not besides it
    monkeypatch.setenv("MPINN_EMULATED_MEMORY", str(total - free + (9 << 20)))
    with pytest.raises(LocalError, match=r"the GPU is full while a step is recorded, .*: 12,582,912 bytes more"):
        large()
    assert not stream.is_capturing()
    monkeypatch.delenv("MPINN_EMULATED_MEMORY")
    assert [small(), large(), large()] == [3, 1, 1]
