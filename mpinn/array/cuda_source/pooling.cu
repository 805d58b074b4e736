// Windows over images (B, H, W, C): a thread for each output forward, for each pixel backward, so nothing is added twice.

__device__ __forceinline__ void set_place(void* places, Size i, unsigned place, Size bytes) {
    if (bytes == 1) ((unsigned char*)places)[i] = (unsigned char)place;
    else ((unsigned*)places)[i] = place;
}

__device__ __forceinline__ unsigned get_place(const void* places, Size i, Size bytes) {
    return bytes == 1 ? ((const unsigned char*)places)[i] : ((const unsigned*)places)[i];
}

// The maximum of each window, and the place in it, counted by rows, where it is found first.
extern "C" __global__ void max_pool(
    const Real* x, Real* y, void* places, Size count, Size H, Size W, Size C, Size OH, Size OW, Size high, Size wide,
    Size down, Size across, Size top, Size left, Size bytes
) {
    for (Size i = FIRST; i < count; i += STRIDE) {
        unsigned n = (unsigned)i, c = n % (unsigned)C;
        n /= (unsigned)C;
        Size ow = n % (unsigned)OW;
        n /= (unsigned)OW;
        Size oh = n % (unsigned)OH, b = n / (unsigned)OH;
        Real best = -INFINITY;
        unsigned place = 0;
        bool lost = false;
        for (Size r = 0; r < high; r++)
            for (Size s = 0; s < wide; s++) {
                Size h = oh * down - top + r, w = ow * across - left + s;
                if (h < 0 || h >= H || w < 0 || w >= W) continue;
                Real value = x[((b * H + h) * W + w) * C + c];
                if (!lost && (value > best || value != value)) {
                    best = value;
                    place = (unsigned)(r * wide + s);
                    lost = value != value;
                }
            }
        y[i] = best;
        set_place(places, i, place, bytes);
    }
}

// dx: each dy goes to the place of its maximum.
extern "C" __global__ void max_pool_backward(
    const void* places, const Real* dy, Real* dx, Size count, Size H, Size W, Size C, Size OH, Size OW, Size high, Size wide,
    Size down, Size across, Size top, Size left, Size bytes
) {
    for (Size i = FIRST; i < count; i += STRIDE) {
        unsigned n = (unsigned)i, c = n % (unsigned)C;
        n /= (unsigned)C;
        Size w = n % (unsigned)W;
        n /= (unsigned)W;
        Size h = n % (unsigned)H, b = n / (unsigned)H;
        Real total = 0;
        for (Size r = 0; r < high; r++) {
            Size from = h + top - r, oh = from / down;
            if (from < 0 || from % down || oh >= OH) continue;
            for (Size s = 0; s < wide; s++) {
                Size aside = w + left - s, ow = aside / across;
                if (aside < 0 || aside % across || ow >= OW) continue;
                Size o = ((b * OH + oh) * OW + ow) * C + c;
                if (get_place(places, o, bytes) == (unsigned)(r * wide + s)) total += dy[o];
            }
        }
        dx[i] = total;
    }
}

extern "C" __global__ void average_pool(
    const Real* x, Real* y, Size count, Size H, Size W, Size C, Size OH, Size OW, Size high, Size wide, Size down,
    Size across, Size top, Size left
) {
    for (Size i = FIRST; i < count; i += STRIDE) {
        unsigned n = (unsigned)i, c = n % (unsigned)C;
        n /= (unsigned)C;
        Size ow = n % (unsigned)OW;
        n /= (unsigned)OW;
        Size oh = n % (unsigned)OH, b = n / (unsigned)OH;
        Real total = 0;
        for (Size r = 0; r < high; r++)
            for (Size s = 0; s < wide; s++) {
                Size h = oh * down - top + r, w = ow * across - left + s;
                if (h >= 0 && h < H && w >= 0 && w < W) total += x[((b * H + h) * W + w) * C + c];
            }
        y[i] = total / (Real)(high * wide);
    }
}

extern "C" __global__ void average_pool_backward(
    const Real* dy, Real* dx, Size count, Size H, Size W, Size C, Size OH, Size OW, Size high, Size wide, Size down,
    Size across, Size top, Size left
) {
    for (Size i = FIRST; i < count; i += STRIDE) {
        unsigned n = (unsigned)i, c = n % (unsigned)C;
        n /= (unsigned)C;
        Size w = n % (unsigned)W;
        n /= (unsigned)W;
        Size h = n % (unsigned)H, b = n / (unsigned)H;
        Real total = 0;
        for (Size r = 0; r < high; r++) {
            Size from = h + top - r, oh = from / down;
            if (from < 0 || from % down || oh >= OH) continue;
            for (Size s = 0; s < wide; s++) {
                Size aside = w + left - s, ow = aside / across;
                if (aside < 0 || aside % across || ow >= OW) continue;
                total += dy[((b * OH + oh) * OW + ow) * C + c];
            }
        }
        dx[i] = total / (Real)(high * wide);
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
    for (Size i = FIRST; i < count; i += STRIDE) dx[i] = dy[i / (pixels * C) * C + i % C] / (Real)pixels;
}
