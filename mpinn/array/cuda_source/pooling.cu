// Windows over images (B, H, W, C): a thread for each output forward, for each pixel backward, so nothing is added twice.
// Images have fewer than 2^31 elements, which the caller checks.

struct Sizes {
    int H, W, C, OH, OW, high, wide, down, across, top, left;
};

#define SIZES                                                                                                          \
    Size H, Size W, Size C, Size OH, Size OW, Size high, Size wide, Size down, Size across, Size top, Size left
#define OF_SIZES                                                                                                       \
    {(int)H, (int)W, (int)C, (int)OH, (int)OW, (int)high, (int)wide, (int)down, (int)across, (int)top, (int)left}

// Element i of an array with `high` rows of `wide` pixels of `depth` things: which thing, column, row and image it is.
struct Place {
    int c, w, h, b;
    __device__ __forceinline__ Place(Size i, int high, int wide, int depth) {
        unsigned n = (unsigned)i;
        c = n % (unsigned)depth;
        n /= (unsigned)depth;
        w = n % (unsigned)wide;
        n /= (unsigned)wide;
        h = n % (unsigned)high;
        b = n / (unsigned)high;
    }
};

__device__ __forceinline__ void set_place(void* places, Size i, unsigned place, Size bytes) {
    if (bytes == 1) ((unsigned char*)places)[i] = (unsigned char)place;
    else ((unsigned*)places)[i] = place;
}

__device__ __forceinline__ unsigned get_place(const void* places, Size i, Size bytes) {
    return bytes == 1 ? ((const unsigned char*)places)[i] : ((const unsigned*)places)[i];
}

template <int N> struct Group {
    Wide at[N];
};

// N neighbouring channels from element i on.
template <int N> __device__ __forceinline__ Group<N> group(const Real* from, Size i) {
    Group<N> own;
    if (N == WIDTH) {
        Lanes lanes = lanes_of(from + i, 0);
        for (int k = 0; k < N; k++) own.at[k] = lanes.at[k];
    } else {
        for (int k = 0; k < N; k++) own.at[k] = (Wide)from[i + k];
    }
    return own;
}

template <int N> __device__ __forceinline__ void put(Real* into, Size i, const Group<N>& own) {
    if (N == WIDTH) {
        Lanes lanes;
        for (int k = 0; k < N; k++) lanes.at[k] = own.at[k];
        put_lanes(into + i, 0, lanes);
    } else {
        for (int k = 0; k < N; k++) into[i + k] = (Real)own.at[k];
    }
}

template <int N> __device__ __forceinline__ void find_most(
    const Real* x, Real* y, void* places, Size count, Sizes s, Size bytes
) {
    for (Size i = FIRST; i < count / N; i += STRIDE) {
        Place at(i, s.OH, s.OW, s.C / N);
        Group<N> best;
        unsigned place[N];
        for (int k = 0; k < N; k++) {
            best.at[k] = -INFINITY;
            place[k] = 0;
        }
        for (int r = 0; r < s.high; r++)
            for (int q = 0; q < s.wide; q++) {
                int h = at.h * s.down - s.top + r, w = at.w * s.across - s.left + q;
                if (h < 0 || h >= s.H || w < 0 || w >= s.W) continue;
                Group<N> own = group<N>(x, (((Size)at.b * s.H + h) * s.W + w) * s.C + at.c * N);
                // nothing is greater than NaN
                for (int k = 0; k < N; k++)
                    if (best.at[k] == best.at[k] && (own.at[k] > best.at[k] || own.at[k] != own.at[k])) {
                        best.at[k] = own.at[k];
                        place[k] = (unsigned)(r * s.wide + q);
                    }
            }
        put<N>(y, i * N, best);
        for (int k = 0; k < N; k++) set_place(places, i * N + k, place[k], bytes);
    }
}

// The maximum of each window, and the place in it, counted by rows, where it is found first.
extern "C" __global__ void max_pool(const Real* x, Real* y, void* places, Size count, SIZES, Size bytes) {
    Sizes s = OF_SIZES;
    if (C % WIDTH == 0 && aligned(x) && aligned(y)) find_most<(16 / sizeof(Real))>(x, y, places, count, s, bytes);
    else find_most<1>(x, y, places, count, s, bytes);
}

// dx: each dy goes to the place of its maximum.
extern "C" __global__ void max_pool_backward(
    const void* places, const Real* dy, Real* dx, Size count, SIZES, Size bytes
) {
    Sizes s = OF_SIZES;
    for (Size i = FIRST; i < count; i += STRIDE) {
        Place at(i, s.H, s.W, s.C);
        Wide total = 0;
        for (int r = 0; r < s.high; r++) {
            int from = at.h + s.top - r, oh = from / s.down;
            if (from < 0 || from - oh * s.down || oh >= s.OH) continue;
            for (int q = 0; q < s.wide; q++) {
                int aside = at.w + s.left - q, ow = aside / s.across;
                if (aside < 0 || aside - ow * s.across || ow >= s.OW) continue;
                Size o = (((Size)at.b * s.OH + oh) * s.OW + ow) * s.C + at.c;
                if (get_place(places, o, bytes) == (unsigned)(r * s.wide + q)) total += (Wide)dy[o];
            }
        }
        dx[i] = (Real)total;
    }
}

template <int N> __device__ __forceinline__ void scatter(
    const void* places, const Real* dy, Real* dx, Size count, Sizes s, Size bytes
) {
    for (Size i = FIRST; i < count / N; i += STRIDE) {
        Place at(i, s.OH, s.OW, s.C / N);
        Group<N> own = group<N>(dy, i * N);
        unsigned place[N];
        for (int k = 0; k < N; k++) place[k] = get_place(places, i * N + k, bytes);
        for (int r = 0; r < s.high; r++)
            for (int q = 0; q < s.wide; q++) {
                Group<N> share;
                for (int k = 0; k < N; k++) share.at[k] = place[k] == (unsigned)(r * s.wide + q) ? own.at[k] : (Wide)0;
                int h = at.h * s.high + r, w = at.w * s.wide + q;
                put<N>(dx, (((Size)at.b * s.H + h) * s.W + w) * s.C + at.c * N, share);
            }
    }
}

// The same for windows that lie side by side and leave no pixel out: a thread for each window.
extern "C" __global__ void max_pool_spread(
    const void* places, const Real* dy, Real* dx, Size count, SIZES, Size bytes
) {
    Sizes s = OF_SIZES;
    if (C % WIDTH == 0 && aligned(dx) && aligned(dy)) scatter<(16 / sizeof(Real))>(places, dy, dx, count, s, bytes);
    else scatter<1>(places, dy, dx, count, s, bytes);
}

extern "C" __global__ void average_pool(const Real* x, Real* y, Size count, SIZES) {
    Sizes s = OF_SIZES;
    for (Size i = FIRST; i < count; i += STRIDE) {
        Place at(i, s.OH, s.OW, s.C);
        Wide total = 0;
        for (int r = 0; r < s.high; r++)
            for (int q = 0; q < s.wide; q++) {
                int h = at.h * s.down - s.top + r, w = at.w * s.across - s.left + q;
                if (h >= 0 && h < s.H && w >= 0 && w < s.W) total += (Wide)x[(((Size)at.b * s.H + h) * s.W + w) * s.C + at.c];
            }
        y[i] = (Real)(total / (Wide)(s.high * s.wide));
    }
}

extern "C" __global__ void average_pool_backward(const Real* dy, Real* dx, Size count, SIZES) {
    Sizes s = OF_SIZES;
    for (Size i = FIRST; i < count; i += STRIDE) {
        Place at(i, s.H, s.W, s.C);
        Wide total = 0;
        for (int r = 0; r < s.high; r++) {
            int from = at.h + s.top - r, oh = from / s.down;
            if (from < 0 || from - oh * s.down || oh >= s.OH) continue;
            for (int q = 0; q < s.wide; q++) {
                int aside = at.w + s.left - q, ow = aside / s.across;
                if (aside < 0 || aside - ow * s.across || ow >= s.OW) continue;
                total += (Wide)dy[(((Size)at.b * s.OH + oh) * s.OW + ow) * s.C + at.c];
            }
        }
        dx[i] = (Real)(total / (Wide)(s.high * s.wide));
    }
}

// The mean of each channel: x: (B, P, C) to y: (B, C).
extern "C" __global__ void channel_means(const Real* x, Real* y, Size count, Size pixels, Size C) {
    for (Size i = FIRST; i < count; i += STRIDE) {
        Size b = i / C, c = i % C;
        double total = 0;
        for (Size p = 0; p < pixels; p++) total += (double)x[(b * pixels + p) * C + c];
        y[i] = (Real)(total / (double)pixels);
    }
}

extern "C" __global__ void channel_means_backward(const Real* dy, Real* dx, Size count, Size pixels, Size C) {
    unsigned channels = (unsigned)C, image = (unsigned)(pixels * C);
    for (Size i = FIRST; i < count; i += STRIDE)
        dx[i] = (Real)((Wide)dy[(Size)((unsigned)i / image) * C + (unsigned)i % channels] / (Wide)pixels);
}
