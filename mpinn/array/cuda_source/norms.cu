// Norms of (rows, columns): what is done to each element, once the statistics are known.

extern __shared__ double scratch[];

// 1 / deviation from a variance.
extern "C" __global__ void inverse_deviation(const Wide* variance, Wide* inverse, Size columns, double epsilon) {
    for (Size j = FIRST; j < columns; j += STRIDE) inverse[j] = (Wide)(1 / sqrt((double)variance[j] + epsilon));
}

// y = f((x - mean) inverse scale + shift); z, if it is another array than y, keeps what f is taken of.
extern "C" __global__ void batch_norm(
    const Real* x, const Wide* mean, const Wide* inverse, const Wide* scale, const Wide* shift, Real* y, Real* z, Size count,
    Size columns, Size name
) {
    bool apart = z != y;
    bool wide = columns % WIDTH == 0 && aligned(x) && aligned(y) && aligned(z) && aligned(mean) && aligned(inverse);
    if (wide && aligned(scale) && aligned(shift)) {
        unsigned step = (unsigned)(columns / WIDTH);
        for (Size i = FIRST; i < count / WIDTH; i += STRIDE) {
            unsigned j = (unsigned)i % step;
            Lanes in = lanes_of(x, i), m = lanes_of(mean, j), r = lanes_of(inverse, j);
            Lanes a = lanes_of(scale, j), b = lanes_of(shift, j), sum, out;
            for (int k = 0; k < WIDTH; k++) {
                sum.at[k] = (in.at[k] - m.at[k]) * (r.at[k] * a.at[k]) + b.at[k];
                out.at[k] = activated(sum.at[k], (int)name);
            }
            if (apart) put_lanes(z, i, sum);
            put_lanes(y, i, out);
        }
        return;
    }
    for (Size i = FIRST; i < count; i += STRIDE) {
        Size j = i % columns;
        Wide sum = ((Wide)x[i] - mean[j]) * (inverse[j] * scale[j]) + shift[j];
        if (apart) z[i] = (Real)sum;
        y[i] = (Real)activated(sum, (int)name);
    }
}

// dx = factor (dz - push - (x - mean) pull)
extern "C" __global__ void batch_norm_backward(
    const Real* x, const Wide* mean, const Wide* numbers, const Real* kept, const Real* dy, Real* dx, Size count,
    Size columns, Size name
) {
    const Wide *pull = numbers, *push = numbers + columns, *factor = numbers + 2 * columns;
    bool wide = columns % WIDTH == 0 && aligned(x) && aligned(kept) && aligned(dy) && aligned(dx) && aligned(mean);
    if (wide && aligned(numbers)) {
        unsigned step = (unsigned)(columns / WIDTH);
        for (Size i = FIRST; i < count / WIDTH; i += STRIDE) {
            unsigned j = (unsigned)i % step;
            Lanes in = lanes_of(x, i), dz = lanes_of(dy, i), m = lanes_of(mean, j), out;
            Lanes a = lanes_of(pull, j), b = lanes_of(push, j), f = lanes_of(factor, j);
            if (name != IDENTITY) {
                Lanes own = lanes_of(kept, i);
                for (int k = 0; k < WIDTH; k++) dz.at[k] *= slope(own.at[k], (int)name);
            }
            for (int k = 0; k < WIDTH; k++)
                out.at[k] = f.at[k] * (dz.at[k] - b.at[k] - (in.at[k] - m.at[k]) * a.at[k]);
            put_lanes(dx, i, out);
        }
        return;
    }
    for (Size i = FIRST; i < count; i += STRIDE) {
        Size j = i % columns;
        Wide dz = name == IDENTITY ? (Wide)dy[i] : (Wide)dy[i] * slope(kept[i], (int)name);
        dx[i] = (Real)(factor[j] * (dz - push[j] - ((Wide)x[i] - mean[j]) * pull[j]));
    }
}

// Layer norm: a block for each row in turn, with blockDim.x doubles of scratch.
extern "C" __global__ void layer_norm(
    const Real* x, const Wide* scale, const Wide* shift, Real* y, Wide* mean, Wide* inverse, Size rows, Size columns,
    double epsilon
) {
    for (Size row = blockIdx.x; row < rows; row += gridDim.x) {
        const Real* own = x + row * columns;
        double sum = 0, squares = 0;
        for (Size j = threadIdx.x; j < columns; j += blockDim.x) sum += (double)own[j];
        double middle = block_sum(sum, scratch) / (double)columns;
        for (Size j = threadIdx.x; j < columns; j += blockDim.x) {
            double apart = (double)own[j] - middle;
            squares += apart * apart;
        }
        double rate = 1 / sqrt(block_sum(squares, scratch) / (double)columns + epsilon);
        for (Size j = threadIdx.x; j < columns; j += blockDim.x)
            y[row * columns + j] = (Real)((Wide)(((double)own[j] - middle) * rate) * scale[j] + shift[j]);
        if (threadIdx.x == 0) {
            mean[row] = (Wide)middle;
            inverse[row] = (Wide)rate;
        }
    }
}

// dx = inverse (g - mean(g) - xhat mean(g xhat)), g = dy scale
extern "C" __global__ void layer_norm_backward(
    const Real* x, const Wide* mean, const Wide* inverse, const Wide* scale, const Real* dy, Real* dx, Size rows, Size columns
) {
    for (Size row = blockIdx.x; row < rows; row += gridDim.x) {
        double middle = (double)mean[row], rate = (double)inverse[row], sum = 0, dot = 0;
        for (Size j = threadIdx.x; j < columns; j += blockDim.x) {
            double g = (double)dy[row * columns + j] * (double)scale[j];
            sum += g;
            dot += g * ((double)x[row * columns + j] - middle) * rate;
        }
        sum = block_sum(sum, scratch) / (double)columns;
        dot = block_sum(dot, scratch) / (double)columns;
        for (Size j = threadIdx.x; j < columns; j += blockDim.x) {
            double g = (double)dy[row * columns + j] * (double)scale[j];
            double normal = ((double)x[row * columns + j] - middle) * rate;
            dx[row * columns + j] = (Real)(rate * (g - sum - normal * dot));
        }
    }
}
