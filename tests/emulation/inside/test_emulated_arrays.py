"""Arrays of the stand-in: as strict as CuPy's, views that keep their owners, the same numbers as NumPy's."""

import operator
from collections.abc import Callable
from typing import Any

import cupy
import cupyx
import numpy as np
import pytest
from cupyx.scipy.special import erf

from mpinn.array import ops
from mpinn.array.pool import SMALL, Pool


@pytest.fixture
def pair() -> tuple[Any, Any]:
    """An array of the host, and the same on the device."""
    host = np.arange(12, dtype=np.float32).reshape(3, 4)
    return host, cupy.asarray(host)


MIXED: dict[str, Callable[[Any, Any], Any]] = {
    "operator": operator.add,
    "operator the other way": lambda h, d: d + h,
    "in place": lambda h, d: operator.iadd(d, h),
    "in place the other way": lambda h, d: operator.iadd(h, d),
    "comparison": lambda h, d: h < d,
    "product": lambda h, d: d @ h.T,
    "ufunc": np.maximum,
    "ufunc out": lambda h, d: np.negative(h, out=d),
    "ufunc out the other way": lambda h, d: np.negative(d, out=h),
    "ufunc where": lambda h, d: np.negative(d, out=d, where=d > 0),
    "ufunc where of a product": lambda h, d: np.matmul(d, d.T, out=d @ d.T, where=True),
    "ufunc of one number in an array": lambda h, d: np.add(d, np.array(2.0)),
    "ufunc axis": lambda h, d: np.add(d, d, axis=0),
    "set": lambda h, d: d.__setitem__(0, h[0]),
    "set the other way": lambda h, d: h.__setitem__(0, d[0]),
    "index": lambda h, d: d[np.arange(2)],
    "mask": lambda h, d: d[h > 3],
    "copyto": lambda h, d: np.copyto(d, h),
    "copyto the other way": np.copyto,
    "concatenate": lambda h, d: np.concatenate([h, d]),
    "where": lambda h, d: np.where(h > 1, d, d),
    "dot": lambda h, d: np.dot(d, h.T),
    "sum out": lambda h, d: np.sum(d, axis=0, out=h[0]),
    "implicit": lambda h, d: np.asarray(d),
    "function of CuPy": lambda h, d: cupy.sqrt(h),
    "reduce": lambda h, d: np.add.reduce(d),
    "accumulate": lambda h, d: np.maximum.accumulate(d),
    "argument that CuPy lacks": lambda h, d: np.sum(d, initial=1),
    "function that CuPy lacks": lambda h, d: np.lexsort((d,)),
    "list": lambda h, d: np.add(d, [1, 2, 3, 4]),
}


@pytest.mark.parametrize("how", MIXED)
def test_host_and_device_do_not_mix(how: str, pair: tuple[Any, Any]) -> None:
    with pytest.raises(TypeError):
        MIXED[how](*pair)


SAME: dict[str, Callable[[Any], Any]] = {
    "numbers": lambda x: 2 * x + np.float32(1) - x / np.float64(3),
    "sum": lambda x: x.sum(axis=0, dtype=np.float64),
    "mean": lambda x: np.mean(x, axis=1, keepdims=True),
    "matmul": lambda x: np.matmul(x, x.T),
    "tensordot": lambda x: np.tensordot(x, x, axes=([0], [0])),
    "argmax": lambda x: x.argmax(axis=1),
    "frexp": lambda x: np.frexp(x)[1],
    "ldexp": lambda x: np.ldexp(x, 2),
    "where": lambda x: np.where(x > 3, x, 0),
    "concatenate": lambda x: np.concatenate([x, x], axis=1),
    "arange": lambda x: np.arange(2, 9, 3, like=x),
    "zeros": lambda x: np.zeros((2, 3), np.float64, like=x),
    "empty_like": lambda x: np.full_like(x, 7, shape=(2, 2)),
    "fancy index": lambda x: x[np.arange(3, like=x), np.arange(3, like=x)],
    "mask": lambda x: x[x > 4],
    "views": lambda x: x.T[1:, ::-1].reshape(-1),
    "isfinite": lambda x: np.isfinite(x).all(),
    "clip": lambda x: np.clip(x, 2, 5),
    "windows": lambda x: np.lib.stride_tricks.sliding_window_view(x, (2, 2)).sum(axis=(2, 3)),
    "types": lambda x: (x.astype(np.int32) << 2) % 7,
    "0 dimensions": lambda x: x[1, 2],
}


@pytest.mark.parametrize("what", SAME)
def test_the_numbers_are_numpys(what: str, pair: tuple[Any, Any]) -> None:
    host, device = map(SAME[what], pair)
    assert isinstance(device, cupy.ndarray)
    assert (device.dtype, device.shape) == (host.dtype, host.shape)
    np.testing.assert_array_equal(device.get(), host)


def test_views_keep_the_root_busy(pair: tuple[Any, Any]) -> None:
    device = pair[1]
    assert device.base is None
    for view in (device[...], device[1], device.T, device[1:][:, 2], device.reshape(4, 3), device.view(np.int32)):
        assert view.base is device
        assert view.data.ptr == device.data.ptr + view.data.ptr - device.data.ptr
    assert device[1:].data.ptr == device.data.ptr + 16
    assert device.T.reshape(-1).base is None
    assert device.__cuda_array_interface__["data"][0] == device.data.ptr
    assert device.__cuda_array_interface__["strides"] is None
    assert device.T.__cuda_array_interface__["strides"] == (4, 16)


def test_a_pool_takes_arrays_back() -> None:
    pool = Pool(cupy)
    first = pool.empty((SMALL,), np.dtype(np.float32))
    place, part = first.data.ptr, first[3:]
    assert pool.empty((SMALL,), np.dtype(np.float32)).data.ptr != place
    del first
    held = [pool.empty((SMALL,), np.dtype(np.float32)) for _ in range(2)]
    assert place not in [array.data.ptr for array in held]
    del part
    assert pool.empty((SMALL,), np.dtype(np.float32)).data.ptr == place


def test_plain_kernels_give_the_same() -> None:
    rng = np.random.default_rng(1)
    logits, target = rng.standard_normal((8, 10)), rng.integers(0, 10, 8)
    loss, gradient = ops.cross_entropy(logits, target, 0.1, Pool())
    found, slope = ops.cross_entropy(cupy.asarray(logits), cupy.asarray(target), 0.1, Pool(cupy))
    assert float(found) == loss
    np.testing.assert_array_equal(slope.get(), gradient)


def test_transfers_are_explicit_and_exact(pair: tuple[Any, Any]) -> None:
    host, device = pair
    pinned = cupyx.empty_pinned((3, 4), np.float32)
    pinned[...] = -host
    device.set(pinned)
    np.testing.assert_array_equal(device.get(), -host)
    np.testing.assert_array_equal(cupy.asnumpy(device[:, 1]), -host[:, 1])
    with pytest.raises(TypeError):
        device.set(host.astype(np.float64))
    with pytest.raises(ValueError, match="mismatch"):
        device.set(host[0])
    assert float(device[0, 1]) == -1
    assert bool(cupy.asarray(True))
    assert np.isnan(cupy.empty(3).get()).all()


def test_pinned_memory_arrives_when_somebody_waits(pair: tuple[Any, Any]) -> None:
    host, device = pair
    stream = cupy.cuda.Stream(non_blocking=True)
    pinned = cupyx.empty_pinned((3, 4), np.float32)
    event = cupy.cuda.Event()
    with stream:
        stream.wait_event(cupy.cuda.Stream.null.record())
        doubled = device * 2
        doubled.get(out=pinned, blocking=False)
        event.record()
    event.synchronize()
    np.testing.assert_array_equal(pinned, 2 * host)
    assert event.done


def test_an_error_function_of_each_element() -> None:
    x = cupy.asarray(np.array([-1.0, 0.0, 0.5]))
    y = cupy.empty_like(x)
    erf(x, out=y)
    np.testing.assert_allclose(y.get(), [-0.8427007929, 0.0, 0.5204998778], atol=1e-9)


def test_devices_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPINN_EMULATED_GPUS", "2")
    with cupy.cuda.Device(1):
        away = cupy.zeros(3)
    assert away.device.id == 1
    with pytest.raises(ValueError, match="current device"):
        away + 1
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        cupy.cuda.Device(2).use()


def test_a_device_can_be_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPINN_EMULATED_MEMORY", "1000000")
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
        cupy.empty(1000000)
