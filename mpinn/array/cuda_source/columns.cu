// Sums over the rows of (rows, columns), and the norms that need them. A grid (tiles of columns, pieces of the rows) of
// blocks leaves two partial sums for each piece; a second kernel, with the tiles alone, adds these up in order. Both have
// 2 blockDim.x blockDim.y doubles of scratch, and blockDim.y is a power of two.

#define ACROSS ((Size)blockIdx.x * blockDim.x + threadIdx.x)
#define DOWN ((Size)blockIdx.y * blockDim.y + threadIdx.y)
#define DOWN_STRIDE ((Size)gridDim.y * blockDim.y)

extern __shared__ double scratch[];

// Adds two numbers of every thread up over threadIdx.y; both sums are on the threads of the first row.
__device__ __forceinline__ void add_up(double& first, double& second) {
    unsigned size = blockDim.x * blockDim.y, own = threadIdx.y * blockDim.x + threadIdx.x;
    scratch[own] = first;
    scratch[size + own] = second;
    __syncthreads();
    for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
        if (threadIdx.y < half) {
            scratch[own] += scratch[own + half * blockDim.x];
            scratch[size + own] += scratch[size + own + half * blockDim.x];
        }
        __syncthreads();
    }
    first = scratch[threadIdx.x];
    second = scratch[size + threadIdx.x];
}

// Writes the two sums of a block to partial: (2, pieces, columns).
__device__ __forceinline__ void leave(double first, double second, double* partial, Size columns) {
    add_up(first, second);
    if (threadIdx.y == 0 && ACROSS < columns) {
        partial[(Size)blockIdx.y * columns + ACROSS] = first;
        partial[((Size)gridDim.y + blockIdx.y) * columns + ACROSS] = second;
    }
}

// Adds the partial sums of the block's columns up; whether this thread is to go on with those of its column.
__device__ __forceinline__ bool gather(
    const double* partial, Size pieces, Size columns, double& first, double& second
) {
    first = second = 0;
    if (ACROSS < columns) {
#pragma unroll 4
        for (Size piece = threadIdx.y; piece < pieces; piece += blockDim.y) {
            first += partial[piece * columns + ACROSS];
            second += partial[(pieces + piece) * columns + ACROSS];
        }
    }
    add_up(first, second);
    return threadIdx.y == 0 && ACROSS < columns;
}

extern "C" __global__ void column_sums_partial(const Real* x, double* partial, Size rows, Size columns) {
    double total = 0;
    if (ACROSS < columns)
#pragma unroll 4
        for (Size row = DOWN; row < rows; row += DOWN_STRIDE) total += (double)x[row * columns + ACROSS];
    leave(total, 0, partial, columns);
}

extern "C" __global__ void column_sums(const double* partial, Real* sums, Size pieces, Size columns) {
    double first, second;
    if (gather(partial, pieces, columns, first, second)) sums[ACROSS] = (Real)first;
}

extern "C" __global__ void column_pairs(const double* partial, Real* one, Real* other, Size pieces, Size columns) {
    double first, second;
    if (!gather(partial, pieces, columns, first, second)) return;
    one[ACROSS] = (Real)first;
    other[ACROSS] = (Real)second;
}

// Sums of x - x[0] and of its square: the first row is near the mean, so that little is lost when it is taken away.
extern "C" __global__ void moments_partial(const Real* x, double* partial, Size rows, Size columns) {
    double first = 0, second = 0;
    if (ACROSS < columns && rows > 0) {
        double pivot = (double)x[ACROSS];
#pragma unroll 4
        for (Size row = DOWN; row < rows; row += DOWN_STRIDE) {
            double apart = (double)x[row * columns + ACROSS] - pivot;
            first += apart;
            second += apart * apart;
        }
    }
    leave(first, second, partial, columns);
}

// Mean and 1 / deviation of each column; running statistics follow by the momentum, unless it is 0.
extern "C" __global__ void moments(
    const Real* x, const double* partial, Real* mean, Real* inverse, Real* running_mean, Real* running_variance, Size rows,
    Size columns, Size pieces, double epsilon, double momentum
) {
    double apart, squares;
    if (!gather(partial, pieces, columns, apart, squares)) return;
    Size j = ACROSS;
    double count = rows > 0 ? (double)rows : 1.0;
    apart /= count;
    double variance = squares / count - apart * apart;
    if (variance < 0) variance = 0;
    double middle = rows > 0 ? (double)x[j] + apart : 0.0;
    mean[j] = (Real)middle;
    inverse[j] = (Real)(1 / sqrt(variance + epsilon));
    if (momentum > 0 && rows > 0) {
        double unbiased = variance * ((double)rows / (rows > 1 ? (double)(rows - 1) : 1.0));
        running_mean[j] = (Real)((double)running_mean[j] + momentum * (middle - (double)running_mean[j]));
        running_variance[j] = (Real)((double)running_variance[j] + momentum * (unbiased - (double)running_variance[j]));
    }
}

// 1 / deviation from a variance.
extern "C" __global__ void inverse_deviation(const Real* variance, Real* inverse, Size columns, double epsilon) {
    for (Size j = FIRST; j < columns; j += STRIDE) inverse[j] = (Real)(1 / sqrt((double)variance[j] + epsilon));
}

// y = f((x - mean) inverse scale + shift); z, if it is another array than y, keeps what f is taken of.
extern "C" __global__ void batch_norm(
    const Real* x, const Real* mean, const Real* inverse, const Real* scale, const Real* shift, Real* y, Real* z, Size count,
    Size columns, Size name
) {
    bool apart = z != y;
    bool wide = columns % WIDTH == 0 && aligned(x) && aligned(y) && aligned(z) && aligned(mean) && aligned(inverse);
    if (wide && aligned(scale) && aligned(shift)) {
        unsigned step = (unsigned)(columns / WIDTH);
        for (Size i = FIRST; i < count / WIDTH; i += STRIDE) {
            unsigned j = (unsigned)i % step;
            Lanes in = ((const Lanes*)x)[i], m = ((const Lanes*)mean)[j], r = ((const Lanes*)inverse)[j];
            Lanes a = ((const Lanes*)scale)[j], b = ((const Lanes*)shift)[j], sum, out;
            for (int k = 0; k < WIDTH; k++) {
                sum.at[k] = (in.at[k] - m.at[k]) * (r.at[k] * a.at[k]) + b.at[k];
                out.at[k] = activated(sum.at[k], (int)name);
            }
            if (apart) ((Lanes*)z)[i] = sum;
            ((Lanes*)y)[i] = out;
        }
        return;
    }
    for (Size i = FIRST; i < count; i += STRIDE) {
        Size j = i % columns;
        Real sum = (x[i] - mean[j]) * (inverse[j] * scale[j]) + shift[j];
        if (apart) z[i] = sum;
        y[i] = activated(sum, (int)name);
    }
}

// Sums of dz and of dz (x - mean), where dz = dy f'.
extern "C" __global__ void batch_norm_partial(
    const Real* x, const Real* mean, const Real* kept, const Real* dy, double* partial, Size rows, Size columns, Size name
) {
    double first = 0, second = 0;
    if (ACROSS < columns) {
        double middle = (double)mean[ACROSS];
#pragma unroll 4
        for (Size row = DOWN; row < rows; row += DOWN_STRIDE) {
            Size i = row * columns + ACROSS;
            double dz = (double)(name == IDENTITY ? dy[i] : dy[i] * slope(kept[i], (int)name));
            first += dz;
            second += dz * ((double)x[i] - middle);
        }
    }
    leave(first, second, partial, columns);
}

// dshift and dscale, and the numbers of each column that `batch_norm_backward` needs: pull, push and factor.
extern "C" __global__ void batch_norm_sums(
    const double* partial, const Real* inverse, const Real* scale, Real* dscale, Real* dshift, Real* numbers, Size rows,
    Size columns, Size pieces, Size of_batch
) {
    double sum, own;
    if (!gather(partial, pieces, columns, sum, own)) return;
    Size j = ACROSS;
    double count = rows > 0 ? (double)rows : 1.0;
    own *= (double)inverse[j];
    dshift[j] = (Real)sum;
    dscale[j] = (Real)own;
    numbers[j] = of_batch ? (Real)((double)inverse[j] * own / count) : (Real)0;
    numbers[columns + j] = of_batch ? (Real)(sum / count) : (Real)0;
    numbers[2 * columns + j] = scale[j] * inverse[j];
}

// dx = factor (dz - push - (x - mean) pull)
extern "C" __global__ void batch_norm_backward(
    const Real* x, const Real* mean, const Real* numbers, const Real* kept, const Real* dy, Real* dx, Size count,
    Size columns, Size name
) {
    const Real *pull = numbers, *push = numbers + columns, *factor = numbers + 2 * columns;
    bool wide = columns % WIDTH == 0 && aligned(x) && aligned(kept) && aligned(dy) && aligned(dx) && aligned(mean);
    if (wide && aligned(numbers)) {
        unsigned step = (unsigned)(columns / WIDTH);
        for (Size i = FIRST; i < count / WIDTH; i += STRIDE) {
            unsigned j = (unsigned)i % step;
            Lanes in = ((const Lanes*)x)[i], dz = ((const Lanes*)dy)[i], m = ((const Lanes*)mean)[j], out;
            Lanes a = ((const Lanes*)pull)[j], b = ((const Lanes*)push)[j], f = ((const Lanes*)factor)[j];
            if (name != IDENTITY) {
                Lanes own = ((const Lanes*)kept)[i];
                for (int k = 0; k < WIDTH; k++) dz.at[k] *= slope(own.at[k], (int)name);
            }
            for (int k = 0; k < WIDTH; k++)
                out.at[k] = f.at[k] * (dz.at[k] - b.at[k] - (in.at[k] - m.at[k]) * a.at[k]);
            ((Lanes*)dx)[i] = out;
        }
        return;
    }
    for (Size i = FIRST; i < count; i += STRIDE) {
        Size j = i % columns;
        Real dz = name == IDENTITY ? dy[i] : dy[i] * slope(kept[i], (int)name);
        dx[i] = factor[j] * (dz - push[j] - (x[i] - mean[j]) * pull[j]);
    }
}

// Layer norm: a block for each row in turn, with blockDim.x doubles of scratch.
extern "C" __global__ void layer_norm(
    const Real* x, const Real* scale, const Real* shift, Real* y, Real* mean, Real* inverse, Size rows, Size columns,
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
            y[row * columns + j] = (Real)(((double)own[j] - middle) * rate) * scale[j] + shift[j];
        if (threadIdx.x == 0) {
            mean[row] = (Real)middle;
            inverse[row] = (Real)rate;
        }
    }
}

// dx = inverse (g - mean(g) - xhat mean(g xhat)), g = dy scale
extern "C" __global__ void layer_norm_backward(
    const Real* x, const Real* mean, const Real* inverse, const Real* scale, const Real* dy, Real* dx, Size rows, Size columns
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

// Sums over the rows of dy and of dy xhat.
extern "C" __global__ void layer_norm_partial(
    const Real* x, const Real* mean, const Real* inverse, const Real* dy, double* partial, Size rows, Size columns
) {
    double first = 0, second = 0;
    if (ACROSS < columns)
#pragma unroll 4
        for (Size row = DOWN; row < rows; row += DOWN_STRIDE) {
            double own = (double)dy[row * columns + ACROSS];
            first += own;
            second += own * ((double)x[row * columns + ACROSS] - (double)mean[row]) * (double)inverse[row];
        }
    leave(first, second, partial, columns);
}
