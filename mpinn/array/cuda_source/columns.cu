// Sums over the rows of (rows, columns). A grid (tiles of columns, pieces of the rows) of 512 threads, of which each
// has `lanes` neighbouring columns; blockDim.y is a power of two. Every block leaves two partial sums of each of its
// columns, and the last block of a tile to do so adds them up, always in the same order. The counters are zero before
// and after.

extern __shared__ double scratch[];

#define THREADS 512
#define FEW 4

// Adds the N numbers of each thread up over threadIdx.y: first within warps, where threads of one column are blockDim.x
// apart, then over the warps. The sums are on the threads of the first row.
template <int N> __device__ __forceinline__ void add_up(double (&numbers)[N]) {
    unsigned width = blockDim.x, own = threadIdx.y * width + threadIdx.x, warp = own / 32;
    for (unsigned apart = width; apart < 32; apart *= 2)
        for (int k = 0; k < N; k++) numbers[k] += __shfl_xor_sync(0xFFFFFFFFu, numbers[k], apart);
    if (own % 32 < width)
        for (int k = 0; k < N; k++) scratch[(warp * N + k) * width + threadIdx.x] = numbers[k];
    __syncthreads();
    if (own < width * N) {
        double total = 0;
        for (unsigned w = 0; w < THREADS / 32; w++) total += scratch[w * N * width + own];
        scratch[(THREADS / 32) * N * width + own] = total;
    }
    __syncthreads();
    for (int k = 0; k < N; k++) numbers[k] = scratch[((THREADS / 32) * N + k) * width + threadIdx.x];
    __syncthreads();
}

// Whether this block is the last of its tile to come here.
__device__ __forceinline__ bool last_of_tile(unsigned* counters) {
    __shared__ unsigned before;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0) before = atomicAdd(counters + blockIdx.x, 1u);
    __syncthreads();
    __threadfence();
    return before == gridDim.y - 1;
}

// each(row, column, sums) adds to two sums of each of N columns; done(column, first, second) has those of all rows.
template <int N, typename Each, typename Done>
__device__ __forceinline__ void sum_columns(
    Size rows, Size columns, double* partial, unsigned* counters, Each each, Done done
) {
    Size column = ((Size)blockIdx.x * blockDim.x + threadIdx.x) * N, pieces = gridDim.y;
    double sums[2 * N];
    for (int k = 0; k < 2 * N; k++) sums[k] = 0;
    if (column < columns) {
        Size stride = pieces * blockDim.y, row = (Size)blockIdx.y * blockDim.y + threadIdx.y;
        // a few rows in the precision of the array, before they join the sum; without a condition among them, so that
        // all are loaded at once
        for (; row + (FEW - 1) * stride < rows; row += FEW * stride) {
            Wide few[2 * N];
            for (int k = 0; k < 2 * N; k++) few[k] = 0;
#pragma unroll
            for (int next = 0; next < FEW; next++) each(row + next * stride, column, few);
            for (int k = 0; k < 2 * N; k++) sums[k] += (double)few[k];
        }
        for (; row < rows; row += stride) {
            Wide one[2 * N];
            for (int k = 0; k < 2 * N; k++) one[k] = 0;
            each(row, column, one);
            for (int k = 0; k < 2 * N; k++) sums[k] += (double)one[k];
        }
    }
    add_up(sums);
    if (threadIdx.y == 0 && column < columns)
        for (int k = 0; k < N; k++) {
            partial[(Size)blockIdx.y * columns + column + k] = sums[k];
            partial[(pieces + blockIdx.y) * columns + column + k] = sums[N + k];
        }
    if (!last_of_tile(counters)) return;
    // partial sums of other blocks: not from this multiprocessor's own cache
    const volatile double* left = partial;
    for (int k = 0; k < 2 * N; k++) sums[k] = 0;
    if (column < columns)
        for (Size piece = threadIdx.y; piece < pieces; piece += blockDim.y)
            for (int k = 0; k < N; k++) {
                sums[k] += left[piece * columns + column + k];
                sums[N + k] += left[(pieces + piece) * columns + column + k];
            }
    add_up(sums);
    if (threadIdx.y == 0 && column < columns)
        for (int k = 0; k < N; k++) done(column + k, sums[k], sums[N + k]);
    if (threadIdx.x == 0 && threadIdx.y == 0) counters[blockIdx.x] = 0;
}

template <int N, class Number> __device__ __forceinline__ void load(const Number* from, Size i, Wide (&into)[N]) {
    if (N == WIDTH) {
        Lanes own = lanes_of(from + i, 0);
        for (int k = 0; k < N; k++) into[k] = own.at[k];
    } else {
        for (int k = 0; k < N; k++) into[k] = (Wide)from[i + k];
    }
}

#define EITHER(CALL)                   \
    if (lanes == 1) {                  \
        enum { N = 1 };                \
        CALL;                          \
    } else {                           \
        enum { N = 16 / sizeof(Real) }; \
        CALL;                          \
    }

extern "C" __global__ void __launch_bounds__(THREADS) column_sums(
    const Real* x, double* partial, unsigned* counters, Wide* total, Size rows, Size columns, Size lanes
) {
    auto done = [&](Size j, double first, double second) { total[j] = (Wide)first; };
    EITHER(sum_columns<N>(rows, columns, partial, counters, [&](Size row, Size j, Wide* sums) {
        Wide own[N];
        load<N>(x, row * columns + j, own);
        for (int k = 0; k < N; k++) sums[k] += own[k];
    }, done))
}

// Mean and 1 / deviation of each column; running statistics follow by the momentum, unless it is 0. Sums are of x - x[0]
// and of its square: the first row is near the mean, so that little is lost when it is taken away.
extern "C" __global__ void __launch_bounds__(THREADS) batch_statistics(
    const Real* x, double* partial, unsigned* counters, Wide* mean, Wide* inverse, Wide* running_mean,
    Wide* running_variance, Size rows, Size columns, Size lanes, double epsilon, double momentum
) {
    auto done = [&](Size j, double apart, double squares) {
        double count = rows > 0 ? (double)rows : 1.0;
        apart /= count;
        double variance = squares / count - apart * apart;
        if (variance < 0) variance = 0;
        double middle = rows > 0 ? (double)x[j] + apart : 0.0;
        mean[j] = (Wide)middle;
        inverse[j] = (Wide)(1 / sqrt(variance + epsilon));
        if (momentum > 0 && rows > 0) {
            double unbiased = variance * ((double)rows / (rows > 1 ? (double)(rows - 1) : 1.0));
            running_mean[j] = (Wide)((double)running_mean[j] + momentum * (middle - (double)running_mean[j]));
            running_variance[j] = (Wide)((double)running_variance[j] + momentum * (unbiased - (double)running_variance[j]));
        }
    };
    EITHER(sum_columns<N>(rows, columns, partial, counters, [&](Size row, Size j, Wide* sums) {
        Wide own[N], pivot[N];
        load<N>(x, j, pivot);
        load<N>(x, row * columns + j, own);
        for (int k = 0; k < N; k++) {
            Wide apart = own[k] - pivot[k];
            sums[k] += apart;
            sums[N + k] += apart * apart;
        }
    }, done))
}

// dshift, dscale, and the numbers of each column that `batch_norm_backward` needs: pull, push and factor. Sums are of dz
// and of dz (x - mean), where dz = dy f'.
extern "C" __global__ void __launch_bounds__(THREADS) batch_norm_sums(
    const Real* x, const Wide* mean, const Wide* inverse, const Wide* scale, const Real* kept, const Real* dy,
    double* partial, unsigned* counters, Wide* dscale, Wide* dshift, Wide* numbers, Size rows, Size columns, Size lanes,
    Size name, Size of_batch
) {
    auto done = [&](Size j, double sum, double own) {
        double count = rows > 0 ? (double)rows : 1.0;
        own *= (double)inverse[j];
        dshift[j] = (Wide)sum;
        dscale[j] = (Wide)own;
        numbers[j] = of_batch ? (Wide)((double)inverse[j] * own / count) : (Wide)0;
        numbers[columns + j] = of_batch ? (Wide)(sum / count) : (Wide)0;
        numbers[2 * columns + j] = scale[j] * inverse[j];
    };
    EITHER(sum_columns<N>(rows, columns, partial, counters, [&](Size row, Size j, Wide* sums) {
        Wide own[N], middle[N], dz[N], y[N];
        load<N>(x, row * columns + j, own);
        load<N>(dy, row * columns + j, dz);
        load<N>(mean, j, middle);
        if (name != IDENTITY) {
            load<N>(kept, row * columns + j, y);
            for (int k = 0; k < N; k++) dz[k] *= slope(y[k], (int)name);
        }
        for (int k = 0; k < N; k++) {
            sums[k] += dz[k];
            sums[N + k] += dz[k] * (own[k] - middle[k]);
        }
    }, done))
}

// dshift and dscale of a layer norm: sums over the rows of dy and of dy xhat.
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_sums(
    const Real* x, const Wide* mean, const Wide* inverse, const Real* dy, double* partial, unsigned* counters, Wide* dscale,
    Wide* dshift, Size rows, Size columns, Size lanes
) {
    auto done = [&](Size j, double first, double second) {
        dshift[j] = (Wide)first;
        dscale[j] = (Wide)second;
    };
    EITHER(sum_columns<N>(rows, columns, partial, counters, [&](Size row, Size j, Wide* sums) {
        Wide own[N], back[N];
        load<N>(x, row * columns + j, own);
        load<N>(dy, row * columns + j, back);
        for (int k = 0; k < N; k++) {
            sums[k] += back[k];
            sums[N + k] += back[k] * ((own[k] - mean[row]) * inverse[row]);
        }
    }, done))
}
