// What all kernels share. REAL, set when the source is compiled, is the type of activations: float, double or bfloat16, of
// which only memory is saved: WIDE is the type of parameters, statistics and of all arithmetic, float for bfloat16.
//
// Sums go through double and in a fixed order, without atomics, so that equal calls give equal bits. All sizes are long
// long, as CuPy passes a number of Python's. A grid may have fewer threads than elements: loops go on in strides.

// The upper half of a float, to which it is rounded to nearest, ties to even.
struct bfloat16 {
    unsigned short bits;
    bfloat16() = default;
    __device__ __forceinline__ explicit bfloat16(float value) {
        unsigned whole = __float_as_uint(value);
        // NaN could become infinite when it is rounded
        bits = value != value ? 0x7FC0 : (unsigned short)((whole + 0x7FFFu + (whole >> 16 & 1u)) >> 16);
    }
    __device__ __forceinline__ explicit bfloat16(double value) : bfloat16((float)value) {}
    __device__ __forceinline__ operator float() const { return __uint_as_float((unsigned)bits << 16); }
};

typedef REAL Real;
typedef WIDE Wide;
typedef long long Size;
typedef unsigned long long Word;

// NVRTC has no <math.h>.
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#endif

#define FIRST ((Size)blockIdx.x * blockDim.x + threadIdx.x)
#define STRIDE ((Size)gridDim.x * blockDim.x)

// A thread loads sixteen bytes of activations at once, and as many parameters as it then computes with.
#define WIDTH ((Size)(16 / sizeof(Real)))
template <class Number> struct __align__(16) Pack {
    Number at[16 / sizeof(Real)];
};
typedef Pack<Wide> Lanes;

// Group i of WIDTH numbers.
template <class Number> __device__ __forceinline__ Lanes lanes_of(const Number* from, Size i) {
    Pack<Number> own = ((const Pack<Number>*)from)[i];
    Lanes out;
    for (int k = 0; k < WIDTH; k++) out.at[k] = (Wide)own.at[k];
    return out;
}

__device__ __forceinline__ void put_lanes(Real* into, Size i, const Lanes& values) {
    Pack<Real> own;
    for (int k = 0; k < WIDTH; k++) own.at[k] = (Real)values.at[k];
    ((Pack<Real>*)into)[i] = own;
}

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
