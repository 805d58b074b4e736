// One pass over memory, sixteen bytes at a time where arrays allow it.

// z becomes f(z + bias) in y; where y is another array z keeps z + bias. bias: one number for each of the columns, or null.
extern "C" __global__ void bias_activation(Real* z, const Real* bias, Real* y, Size count, Size columns, Size name) {
    bool apart = y != z;
    if (count % WIDTH == 0 && (!bias || columns % WIDTH == 0) && aligned(z) && aligned(y) && aligned(bias)) {
        unsigned step = (unsigned)(columns / WIDTH);
        for (Size i = FIRST; i < count / WIDTH; i += STRIDE) {
            Lanes sum = ((Lanes*)z)[i], out;
            if (bias) {
                Lanes own = ((const Lanes*)bias)[step == 1 ? 0 : (unsigned)(i % step)];
                for (int k = 0; k < WIDTH; k++) sum.at[k] += own.at[k];
            }
            for (int k = 0; k < WIDTH; k++) out.at[k] = activated(sum.at[k], (int)name);
            if (apart) ((Lanes*)z)[i] = sum;
            ((Lanes*)y)[i] = out;
        }
        return;
    }
    for (Size i = FIRST; i < count; i += STRIDE) {
        Real sum = bias ? z[i] + bias[i % columns] : z[i];
        if (apart) z[i] = sum;
        y[i] = activated(sum, (int)name);
    }
}

extern "C" __global__ void activation(const Real* x, Real* y, Size count, Size name) {
    Size whole = aligned(x) && aligned(y) ? count / WIDTH : 0;
    for (Size i = FIRST; i < whole; i += STRIDE) {
        Lanes own = ((const Lanes*)x)[i];
        for (int k = 0; k < WIDTH; k++) own.at[k] = activated(own.at[k], (int)name);
        ((Lanes*)y)[i] = own;
    }
    for (Size i = whole * WIDTH + FIRST; i < count; i += STRIDE) y[i] = activated(x[i], (int)name);
}

// dz = dy f'(z)
extern "C" __global__ void activation_backward(const Real* kept, const Real* dy, Real* dz, Size count, Size name) {
    Size whole = aligned(kept) && aligned(dy) && aligned(dz) ? count / WIDTH : 0;
    for (Size i = FIRST; i < whole; i += STRIDE) {
        Lanes a = ((const Lanes*)kept)[i], b = ((const Lanes*)dy)[i], out;
        for (int k = 0; k < WIDTH; k++) out.at[k] = b.at[k] * slope(a.at[k], (int)name);
        ((Lanes*)dz)[i] = out;
    }
    for (Size i = whole * WIDTH + FIRST; i < count; i += STRIDE) dz[i] = dy[i] * slope(kept[i], (int)name);
}

extern "C" __global__ void add(const Real* a, const Real* b, Real* sum, Size count) {
    Size whole = aligned(a) && aligned(b) && aligned(sum) ? count / WIDTH : 0;
    for (Size i = FIRST; i < whole; i += STRIDE) {
        Lanes left = ((const Lanes*)a)[i], right = ((const Lanes*)b)[i];
        for (int k = 0; k < WIDTH; k++) left.at[k] += right.at[k];
        ((Lanes*)sum)[i] = left;
    }
    for (Size i = whole * WIDTH + FIRST; i < count; i += STRIDE) sum[i] = a[i] + b[i];
}

// y = x keep factor
extern "C" __global__ void dropout(const Real* x, const bool* keep, Real* y, Size count, double factor) {
    for (Size i = FIRST; i < count; i += STRIDE) y[i] = x[i] * (Real)keep[i] * (Real)factor;
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
extern "C" __global__ void transpose(const Real* x, Real* out, Size rows, Size columns) {
    __shared__ Real tile[32][33];
    Size left = (Size)blockIdx.x * 32, top = (Size)blockIdx.y * 32;
    for (int i = threadIdx.y; i < 32; i += 8) {
        Size row = top + i, column = left + threadIdx.x;
        if (row < rows && column < columns) tile[i][threadIdx.x] = x[row * columns + column];
    }
    __syncthreads();
    for (int i = threadIdx.y; i < 32; i += 8) {
        Size row = left + i, column = top + threadIdx.x;
        if (row < columns && column < rows) out[row * rows + column] = tile[threadIdx.x][i];
    }
}
