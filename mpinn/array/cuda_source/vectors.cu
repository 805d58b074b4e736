// Optimizer steps, sums and losses.

// Which of the pieces of a vector has an element: the last that starts at it or before it.
__device__ __forceinline__ Size piece_of(const Size* starts, Size pieces, Size i) {
    Size low = 0, high = pieces - 1;
    while (low < high) {
        Size middle = (low + high + 1) / 2;
        if (starts[middle] <= i) low = middle;
        else high = middle - 1;
    }
    return low;
}

// v <- momentum v + g; w <- w - rate v, or w - rate (g + momentum v). factors: a device number that multiplies the scale,
// or null. velocity may be null.
extern "C" __global__ void sgd(
    Wide* weights, const Wide* grads, Wide* velocity, const Size* starts, const Size* stops, const double* decays,
    const double* factors, const double* shorten, Size pieces, Size count, double scale, double rate, double momentum,
    Size nesterov
) {
    Wide mean = (Wide)(shorten ? scale * *shorten : scale), keep = (Wide)momentum;
    for (Size i = FIRST; i < count; i += STRIDE) {
        Size piece = piece_of(starts, pieces, i);
        if (i < starts[piece] || i >= stops[piece] || factors[piece] == 0) continue;
        Wide w = weights[i], pace = (Wide)(rate * factors[piece]), g = grads[i] * mean;
        if (decays[piece] != 0) g += w * (Wide)decays[piece];
        if (velocity) {
            Wide v = velocity[i] * keep + g;
            velocity[i] = v;
            g = nesterov ? g + v * keep : v;
        }
        weights[i] = w - g * pace;
    }
}

// m and v follow g and g^2; w <- w - pace m / (sqrt(v) + epsilon); see `mpinn.array.steps.adam`.
extern "C" __global__ void adam(
    Wide* weights, const Wide* grads, Wide* first, Wide* second, const Size* starts, const Size* stops, const double* decays,
    const double* factors, const double* shorten, Size pieces, Size count, double scale, double rate, double beta1,
    double beta2, double epsilon, double pace, Size decoupled
) {
    Wide mean = (Wide)(shorten ? scale * *shorten : scale);
    Wide b1 = (Wide)beta1, b2 = (Wide)beta2, rest1 = (Wide)(1 - beta1), rest2 = (Wide)(1 - beta2);
    for (Size i = FIRST; i < count; i += STRIDE) {
        Size piece = piece_of(starts, pieces, i);
        if (i < starts[piece] || i >= stops[piece] || factors[piece] == 0) continue;
        Wide w = weights[i], g = grads[i] * mean;
        if (!decoupled && decays[piece] != 0) g += w * (Wide)decays[piece];
        Wide shrink = (Wide)(decoupled ? 1 - rate * factors[piece] * decays[piece] : 1.0);
        Wide m = first[i] * b1 + g * rest1, v = second[i] * b2 + g * g * rest2;
        first[i] = m;
        second[i] = v;
        weights[i] = w * shrink - m / (sqrt_(v) + (Wide)epsilon) * (Wide)(pace * factors[piece]);
    }
}

extern __shared__ double scratch[];

// Partial sums of squares of spans, with a row of blocks for each; ends: (N, 2), where they start and stop.
extern "C" __global__ void squares_partial(const Wide* vector, const Size* ends, double* partial) {
    double total = 0;
    Size start = ends[2 * blockIdx.y], stop = ends[2 * blockIdx.y + 1];
    for (Size i = start + FIRST; i < stop; i += STRIDE) total += (double)vector[i] * (double)vector[i];
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) partial[blockIdx.y * gridDim.x + blockIdx.x] = total;
}

// The sum of each row of a few numbers, by a block.
extern "C" __global__ void total(const double* numbers, double* sums, Size count) {
    double own = 0;
    for (Size i = threadIdx.x; i < count; i += blockDim.x) own += numbers[blockIdx.x * count + i];
    own = block_sum(own, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] = own;
}

// What shortens a mean gradient whose norm is the root of the sum times scale: limit / norm where that is longer, else 1.
extern "C" __global__ void shortening(const double* sums, double* factor, Size count, double scale, double limit) {
    if (FIRST == 0) {
        double sum = 0;
        for (Size i = 0; i < count; i++) sum += sums[i];
        double norm = sqrt(sum) * scale;
        *factor = norm > limit && norm < INFINITY ? limit / norm : 1.0;
    }
}

// Raises the flag if an element is infinite or not a number.
extern "C" __global__ void not_finite(const Wide* vector, int* flag, Size count) {
    for (Size i = FIRST; i < count; i += STRIDE)
        if (!(vector[i] - vector[i] == 0)) *flag = 1;
}

// Softmax and cross-entropy of each row of (B, O), by a block; a class that is not there makes the loss NaN.
extern "C" __global__ void cross_entropy(
    const Real* logits, const Size* target, Real* dy, double* losses, Size rows, Size classes, double smoothing
) {
    for (Size row = blockIdx.x; row < rows; row += gridDim.x) {
        const Real* own = logits + row * classes;
        Real* out = dy + row * classes;
        Size wanted = target[row];
        bool known = wanted >= 0 && wanted < classes;
        double most = -INFINITY;
        for (Size j = threadIdx.x; j < classes; j += blockDim.x) most = own[j] > most ? (double)own[j] : most;
        scratch[threadIdx.x] = most;
        __syncthreads();
        for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
            if (threadIdx.x < half && scratch[threadIdx.x + half] > scratch[threadIdx.x])
                scratch[threadIdx.x] = scratch[threadIdx.x + half];
            __syncthreads();
        }
        most = scratch[0];
        __syncthreads();
        double sum = 0, apart = 0;
        for (Size j = threadIdx.x; j < classes; j += blockDim.x) {
            double below = (double)own[j] - most;
            sum += (double)exp_((Wide)below);
            apart += below;
        }
        sum = block_sum(sum, scratch);
        apart = block_sum(apart, scratch);
        for (Size j = threadIdx.x; j < classes; j += blockDim.x) {
            Wide share = exp_((Wide)((double)own[j] - most)) / (Wide)sum;
            if (smoothing != 0) share -= (Wide)(smoothing / (double)classes);
            out[j] = (Real)(j == wanted ? share - (Wide)(1 - smoothing) : share);
        }
        if (threadIdx.x == 0) {
            double chosen = known ? ((double)own[wanted] - most) * (1 - smoothing) : NAN;
            losses[row] = log(sum) - chosen - apart * smoothing / (double)classes;
        }
    }
}

// Half the squared error of each row, by a block. target: (B, O), or null, and classes: (B,) stand for one-hot rows.
extern "C" __global__ void squared_error(
    const Real* y, const Wide* target, const Size* classes, Real* dy, double* losses, Size rows, Size outputs
) {
    for (Size row = blockIdx.x; row < rows; row += gridDim.x) {
        double sum = 0;
        for (Size j = threadIdx.x; j < outputs; j += blockDim.x) {
            Size i = row * outputs + j;
            Wide apart = (Wide)y[i] - (target ? target[i] : (Wide)(classes[row] == j));
            dy[i] = (Real)apart;
            sum += (double)apart * (double)apart;
        }
        sum = block_sum(sum, scratch);
        if (threadIdx.x == 0)
            losses[row] = target || (classes[row] >= 0 && classes[row] < outputs) ? 0.5 * sum : (double)NAN;
    }
}

// 1 where a row has its first maximum where the target has it; NaN counts as a maximum, as NumPy counts it.
extern "C" __global__ void right_rows(
    const Real* y, const Wide* target, const Size* classes, double* right, Size rows, Size outputs
) {
    for (Size row = FIRST; row < rows; row += STRIDE) {
        Size best = 0, wanted = target ? 0 : classes[row];
        for (Size j = 1; j < outputs; j++) {
            Wide value = y[row * outputs + j], most = y[row * outputs + best];
            if (most == most && (value > most || value != value)) best = j;
            if (target && target[row * outputs + j] > target[row * outputs + wanted]) wanted = j;
        }
        right[row] = best == wanted;
    }
}
