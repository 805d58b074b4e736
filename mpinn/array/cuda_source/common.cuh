// What all kernels share. REAL is the type of the arrays, set when the source is compiled: float or double.
//
// Sums go through double and in a fixed order, without atomics, so that equal calls give equal bits. All sizes are long
// long, as CuPy passes a number of Python's. A grid may have fewer threads than elements: loops go on in strides.

typedef REAL Real;
typedef long long Size;
typedef unsigned long long Word;

// NVRTC has no <math.h>.
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#endif

#define FIRST ((Size)blockIdx.x * blockDim.x + threadIdx.x)
#define STRIDE ((Size)gridDim.x * blockDim.x)

// Sixteen bytes: what a thread loads at once.
struct __align__(16) Lanes {
    Real at[16 / sizeof(Real)];
};
#define WIDTH ((Size)(16 / sizeof(Real)))

__device__ __forceinline__ bool aligned(const void* pointer) { return ((Word)pointer & 15) == 0; }

// The sum of one number of every thread of a block, on its first thread; scratch: as many doubles as there are threads,
// a power of two.
__device__ __forceinline__ double block_sum(double value, double* scratch) {
    unsigned own = threadIdx.x;
    scratch[own] = value;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (own < half) scratch[own] += scratch[own + half];
        __syncthreads();
    }
    double total = scratch[0];
    __syncthreads();
    return total;
}
