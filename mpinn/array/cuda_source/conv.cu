// Convolutions as they are defined, for what cuDNN does not do: images (B, H, W, C), weight (R, S, C, O), whose numbers
// are rounded to the type of the images first.

// A thread for each output.
extern "C" __global__ void conv(
    const Real* x, const Wide* weight, Real* z, Size count, Size H, Size W, Size C, Size OH, Size OW, Size O, Size R, Size S,
    Size down, Size across, Size top, Size left
) {
    for (Size i = FIRST; i < count; i += STRIDE) {
        Size o = i % O, ow = i / O % OW, oh = i / (O * OW) % OH, b = i / (O * OW * OH);
        double total = 0;
        for (Size r = 0; r < R; r++)
            for (Size s = 0; s < S; s++) {
                Size h = oh * down - top + r, w = ow * across - left + s;
                if (h < 0 || h >= H || w < 0 || w >= W) continue;
                const Real* pixel = x + ((b * H + h) * W + w) * C;
                const Wide* own = weight + (r * S + s) * C * O + o;
                for (Size c = 0; c < C; c++) total += (double)pixel[c] * (double)(Real)own[c * O];
            }
        z[i] = (Real)total;
    }
}

// A thread for each pixel and channel.
extern "C" __global__ void conv_backward_input(
    const Real* dz, const Wide* weight, Real* dx, Size count, Size H, Size W, Size C, Size OH, Size OW, Size O, Size R,
    Size S, Size down, Size across, Size top, Size left
) {
    for (Size i = FIRST; i < count; i += STRIDE) {
        Size c = i % C, w = i / C % W, h = i / (C * W) % H, b = i / (C * W * H);
        double total = 0;
        for (Size r = 0; r < R; r++)
            for (Size s = 0; s < S; s++) {
                Size from = h + top - r, aside = w + left - s;
                if (from < 0 || aside < 0 || from % down || aside % across) continue;
                Size oh = from / down, ow = aside / across;
                if (oh >= OH || ow >= OW) continue;
                const Real* own = dz + ((b * OH + oh) * OW + ow) * O;
                const Wide* row = weight + ((r * S + s) * C + c) * O;
                for (Size o = 0; o < O; o++) total += (double)own[o] * (double)(Real)row[o];
            }
        dx[i] = (Real)total;
    }
}

extern __shared__ double scratch[];

// A block for each weight in turn.
extern "C" __global__ void conv_backward_weight(
    const Real* x, const Real* dz, Wide* grad, Size count, Size B, Size H, Size W, Size C, Size OH, Size OW, Size O, Size S,
    Size down, Size across, Size top, Size left
) {
    for (Size i = blockIdx.x; i < count; i += gridDim.x) {
        Size o = i % O, c = i / O % C, s = i / (O * C) % S, r = i / (O * C * S);
        double total = 0;
        for (Size n = threadIdx.x; n < B * OH * OW; n += blockDim.x) {
            Size ow = n % OW, oh = n / OW % OH, b = n / (OW * OH);
            Size h = oh * down - top + r, w = ow * across - left + s;
            if (h < 0 || h >= H || w < 0 || w >= W) continue;
            total += (double)x[((b * H + h) * W + w) * C + c] * (double)dz[n * O + o];
        }
        total = block_sum(total, scratch);
        if (threadIdx.x == 0) grad[i] = (Wide)total;
    }
}
