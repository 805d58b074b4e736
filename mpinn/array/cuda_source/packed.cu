// Outputs, losses and norms of many networks at once; see `mpinn.array.ragged` and `mpinn.array.packed`.
//
// A block or a warp has one network, always the same one for its size, and sums in one order.

#define HEAD 5
#define LANES 32
#define EVERY 0xffffffffu
// Rows that a thread reads before it needs the first.
#define AHEAD 8

extern __shared__ double scratch[];

// The last layer of a member: its last hidden units, and where its weights (units, O) and biases (O) begin.
struct Head {
    Size first, units, weight, bias;
    int name;
};

__device__ __forceinline__ Head head_of(const Size* heads, Size number) {
    const Size* own = heads + number * HEAD;
    return {own[0], own[1], own[2], own[3], (int)own[4]};
}

// The sum over a warp, on its first lane.
__device__ __forceinline__ Real warp_sum(Real sum) {
#pragma unroll
    for (int half = LANES / 2; half > 0; half /= 2) sum += __shfl_down_sync(EVERY, sum, half);
    return sum;
}

// Outputs from `o` on of one sample. from: its place in the first row; to: in the output o.
template <int COUNT>
__device__ __forceinline__ void some_outputs(
    const Real* vector, const Head& head, const Real* from, Real* to, Size outputs, Size samples, Size o
) {
    Real sum[COUNT];
    const Real* weights = vector + head.weight + o;
#pragma unroll
    for (int j = 0; j < COUNT; j++) sum[j] = vector[head.bias + o + j];
    auto add = [&](Size unit, Real kept) {
        Real a = value(kept, head.name);
#pragma unroll
        for (int j = 0; j < COUNT; j++) sum[j] += weights[unit * outputs + j] * a;
    };
    Size unit = 0;
    for (; unit + AHEAD <= head.units; unit += AHEAD) {
        Real kept[AHEAD];
        // all on their way before the first is needed
#pragma unroll
        for (int k = 0; k < AHEAD; k++) kept[k] = from[(unit + k) * samples];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) add(unit + k, kept[k]);
    }
    for (; unit < head.units; unit++) add(unit, from[unit * samples]);
#pragma unroll
    for (int j = 0; j < COUNT; j++) to[j * samples] = sum[j];
}

// y: (M, O, B); a warp has a member and some samples.
extern "C" __global__ void ragged_output(
    const Real* vector, const Size* heads, const Real* units, Real* y, Size members, Size outputs, Size samples,
    Size parts
) {
    Size work = FIRST / LANES, member = work / parts, sample = work % parts * LANES + threadIdx.x % LANES;
    if (member >= members || sample >= samples) return;
    Head head = head_of(heads, member);
    const Real* from = units + head.first * samples + sample;
    Real* to = y + member * outputs * samples + sample;
    for (Size o = 0; o < outputs;) {
        Size left = outputs - o;
        Real* at = to + o * samples;
        if (left >= 8) some_outputs<8>(vector, head, from, at, outputs, samples, o), o += 8;
        else if (left >= 4) some_outputs<4>(vector, head, from, at, outputs, samples, o), o += 4;
        else if (left >= 2) some_outputs<2>(vector, head, from, at, outputs, samples, o), o += 2;
        else some_outputs<1>(vector, head, from, at, outputs, samples, o), o += 1;
    }
}

// Gradients of the weights from a unit to the outputs from `o` on, by a warp. row: what is kept of the unit.
template <int COUNT>
__device__ __forceinline__ void some_gradients(const Real* row, const Real* dy, Real* grads, Size samples, int name) {
    Real sum[COUNT] = {};
    int lane = threadIdx.x % LANES;
    for (Size i = lane; i < samples; i += LANES) {
        Real a = value(row[i], name);
#pragma unroll
        for (int j = 0; j < COUNT; j++) sum[j] += a * dy[j * samples + i];
    }
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
        Real total = warp_sum(sum[j]);
        if (lane == 0) grads[j] = total;
    }
}

// The backward pass of a unit through the last layer, by a warp: its row becomes dz.
__device__ __forceinline__ void unit_back(
    const Real* weights, const Real* dy, Real* row, Real* grads, Size outputs, Size samples, int name
) {
    for (Size o = 0; o < outputs;) {
        Size left = outputs - o;
        if (left >= 8) some_gradients<8>(row, dy + o * samples, grads + o, samples, name), o += 8;
        else if (left >= 4) some_gradients<4>(row, dy + o * samples, grads + o, samples, name), o += 4;
        else if (left >= 2) some_gradients<2>(row, dy + o * samples, grads + o, samples, name), o += 2;
        else some_gradients<1>(row, dy + o * samples, grads + o, samples, name), o += 1;
    }
    for (Size i = threadIdx.x % LANES; i < samples; i += LANES) {
        Real da = 0;
        for (Size o = 0; o < outputs; o++) da += weights[o] * dy[o * samples + i];
        row[i] = da * slope(row[i], name);
    }
}

// The sums over a warp of N numbers, a power of two, that each lane has: a lane ends with number lane * N / LANES. Lanes
// are added up in the same order as by `warp_sum`, with a shuffle for each number in place of five.
template <int N> __device__ __forceinline__ Real warp_sums(Real (&sums)[N]) {
    unsigned lane = threadIdx.x % LANES;
    int apart = LANES / 2;
#pragma unroll
    for (int kept = N / 2; kept > 0; kept /= 2, apart /= 2) {
        bool upper = lane & apart;
#pragma unroll
        for (int k = 0; k < kept; k++) {
            Real other = __shfl_xor_sync(EVERY, upper ? sums[k] : sums[kept + k], apart);
            sums[k] = (upper ? sums[kept + k] : sums[k]) + other;
        }
    }
#pragma unroll
    for (; apart > 0; apart /= 2) sums[0] += __shfl_xor_sync(EVERY, sums[0], apart);
    return sums[0];
}

// The backward pass of `many` units, ROWS at most, through a last layer of COUNT outputs at most, by a warp, which goes
// over memory once: their rows become dz.
template <int ROWS, int COUNT>
__device__ __forceinline__ void units_back(
    const Real* weights, const Real* dy, Real* rows, Real* grads, int outputs, Size samples, int name, int many
) {
    Real sums[ROWS * COUNT] = {};
    int lane = threadIdx.x % LANES;
    for (Size i = lane; i < samples; i += LANES) {
        Real kept[ROWS], own[COUNT];
#pragma unroll
        for (int r = 0; r < ROWS; r++) kept[r] = r < many ? rows[r * samples + i] : (Real)0;
#pragma unroll
        for (int j = 0; j < COUNT; j++) own[j] = j < outputs ? dy[j * samples + i] : (Real)0;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (r >= many) break;
            Real a = value(kept[r], name), da = 0;
#pragma unroll
            for (int j = 0; j < COUNT; j++) {
                sums[r * COUNT + j] += a * own[j];
                if (j < outputs) da += weights[r * outputs + j] * own[j];
            }
            rows[r * samples + i] = da * slope(kept[r], name);
        }
    }
    Real total = warp_sums(sums);
    const int SAME = LANES / (ROWS * COUNT);
    int number = lane / SAME, r = number / COUNT, j = number % COUNT;
    if (lane % SAME == 0 && r < many && j < outputs) grads[r * outputs + j] = total;
}

// Calls back(first unit, how many) for ROWS of the units of a member at a time, by each warp of a block.
template <int ROWS, class Back> __device__ __forceinline__ void some_units(Size units, Back back) {
    Size step = blockDim.x / LANES * ROWS;
    for (Size unit = threadIdx.x / LANES * ROWS; unit < units; unit += step)
        back(unit, units - unit < ROWS ? (int)(units - unit) : ROWS);
}

template <int ROWS, int COUNT>
__device__ __forceinline__ void head_back(
    const Real* vector, const Head& head, const Real* dy, Real* units, Real* grads, Size outputs, Size samples
) {
    some_units<ROWS>(head.units, [&](Size unit, int many) {
        Size weight = head.weight + unit * outputs;
        Real* rows = units + (head.first + unit) * samples;
        units_back<ROWS, COUNT>(vector + weight, dy, rows, grads + weight, (int)outputs, samples, head.name, many);
    });
}

// The backward pass of the last layer, by a block for each member. dy: (M, O, B).
extern "C" __global__ void ragged_output_back(
    const Real* vector, const Size* heads, Real* units, const Real* dy, Real* grads, Size outputs, Size samples
) {
    Head head = head_of(heads, blockIdx.x);
    const Real* own = dy + (Size)blockIdx.x * outputs * samples;
    Size warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
    for (Size o = warp; o < outputs; o += warps) {
        Real sum = 0;
        for (Size i = threadIdx.x % LANES; i < samples; i += LANES) sum += own[o * samples + i];
        sum = warp_sum(sum);
        if (threadIdx.x % LANES == 0) grads[head.bias + o] = sum;
    }
    if (outputs == 1) return head_back<8, 1>(vector, head, own, units, grads, outputs, samples);
    if (outputs == 2) return head_back<8, 2>(vector, head, own, units, grads, outputs, samples);
    if (outputs <= 4) return head_back<4, 4>(vector, head, own, units, grads, outputs, samples);
    if (outputs <= 8) return head_back<4, 8>(vector, head, own, units, grads, outputs, samples);
    if (outputs <= 16) return head_back<2, 16>(vector, head, own, units, grads, outputs, samples);
    some_units<1>(head.units, [&](Size unit, int many) {
        Size weight = head.weight + unit * outputs;
        Real* row = units + (head.first + unit) * samples;
        unit_back(vector + weight, own, row, grads + weight, outputs, samples, head.name);
    });
}

// Softmax and cross-entropy of each member, by a block. y, dy: (M, O, B), perhaps the same array; a class that is not
// there makes the loss NaN.
extern "C" __global__ void packed_cross_entropy(
    const Real* y, const Size* target, Real* dy, double* losses, Size outputs, Size samples, double smoothing
) {
    const Real* own = y + (Size)blockIdx.x * outputs * samples;
    Real* out = dy + (Size)blockIdx.x * outputs * samples;
    Real less = (Real)(smoothing / (double)outputs);
    double loss = 0;
    for (Size i = threadIdx.x; i < samples; i += blockDim.x) {
        Size wanted = target[i];
        Real most = own[i];
        for (Size o = 1; o < outputs; o++) {
            Real next = own[o * samples + i];
            most = next > most ? next : most;
        }
        double apart = 0, chosen = wanted >= 0 && wanted < outputs ? (double)(own[wanted * samples + i] - most) : NAN;
        Real sum = 0;
        for (Size o = 0; o < outputs; o++) {
            Real below = own[o * samples + i] - most, e = exp_(below);
            out[o * samples + i] = e;
            sum += e;
            apart += (double)below;
        }
        loss += log((double)sum) - chosen * (1 - smoothing);
        if (smoothing != 0) loss -= apart * smoothing / (double)outputs;
        for (Size o = 0; o < outputs; o++) {
            Real share = out[o * samples + i] / sum;
            if (smoothing != 0) share -= less;
            out[o * samples + i] = o == wanted ? share - (Real)(1 - smoothing) : share;
        }
    }
    loss = block_sum(loss, scratch);
    if (threadIdx.x == 0) losses[blockIdx.x] = loss;
}

// Half the squared error of each member, by a block. target: (B, O), or null, and classes: (B,) stand for one-hot rows.
extern "C" __global__ void packed_squared_error(
    const Real* y, const Real* target, const Size* classes, Real* dy, double* losses, Size outputs, Size samples
) {
    const Real* own = y + (Size)blockIdx.x * outputs * samples;
    Real* out = dy + (Size)blockIdx.x * outputs * samples;
    double loss = 0;
    for (Size i = threadIdx.x; i < samples; i += blockDim.x) {
        if (!target && (classes[i] < 0 || classes[i] >= outputs)) loss = NAN;
        for (Size o = 0; o < outputs; o++) {
            Real apart = own[o * samples + i] - (target ? target[i * outputs + o] : (Real)(classes[i] == o));
            out[o * samples + i] = apart;
            loss += (double)apart * (double)apart;
        }
    }
    loss = block_sum(loss, scratch);
    if (threadIdx.x == 0) losses[blockIdx.x] = 0.5 * loss;
}

// How many samples each member has right, by a block: its first maximum is where the target has it, NaN being one.
extern "C" __global__ void packed_correct(
    const Real* y, const Real* target, const Size* classes, double* right, Size outputs, Size samples
) {
    const Real* own = y + (Size)blockIdx.x * outputs * samples;
    double count = 0;
    for (Size i = threadIdx.x; i < samples; i += blockDim.x) {
        Size best = 0, wanted = target ? 0 : classes[i];
        for (Size o = 1; o < outputs; o++) {
            Real next = own[o * samples + i], most = own[best * samples + i];
            if (most == most && (next > most || next != next)) best = o;
            if (target && target[i * outputs + o] > target[i * outputs + wanted]) wanted = o;
        }
        count += best == wanted;
    }
    count = block_sum(count, scratch);
    if (threadIdx.x == 0) right[blockIdx.x] = count;
}

// The sum of those numbers that are finite, by one block.
extern "C" __global__ void finite_sum(const double* numbers, double* sum, Size count) {
    double own = 0;
    for (Size i = threadIdx.x; i < count; i += blockDim.x)
        if (numbers[i] - numbers[i] == 0) own += numbers[i];
    own = block_sum(own, scratch);
    if (threadIdx.x == 0) *sum = own;
}

// The first piece of a member, or of the next one that has any; owners rise.
__device__ __forceinline__ Size first_piece(const Size* owners, Size pieces, Size member) {
    Size low = 0, high = pieces;
    while (low < high) {
        Size middle = (low + high) / 2;
        if (owners[middle] < member) low = middle + 1;
        else high = middle;
    }
    return low;
}

// Adds to each member's number the sum of squares of its pieces of a vector, by a block; owners rise.
extern "C" __global__ void packed_squares(
    const Real* vector, const Size* starts, const Size* stops, const Size* owners, double* squares, Size pieces
) {
    Size last = first_piece(owners, pieces, (Size)blockIdx.x + 1);
    double sum = 0;
    for (Size piece = first_piece(owners, pieces, blockIdx.x); piece < last; piece++)
        for (Size i = starts[piece] + threadIdx.x; i < stops[piece]; i += blockDim.x)
            sum += (double)vector[i] * (double)vector[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) squares[blockIdx.x] += sum;
}

// Multiplies each piece of a vector by its factor, by a block; where that is 1, nothing is touched.
extern "C" __global__ void packed_scale(
    Real* vector, const Size* starts, const Size* stops, const double* factors
) {
    Real factor = (Real)factors[blockIdx.x];
    if (factors[blockIdx.x] == 1) return;
    for (Size i = starts[blockIdx.x] + threadIdx.x; i < stops[blockIdx.x]; i += blockDim.x) vector[i] *= factor;
}
