// CUDA C on the host, for tests: what kernels may use. The threads of a block are fibers that take turns at barriers.
//
// Names that NVRTC does not know without headers of the C library (INFINITY, NAN, FLT_MAX, ...) are not known here either.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#undef INFINITY
#undef NAN
#undef HUGE_VAL
#undef HUGE_VALF
#undef M_PI
#undef M_E
#undef M_SQRT2
#undef M_SQRT1_2
#undef M_LN2

#include "cuda_fibers.h"

// The emulator takes these marks out of the preprocessed text, where it has seen them.
#define __global__ __emulated_global__
#define __shared__ __emulated_shared__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __builtin_assume(condition)
#define __CUDA_ARCH__ 900
#define __CUDACC__ 1

static const int warpSize = 32;

#define __syncthreads() emulated::barrier(__LINE__)
#define __syncthreads_count(test) emulated::count(__LINE__, (test) ? 1 : 0)
#define __syncthreads_and(test) (emulated::count(__LINE__, (test) ? 0 : 1) == 0)
#define __syncthreads_or(test) (emulated::count(__LINE__, (test) ? 1 : 0) != 0)
#define __syncwarp(...) emulated::sync_warp(__LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(mask, ...) emulated::shuffle(__LINE__, mask, __VA_ARGS__)
#define __shfl_up_sync(mask, ...) emulated::shuffle_up(__LINE__, mask, __VA_ARGS__)
#define __shfl_down_sync(mask, ...) emulated::shuffle_down(__LINE__, mask, __VA_ARGS__)
#define __shfl_xor_sync(mask, ...) emulated::shuffle_xor(__LINE__, mask, __VA_ARGS__)
#define __ballot_sync(mask, test) emulated::ballot(__LINE__, mask, (test) ? 1 : 0)
#define __any_sync(mask, test) (emulated::ballot(__LINE__, mask, (test) ? 1 : 0) != 0)
#define __all_sync(mask, test) (emulated::ballot(__LINE__, mask, (test) ? 0 : 1) == 0)
#define __activemask() emulated::active()

static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}

template <class T> static inline T __ldg(const T* place) { return *place; }

#define EMULATED_VECTOR(T, name, suffix)                                                        \
    struct name##1 { T x; };                                                                     \
    struct __attribute__((aligned(2 * sizeof(T)))) name##2 { T x, y; };                          \
    struct name##3 { T x, y, z; };                                                               \
    struct __attribute__((aligned(sizeof(T) < 8 ? 4 * sizeof(T) : 16))) name##4 { T x, y, z, w; }; \
    static inline name##1 make_##name##1(T x) { return {x}; }                                    \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                            \
    static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                    \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTOR(float, float, f)
EMULATED_VECTOR(double, double, d)
EMULATED_VECTOR(int, int, i)
EMULATED_VECTOR(unsigned char, uchar, c)
EMULATED_VECTOR(long long, longlong, l)
EMULATED_VECTOR(unsigned long long, ulonglong, u)
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// As in CUDA, two types that differ are an error, apart from int with unsigned and float with double.
template <class T> static inline T min(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) return std::fmin(a, b);
    else return b < a ? b : a;
}
template <class T> static inline T max(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) return std::fmax(a, b);
    else return a < b ? b : a;
}
template <class A, class B> constexpr bool emulated_mixable =
    (std::is_floating_point_v<A> && std::is_floating_point_v<B>) ||
    (std::is_integral_v<A> && std::is_integral_v<B> && sizeof(A) <= 4 && sizeof(B) <= 4);
template <class A, class B> static inline std::common_type_t<A, B> min(A a, B b) {
    static_assert(emulated_mixable<A, B>, "more than one instance of overloaded function min matches the argument list");
    return min<std::common_type_t<A, B>>(a, b);
}
template <class A, class B> static inline std::common_type_t<A, B> max(A a, B b) {
    static_assert(emulated_mixable<A, B>, "more than one instance of overloaded function max matches the argument list");
    return max<std::common_type_t<A, B>>(a, b);
}

using std::abs;
using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;

static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline float rsqrt(float x) { return 1 / sqrtf(x); }
static inline double rsqrt(double x) { return 1 / std::sqrt(x); }
static inline float rcbrtf(float x) { return 1 / cbrtf(x); }
static inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }
static inline double normcdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752); }
static inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
static inline float emulated_expf(float x) { return expf(x); }
static inline float emulated_logf(float x) { return logf(x); }
static inline float emulated_powf(float x, float y) { return powf(x, y); }
#define __expf emulated_expf
#define __logf emulated_logf
#define __powf emulated_powf
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1 / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return 1 / sqrtf(x); }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fsub_rn(float x, float y) { return x - y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline double __dadd_rn(double x, double y) { return x + y; }
static inline double __dsub_rn(double x, double y) { return x - y; }
static inline double __dmul_rn(double x, double y) { return x * y; }
static inline double __ddiv_rn(double x, double y) { return x / y; }
static inline double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }

template <class To, class From> static inline To emulated_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float __int_as_float(int x) { return emulated_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
static inline int __float_as_int(float x) { return emulated_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
static inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }
static inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __umulhi(unsigned x, unsigned y) { return ((unsigned long long)x * y) >> 32; }
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)(((unsigned __int128)x * y) >> 64);
}
static inline unsigned __brev(unsigned x) {
    unsigned bits = 0;
    for (int i = 0; i < 32; i++) bits |= (x >> i & 1u) << (31 - i);
    return bits;
}

template <class T> struct EmulatedIdentity { using type = T; };
template <class T> using EmulatedSame = typename EmulatedIdentity<T>::type;

// One thread of the host runs all threads of a launch, so that a plain change is atomic.
#define EMULATED_ATOMIC(name, change)                                                   \
    template <class T> static inline T name(T* place, EmulatedSame<T> value) {  \
        T old = *place;                                                                 \
        *place = change;                                                                \
        return old;                                                                     \
    }
EMULATED_ATOMIC(atomicAdd, old + value)
EMULATED_ATOMIC(atomicSub, old - value)
EMULATED_ATOMIC(atomicMin, value < old ? value : old)
EMULATED_ATOMIC(atomicMax, old < value ? value : old)
EMULATED_ATOMIC(atomicExch, value)
EMULATED_ATOMIC(atomicAnd, old & value)
EMULATED_ATOMIC(atomicOr, old | value)
EMULATED_ATOMIC(atomicXor, old ^ value)
EMULATED_ATOMIC(atomicInc, old >= value ? T(0) : T(old + 1))
EMULATED_ATOMIC(atomicDec, old == 0 || old > value ? value : T(old - 1))
template <class T>
static inline T atomicCAS(T* place, EmulatedSame<T> expected, EmulatedSame<T> value) {
    T old = *place;
    if (old == expected) *place = value;
    return old;
}
