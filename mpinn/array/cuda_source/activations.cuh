// The activations by number, in the order of `mpinn.array.activations.ACTIVATIONS`, and their slopes.

enum { IDENTITY, SIGMOID, TANH, RELU, LEAKY_RELU, ELU, SELU, GELU, HARDSHRINK, MISH };

#define LEAK ((Wide)0.01)
#define SELU_SCALE ((Wide)1.0507009873554805)
#define SELU_ALPHA ((Wide)1.6732632423543772)
#define SHRINK ((Wide)0.5)
#define ROOT_HALF ((Wide)0.7071067811865476)
#define ROOT_TWO_PI_INVERSE ((Wide)0.3989422804014327)

__device__ __forceinline__ float exp_(float x) { return expf(x); }
__device__ __forceinline__ double exp_(double x) { return exp(x); }
__device__ __forceinline__ float expm1_(float x) { return expm1f(x); }
__device__ __forceinline__ double expm1_(double x) { return expm1(x); }
__device__ __forceinline__ float tanh_(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_(double x) { return tanh(x); }
__device__ __forceinline__ float erfc_(float x) { return erfcf(x); }
__device__ __forceinline__ double erfc_(double x) { return erfc(x); }
__device__ __forceinline__ float log1p_(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_(double x) { return log1p(x); }
__device__ __forceinline__ float sqrt_(float x) { return sqrtf(x); }
__device__ __forceinline__ double sqrt_(double x) { return sqrt(x); }

__device__ __forceinline__ Wide sigmoid_(Wide z) { return (Wide)0.5 * (tanh_((Wide)0.5 * z) + (Wide)1); }

// The normal distribution; 1 + erf would lose its digits where it is small.
__device__ __forceinline__ Wide normal(Wide z) { return (Wide)0.5 * erfc_(-z * ROOT_HALF); }

__device__ __forceinline__ Wide tanh_softplus(Wide z) {
    Wide most = z > 0 ? z : (Wide)0, least = z > 0 ? -z : z;
    return tanh_(most + log1p_(exp_(least)));
}

// A comparison with NaN is false, so each case is written to hand NaN on.
__device__ __forceinline__ Wide activated(Wide z, int name) {
    switch (name) {
        case SIGMOID: return sigmoid_(z);
        case TANH: return tanh_(z);
        case RELU: return z < 0 ? (Wide)0 : z;
        case LEAKY_RELU: return z < 0 ? z * LEAK : z;
        case ELU: return z < 0 ? expm1_(z) : z;
        case SELU: return SELU_SCALE * (z < 0 ? SELU_ALPHA * expm1_(z) : z);
        case GELU: return z * normal(z);
        case HARDSHRINK: return z >= -SHRINK && z <= SHRINK ? (Wide)0 : z;
        case MISH: return z * tanh_softplus(z);
        default: return z;
    }
}

// f'(z) from what the forward pass kept: z for gelu and mish, y for all others.
__device__ __forceinline__ Wide slope(Wide kept, int name) {
    switch (name) {
        case SIGMOID: return ((Wide)1 - kept) * kept;
        case TANH: return (Wide)1 - kept * kept;
        case RELU: return kept > 0 ? (Wide)1 : (Wide)0;
        case LEAKY_RELU: return kept > 0 ? (Wide)1 : LEAK;
        case ELU: return kept > 0 ? (Wide)1 : kept + (Wide)1;
        case SELU: return kept > 0 ? SELU_SCALE : kept + SELU_SCALE * SELU_ALPHA;
        case GELU: {
            Wide density = exp_(kept * kept * (Wide)-0.5) * ROOT_TWO_PI_INVERSE;
            return density * kept + normal(kept);
        }
        case HARDSHRINK: return kept != 0 ? (Wide)1 : (Wide)0;
        case MISH: {
            Wide t = tanh_softplus(kept);
            return t + kept * sigmoid_(kept) * ((Wide)1 - t * t);
        }
        default: return (Wide)1;
    }
}

// Whether z is kept, rather than f(z).
__device__ __forceinline__ bool keeps_input(int name) { return name == GELU || name == MISH; }

// f(z) from what is kept.
__device__ __forceinline__ Wide value(Wide kept, int name) {
    return name == GELU ? activated(kept, GELU) : name == MISH ? activated(kept, MISH) : kept;
}

// Calls work.with<NAME>(), so that the activation is chosen once for many numbers.
template <class Work> __device__ __forceinline__ void with_activation(int name, Work work) {
    switch (name) {
        case SIGMOID: return work.template with<SIGMOID>();
        case TANH: return work.template with<TANH>();
        case RELU: return work.template with<RELU>();
        case LEAKY_RELU: return work.template with<LEAKY_RELU>();
        case ELU: return work.template with<ELU>();
        case SELU: return work.template with<SELU>();
        case GELU: return work.template with<GELU>();
        case HARDSHRINK: return work.template with<HARDSHRINK>();
        case MISH: return work.template with<MISH>();
        default: return work.template with<IDENTITY>();
    }
}
