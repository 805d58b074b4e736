"""CUDA C on the host: barriers, shuffles, shared memory, arguments, and what a device would do wrong in silence."""

import cupy
import numpy as np
import pytest

SOURCE = r"""
#include <cuda_runtime.h>
#define KERNEL extern "C" __global__ void
typedef REAL Real;

KERNEL __launch_bounds__(256) sum(const Real* __restrict__ x, double* out, long long n) {
    __shared__ double scratch[256];
    extern __shared__ __align__(16) double more[];
    unsigned own = threadIdx.x;
    double value = 0;
    for (long long i = blockIdx.x * blockDim.x + own; i < n; i += gridDim.x * blockDim.x) value += x[i];
    scratch[own] = more[own] = value;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (own < half) {
            scratch[own] += scratch[own + half];
            more[own] += more[own + half];
        }
        __syncthreads();
    }
    if (own == 0) atomicAdd(out, (scratch[0] + more[0]) / 2);
}

KERNEL warps(const Real* x, Real* sums, unsigned* odd) {
    Real value = x[threadIdx.x];
    for (int by = 16; by > 0; by /= 2) value += __shfl_down_sync(0xffffffffu, value, by);
    Real all = x[threadIdx.x];
    for (int by = 16; by > 0; by /= 2) all += __shfl_xor_sync(0xffffffffu, all, by);
    unsigned votes = __ballot_sync(0xffffffffu, threadIdx.x % 2);
    if (threadIdx.x % 32 == 0) {
        sums[threadIdx.x / 32] = value == all ? value : -1;
        odd[threadIdx.x / 32] = votes;
    }
}

KERNEL place(int* out) {
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1000 * block + thread;
}

KERNEL unwritten(float* out) {
    __shared__ float scratch[32];
    if (threadIdx.x == 0) scratch[1] = 1;
    __syncthreads();
    out[threadIdx.x] = scratch[threadIdx.x];
}

KERNEL race(float* out) {
    __shared__ float scratch[32];
    scratch[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = scratch[31 - threadIdx.x];
}

KERNEL some_return(float* out) {
    if (threadIdx.x < 3) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

KERNEL two_barriers(float* out) {
    if (threadIdx.x < 32) __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1;
}

KERNEL half_a_warp(float* out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffffffu, 1.0f, 0);
}

KERNEL shift(float* out, long long by) { out[threadIdx.x + by] = 1; }

KERNEL beyond_shared(float* out) {
    extern __shared__ float scratch[];
    scratch[threadIdx.x] = 1;
}

KERNEL all_types(double* out, long long a, double b, bool c, unsigned d, int e, float f, const float* nothing) {
    out[0] = a + 2 * b + 4 * c + 8 * d + 16 * e + 32 * f + (nothing ? 64 : 0);
}

__global__ void mangled(float* out) { *out = 1; }
"""


@pytest.fixture(scope="module")
def module() -> cupy.RawModule:
    return cupy.RawModule(code=SOURCE, options=("-std=c++17", "-DREAL=float"))


def test_blocks_sum_through_shared_memory(module: cupy.RawModule) -> None:
    x = np.random.default_rng(2).random(10000).astype(np.float32)
    out = cupy.zeros(1)
    module.get_function("sum")((7,), (256,), (cupy.asarray(x), out, x.size), shared_mem=2048)
    assert float(out[0]) == pytest.approx(x.sum(dtype=np.float64), rel=1e-12)


def test_warps_shuffle(module: cupy.RawModule) -> None:
    x = cupy.arange(128, dtype=np.float32)
    sums, odd = cupy.zeros(4, np.float32), cupy.zeros(4, np.uint32)
    module.get_function("warps")((1,), (128,), (x, sums, odd))
    np.testing.assert_array_equal(sums.get(), np.arange(128).reshape(4, 32).sum(1))
    assert set(odd.get().tolist()) == {0xAAAAAAAA}


def test_threads_know_their_places(module: cupy.RawModule) -> None:
    out = cupy.empty(24 * 30, np.int32)
    module.get_function("place")((2, 3, 4), (5, 3, 2), (out,))
    np.testing.assert_array_equal(out.get().reshape(24, 30), 1000 * np.arange(24)[:, None] + np.arange(30))


def test_shared_memory_is_poisoned(module: cupy.RawModule) -> None:
    out = cupy.zeros(32, np.float32)
    module.get_function("unwritten")((1,), (32,), (out,))
    assert np.isfinite(out.get()).tolist() == [i == 1 for i in range(32)]


def test_a_race_shows_in_one_order_or_the_other(module: cupy.RawModule, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for order in ("forward", "reverse"):
        monkeypatch.setenv("MPINN_EMULATED_ORDER", order)
        out = cupy.zeros(32, np.float32)
        module.get_function("race")((1,), (32,), (out,))
        found.append(out.get().tolist())
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("name", "threads"), [("some_return", 64), ("some_return", 8), ("two_barriers", 64), ("half_a_warp", 32)]
)
def test_a_divergent_barrier_is_reported(module: cupy.RawModule, name: str, threads: int) -> None:
    out = cupy.zeros(64, np.float32)
    with pytest.raises(RuntimeError, match=rf"kernel {name}: divergent barrier .*line \d+"):
        finish(module.get_function(name), (1,), (threads,), (out,))
    test_warps_shuffle(module)


@pytest.mark.parametrize("by", [1, 100, -65, -100])
def test_a_write_out_of_bounds_is_reported(module: cupy.RawModule, by: int) -> None:
    whole, out = cupy.zeros(64, np.float32), cupy.zeros(64, np.float32)
    shift = module.get_function("shift")
    finish(shift, (1,), (64,), (whole, 0))
    with pytest.raises(RuntimeError, match="kernel shift wrote out of bounds of argument 0"):
        finish(shift, (1,), (64,), (out, by))
    finish(shift, (1,), (64,), (out, 0))
    assert whole.get().tolist() == [1] * 64


def test_a_write_beyond_shared_memory_is_reported(module: cupy.RawModule) -> None:
    with pytest.raises(RuntimeError, match="beyond the 64 bytes of shared memory"):
        finish(module.get_function("beyond_shared"), (1,), (32,), (cupy.zeros(1, np.float32),), 64)


def finish(kernel: cupy.RawKernel, grid: tuple, block: tuple, arguments: tuple, shared: int = 0) -> None:
    kernel(grid, block, arguments, shared_mem=shared)
    cupy.cuda.get_current_stream().synchronize()


def test_arguments_of_all_types(module: cupy.RawModule) -> None:
    out = cupy.zeros(1)
    kernel = module.get_function("all_types")
    rest = (True, np.uint32(1 << 28), np.int32(-1), np.float32(0.5), 0)
    kernel((1,), (1,), (out, 1 << 40, 0.25, *rest))
    assert float(out[0]) == (1 << 40) + 0.5 + 4 + 8 * (1 << 28) - 16 + 16
    kernel((1,), (1,), (out.data.ptr, 0, 0.0, *rest[:-1], cupy.zeros(1, np.float32)))
    assert float(out[0]) == 4 + 8 * (1 << 28) - 16 + 16 + 64


def test_arguments_that_would_be_read_as_something_else(module: cupy.RawModule) -> None:
    out, rest = cupy.zeros(1), (True, np.uint32(1), np.int32(1), np.float32(1), 0)
    kernel = module.get_function("all_types")
    wrong = (
        (out, 1.0, 0.25, *rest),
        (out, 1, 1, *rest),
        (out, 1, 0.5, 1, *rest[1:]),
        (out, 1, 0.5, *rest[:3], 1.0, 0),
        (out, 1, 0.5, *rest[:2], 1, np.float32(1), 0),
        (cupy.zeros(1, np.float32), 1, 0.5, *rest),
        (1.5, 1, 0.5, *rest),
        (np.zeros(1), 1, 0.5, *rest),
        (out, 1, 0.5),
        (out, out, 0.5, *rest),
    )
    for arguments in wrong:
        with pytest.raises(TypeError):
            kernel((1,), (1,), arguments)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="illegal"):
        kernel((1,), (1,), (12345, 1, 0.5, *rest))


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [((0,), (1,), 0), ((1,), (1025,), 0), ((1, 65536), (1,), 0), ((1,), (1,), 49153), ((1,), (32, 64), 0)],
)
def test_launches_that_a_device_refuses(module: cupy.RawModule, grid: tuple, block: tuple, shared: int) -> None:
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
        module.get_function("place")(grid, block, (cupy.zeros(1, np.int32),), shared_mem=shared)


def test_kernels_that_are_not_found(module: cupy.RawModule) -> None:
    for name in ("mangled", "missing"):
        with pytest.raises(RuntimeError, match="NOT_FOUND"):
            module.get_function(name)


@pytest.mark.parametrize(
    "text", ["*x = INFINITY;", "*x = FLT_MAX;", "uint32_t y = 1;", "*x = std::max(1.f, 2.f);", "min(1, 2ll);", "*x ="]
)
def test_what_nvrtc_refuses(text: str) -> None:
    module = cupy.RawModule(code=f'extern "C" __global__ void f(float* x) {{ {text} }}')
    with pytest.raises(cupy.cuda.compiler.CompileException):
        module.get_function("f")
