// One pass over memory, sixteen bytes at a time where arrays allow it.

// z becomes f(z + bias) in y; where y is another array z keeps z + bias. bias: one number for each of the columns, or null.
extern "C" __global__ void bias_activation(Real* z, const Wide* bias, Real* y, Size count, Size columns, Size name) {
    bool apart = y != z;
    if (count % WIDTH == 0 && (!bias || columns % WIDTH == 0) && aligned(z) && aligned(y) && aligned(bias)) {
        unsigned step = (unsigned)(columns / WIDTH);
        for (Size i = FIRST; i < count / WIDTH; i += STRIDE) {
            Lanes sum = lanes_of(z, i), out;
            if (bias) {
                Lanes own = lanes_of(bias, step == 1 ? 0 : (unsigned)(i % step));
                for (int k = 0; k < WIDTH; k++) sum.at[k] += own.at[k];
            }
            for (int k = 0; k < WIDTH; k++) out.at[k] = activated(sum.at[k], (int)name);
            if (apart) put_lanes(z, i, sum);
            put_lanes(y, i, out);
        }
        return;
    }
    for (Size i = FIRST; i < count; i += STRIDE) {
        Wide sum = bias ? (Wide)z[i] + bias[i % columns] : (Wide)z[i];
        if (apart) z[i] = (Real)sum;
        y[i] = (Real)activated(sum, (int)name);
    }
}

extern "C" __global__ void activation(const Real* x, Real* y, Size count, Size name) {
    Size whole = aligned(x) && aligned(y) ? count / WIDTH : 0;
    for (Size i = FIRST; i < whole; i += STRIDE) {
        Lanes own = lanes_of(x, i);
        for (int k = 0; k < WIDTH; k++) own.at[k] = activated(own.at[k], (int)name);
        put_lanes(y, i, own);
    }
    for (Size i = whole * WIDTH + FIRST; i < count; i += STRIDE) y[i] = (Real)activated(x[i], (int)name);
}

// dz = dy f'(z)
extern "C" __global__ void activation_backward(const Real* kept, const Real* dy, Real* dz, Size count, Size name) {
    Size whole = aligned(kept) && aligned(dy) && aligned(dz) ? count / WIDTH : 0;
    for (Size i = FIRST; i < whole; i += STRIDE) {
        Lanes a = lanes_of(kept, i), b = lanes_of(dy, i);
        for (int k = 0; k < WIDTH; k++) b.at[k] *= slope(a.at[k], (int)name);
        put_lanes(dz, i, b);
    }
    for (Size i = whole * WIDTH + FIRST; i < count; i += STRIDE) dz[i] = (Real)((Wide)dy[i] * slope(kept[i], (int)name));
}

extern "C" __global__ void add(const Real* a, const Real* b, Real* sum, Size count) {
    Size whole = aligned(a) && aligned(b) && aligned(sum) ? count / WIDTH : 0;
    for (Size i = FIRST; i < whole; i += STRIDE) {
        Lanes left = lanes_of(a, i), right = lanes_of(b, i);
        for (int k = 0; k < WIDTH; k++) left.at[k] += right.at[k];
        put_lanes(sum, i, left);
    }
    for (Size i = whole * WIDTH + FIRST; i < count; i += STRIDE) sum[i] = (Real)((Wide)a[i] + (Wide)b[i]);
}

// y = x keep factor
extern "C" __global__ void dropout(const Real* x, const bool* keep, Real* y, Size count, double factor) {
    for (Size i = FIRST; i < count; i += STRIDE) y[i] = (Real)((Wide)x[i] * (Wide)keep[i] * (Wide)factor);
}

// The 32-bit finaliser "lowbias32" of C. Wellons' hash prospector.
__device__ __forceinline__ unsigned mixed(unsigned bits) {
    bits = (bits ^ (bits >> 16)) * 0x7FEB352Du;
    bits = (bits ^ (bits >> 15)) * 0x846CA68Bu;
    return bits ^ (bits >> 16);
}

// keep: (rows, width) from the hash of key[0], key[1] and of the place of an element in the global batch, in which local
// row i is row key[2] + i key[3].
extern "C" __global__ void dropout_mask(bool* keep, const unsigned* key, Size count, Size width, Size limit) {
    unsigned low = key[0], high = key[1], row = key[2], step = key[3];
    for (Size i = FIRST; i < count; i += STRIDE) {
        unsigned down = (unsigned)(i / width), across = (unsigned)(i % width);
        unsigned place = (row + down * step) * (unsigned)width + across;
        keep[i] = mixed(mixed(place ^ low) ^ high) >= (unsigned)limit;
    }
}

// Four words to a place on the device: what changes from step to step reaches a graph that is launched again.
extern "C" __global__ void set_words(unsigned* into, Size a, Size b, Size c, Size d) {
    if (FIRST == 0) {
        into[0] = (unsigned)a;
        into[1] = (unsigned)b;
        into[2] = (unsigned)c;
        into[3] = (unsigned)d;
    }
}

// out: (columns, rows), the transpose of x: (rows, columns); a block of 32 x 8 threads moves tiles of 32 x 32.
template <class From, class To> __device__ __forceinline__ void turn(const From* x, To* out, Size rows, Size columns) {
    __shared__ Wide tile[32][33];
    Size left = (Size)blockIdx.x * 32, top = (Size)blockIdx.y * 32;
    for (int i = threadIdx.y; i < 32; i += 8) {
        Size row = top + i, column = left + threadIdx.x;
        if (row < rows && column < columns) tile[i][threadIdx.x] = (Wide)x[row * columns + column];
    }
    __syncthreads();
    for (int i = threadIdx.y; i < 32; i += 8) {
        Size row = left + i, column = top + threadIdx.x;
        if (row < columns && column < rows) out[row * rows + column] = (To)tile[threadIdx.x][i];
    }
}

// Of parameters, for what computes with activations.
extern "C" __global__ void transpose(const Wide* x, Real* out, Size rows, Size columns) { turn(x, out, rows, columns); }

// The way back, of a gradient.
extern "C" __global__ void transpose_gradient(const Real* x, Wide* out, Size rows, Size columns) {
    turn(x, out, rows, columns);
}
