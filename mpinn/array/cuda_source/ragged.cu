// Hidden layers of many networks of different widths at once; see `mpinn.array.ragged`.
//
// Units are rows of (U, B). A tile is some rows of a product and all that it needs: TILE numbers of a table. A number
// is a sum of products one after the other, whatever the tiles are, so that no bit of a network depends on another.

#define TILE 7
#define DEEP 8
#define TALL 64
#define LOW 32
#define BROAD 64
#define SLIM 32
#define ACROSS 4
#define DOWN 8
// Columns of a tile with so many rows.
#define BREADTH(rows) (int)(blockDim.x * DOWN * ACROSS / (rows))
#define BOUNDS __launch_bounds__(TALL / DOWN * BROAD / ACROSS, sizeof(Real) == 4 ? 4 : 2)

// The part of a tile that a thread has.
typedef Real Sums[DOWN][ACROSS];

// What a tile of a product is: rows from `row` on; where weights and biases begin; the first row of what is multiplied.
struct Tile {
    Size row, rows, weight, bias, source, inner;
    int name;
};

__device__ __forceinline__ Tile tile_of(const Size* tiles, Size number) {
    const Size* own = tiles + number * TILE;
    return {own[0], own[1], own[2], own[3], own[4], own[5], (int)own[6]};
}

// Scratch of a product: tiles of both sides, one inner row after the other.
struct Scratch {
    __align__(16) Real left[DEEP][TALL + 4];
    __align__(16) Real right[DEEP][BROAD + 4];
};

// Copies a part of one side into registers, and from there to the scratch. ALONG: neighbours in memory are along
// the inner axis.
template <int SIDE, int THREADS, bool ALONG> struct Loader {
    static const int EACH = SIDE * DEEP / THREADS;
    Real at[EACH];

    __device__ __forceinline__ static int inner(int i) {
        int place = i * THREADS + (int)threadIdx.x;
        return ALONG ? place % DEEP : place / SIDE;
    }
    __device__ __forceinline__ static int outer(int i) {
        int place = i * THREADS + (int)threadIdx.x;
        return ALONG ? place / DEEP : place % SIDE;
    }
    template <class Read> __device__ __forceinline__ void load(Read read, int begin) {
#pragma unroll
        for (int i = 0; i < EACH; i++) at[i] = read(outer(i), begin + inner(i));
    }
    template <class Side> __device__ __forceinline__ void store(Side& side) const {
#pragma unroll
        for (int i = 0; i < EACH; i++) side[inner(i)][outer(i)] = at[i];
    }
};

template <int COUNT> __device__ __forceinline__ void fetch(Real (&into)[COUNT], const Real* from) {
#pragma unroll
    for (int i = 0; i < COUNT; i += (int)WIDTH) *(Lanes*)(into + i) = *(const Lanes*)(from + i);
}

// a b + c, rounded once, in one instruction: what is compiled without contraction would take two.
__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return __fma_rn(a, b, c); }

__device__ __forceinline__ void add_products(Sums& sum, const Real* left, const Real* right) {
    __align__(16) Real a[DOWN], b[ACROSS];
    fetch(a, left);
    fetch(b, right);
#pragma unroll
    for (int i = 0; i < DOWN; i++)
#pragma unroll
        for (int j = 0; j < ACROSS; j++) sum[i][j] = fused(a[i], b[j], sum[i][j]);
}

// sum = left right, of ROWS x inner and inner x COLUMNS: left(r, k) and right(c, k) read an element, or 0 beyond the
// ends. `beside` is called with every part of the scratch, and how deep it is.
template <int ROWS, int COLUMNS, bool LEFT_ALONG, bool RIGHT_ALONG, class Left, class Right, class Beside>
__device__ __forceinline__ void multiply(
    Sums& sum, Scratch& scratch, Left left, Right right, int inner, Beside beside
) {
    const int THREADS = ROWS / DOWN * COLUMNS / ACROSS;
    Loader<ROWS, THREADS, LEFT_ALONG> lefts;
    Loader<COLUMNS, THREADS, RIGHT_ALONG> rights;
    int down = (int)threadIdx.x / (COLUMNS / ACROSS) * DOWN, across = (int)threadIdx.x % (COLUMNS / ACROSS) * ACROSS;
#pragma unroll
    for (int i = 0; i < DOWN; i++)
#pragma unroll
        for (int j = 0; j < ACROSS; j++) sum[i][j] = 0;
    lefts.load(left, 0);
    rights.load(right, 0);
    for (int begin = 0; begin < inner; begin += DEEP) {
        lefts.store(scratch.left);
        rights.store(scratch.right);
        __syncthreads();
        // the next part is on its way while this one is multiplied
        if (begin + DEEP < inner) {
            lefts.load(left, begin + DEEP);
            rights.load(right, begin + DEEP);
        }
        if (inner - begin >= DEEP) {
#pragma unroll
            for (int k = 0; k < DEEP; k++) add_products(sum, scratch.left[k] + down, scratch.right[k] + across);
        } else {
#pragma unroll 1
            for (int k = 0; k < inner - begin; k++)
                add_products(sum, scratch.left[k] + down, scratch.right[k] + across);
        }
        beside(inner - begin < DEEP ? inner - begin : DEEP);
        __syncthreads();
    }
}

// Calls write(row, column, numbers, how many) for each row of the part of a tile that a thread has. The tile is `wide`
// and begins at the column `first` of so many.
template <class Write>
__device__ __forceinline__ void each_row(
    Sums& sum, int rows, int columns, int first, int wide, Write write
) {
    int down = (int)threadIdx.x / (wide / ACROSS) * DOWN, across = (int)threadIdx.x % (wide / ACROSS) * ACROSS;
    int left = columns - first - across;
#pragma unroll
    for (int i = 0; i < DOWN; i++)
        if (down + i < rows && left > 0) write(down + i, first + across, sum[i], left < ACROSS ? left : ACROSS);
}

__device__ __forceinline__ void put(Real* to, const Real (&from)[ACROSS], int count) {
    if (count == ACROSS && aligned(to)) {
#pragma unroll
        for (int j = 0; j < ACROSS; j += (int)WIDTH) {
            Lanes lanes;
#pragma unroll
            for (int k = 0; k < WIDTH; k++) lanes.at[k] = from[j + k];
            *(Lanes*)(to + j) = lanes;
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < ACROSS; j++)
        if (j < count) to[j] = from[j];
}

// Numbers of a thread become what is kept of them.
struct Kept {
    Sums& sum;

    template <int NAME> __device__ __forceinline__ void with() {
        if (keeps_input(NAME)) return;
#pragma unroll
        for (int i = 0; i < DOWN; i++)
#pragma unroll
            for (int j = 0; j < ACROSS; j++) sum[i][j] = activated(sum[i][j], NAME);
    }
};

// What is kept of f(W a + b), for a tile and some columns.
__device__ __forceinline__ void keep(
    Sums& sum, const Tile& tile, const Real* vector, Real* units, int samples, int first, int wide
) {
    int rows = (int)tile.rows;
    each_row(sum, rows, samples, first, wide, [&](int row, int column, Real (&z)[ACROSS], int count) {
#pragma unroll
        for (int j = 0; j < ACROSS; j++) z[j] += vector[tile.bias + row];
    });
    with_activation(tile.name, Kept{sum});
    Real* to = units + tile.row * samples;
    each_row(sum, rows, samples, first, wide, [&](int row, int column, Real (&z)[ACROSS], int count) {
        put(to + (Size)row * samples + column, z, count);
    });
}

template <int COLUMNS>
__device__ __forceinline__ void first_layer(
    Sums& sum, Scratch& scratch, const Real* vector, const Tile& tile, const Real* x, int samples, int first
) {
    int inner = (int)tile.inner, rows = (int)tile.rows, most = samples - first;
    const Real *weights = vector + tile.weight, *from = x + (Size)first * inner;
    multiply<TALL, COLUMNS, true, true>(
        sum, scratch, [=](int r, int k) { return r < rows && k < inner ? weights[(Size)r * inner + k] : (Real)0; },
        [=](int c, int k) { return c < most && k < inner ? from[(Size)c * inner + k] : (Real)0; }, inner, [](int) {});
}

// The first hidden layer. x: (B, I).
extern "C" __global__ void BOUNDS ragged_first(
    const Real* vector, const Size* tiles, const Real* x, Real* units, Size samples, Size columns
) {
    __shared__ Scratch scratch;
    Sums sum;
    Tile tile = tile_of(tiles, blockIdx.x / columns);
    int wide = BREADTH(TALL), first = (int)(blockIdx.x % columns) * wide, batch = (int)samples;
    if (wide == BROAD) first_layer<BROAD>(sum, scratch, vector, tile, x, batch, first);
    else first_layer<SLIM>(sum, scratch, vector, tile, x, batch, first);
    keep(sum, tile, vector, units, batch, first, wide);
}

template <int COLUMNS>
__device__ __forceinline__ void later_layer(
    Sums& sum, Scratch& scratch, const Real* vector, const Tile& tile, Real* units, int samples, int first
) {
    int inner = (int)tile.inner, rows = (int)tile.rows, most = samples - first;
    const Real *weights = vector + tile.weight, *from = units + tile.source * samples + first;
    int name = tile.name;
    multiply<LOW, COLUMNS, true, false>(
        sum, scratch, [=](int r, int k) { return r < rows && k < inner ? weights[(Size)r * inner + k] : (Real)0; },
        [=](int c, int k) { return c < most && k < inner ? value(from[(Size)k * samples + c], name) : (Real)0; }, inner,
        [](int) {});
}

// A later hidden layer, from the units of the one before.
extern "C" __global__ void BOUNDS ragged_later(
    const Real* vector, const Size* tiles, Real* units, Size samples, Size columns
) {
    __shared__ Scratch scratch;
    Sums sum;
    Tile tile = tile_of(tiles, blockIdx.x / columns);
    int wide = BREADTH(LOW), first = (int)(blockIdx.x % columns) * wide, batch = (int)samples;
    if (wide == BROAD) later_layer<BROAD>(sum, scratch, vector, tile, units, batch, first);
    else later_layer<SLIM>(sum, scratch, vector, tile, units, batch, first);
    keep(sum, tile, vector, units, batch, first, wide);
}

// Gradients of a tile of weights, from dz in `units`: right(c, k) is what the weights were multiplied with. The first
// columns have those of the biases too.
template <int ROWS, int COLUMNS, bool RIGHT_ALONG, class Right>
__device__ __forceinline__ void gradient(
    Scratch& scratch, const Tile& tile, const Real* units, Real* grads, int samples, int first, Right right
) {
    Sums sum;
    Real bias = 0;
    int rows = (int)tile.rows, inner = (int)tile.inner;
    const Real* dz = units + tile.row * samples;
    int own = (int)threadIdx.x;
    bool biased = first == 0 && own < rows;
    multiply<ROWS, COLUMNS, true, RIGHT_ALONG>(
        sum, scratch, [=](int r, int k) { return r < rows && k < samples ? dz[(Size)r * samples + k] : (Real)0; }, right,
        samples, [&](int deep) {
            if (biased)
                for (int k = 0; k < deep; k++) bias += scratch.left[k][own];
        });
    if (biased) grads[tile.bias + own] = bias;
    Real* to = grads + tile.weight;
    each_row(sum, rows, inner, first, COLUMNS, [&](int row, int column, Real (&g)[ACROSS], int count) {
        put(to + (Size)row * inner + column, g, count);
    });
}

template <int COLUMNS>
__device__ __forceinline__ void first_gradient(
    Scratch& scratch, const Tile& tile, const Real* x, const Real* units, Real* grads, int samples, int first
) {
    int inner = (int)tile.inner, most = inner - first;
    const Real* from = x + first;
    gradient<TALL, COLUMNS, false>(scratch, tile, units, grads, samples, first, [=](int c, int k) {
        return c < most && k < samples ? from[(Size)k * inner + c] : (Real)0;
    });
}

// Gradients of the first hidden layer.
extern "C" __global__ void BOUNDS ragged_first_gradient(
    const Size* tiles, const Real* x, const Real* units, Real* grads, Size samples, Size columns
) {
    __shared__ Scratch scratch;
    Tile tile = tile_of(tiles, blockIdx.x / columns);
    int wide = BREADTH(TALL), first = (int)(blockIdx.x % columns) * wide, batch = (int)samples;
    if (wide == BROAD) first_gradient<BROAD>(scratch, tile, x, units, grads, batch, first);
    else first_gradient<SLIM>(scratch, tile, x, units, grads, batch, first);
}

// Gradients of a later hidden layer; blocks beyond the inputs of a member have nothing to do.
extern "C" __global__ void BOUNDS ragged_later_gradient(
    const Size* tiles, const Real* units, Real* grads, Size samples, Size columns
) {
    __shared__ Scratch scratch;
    Tile tile = tile_of(tiles, blockIdx.x / columns);
    int first = (int)(blockIdx.x % columns) * BROAD, most = (int)tile.inner - first, batch = (int)samples;
    if (most <= 0) return;
    const Real* from = units + (tile.source + first) * samples;
    int name = tile.name;
    gradient<LOW, BROAD, true>(scratch, tile, units, grads, batch, first, [=](int c, int k) {
        return c < most && k < batch ? value(from[c * batch + k], name) : (Real)0;
    });
}

// What is kept at `to` becomes the numbers of a thread times their slopes.
struct Sloped {
    Sums& sum;
    Real* to;
    int rows, samples, first, wide;

    template <int NAME> __device__ __forceinline__ void with() {
        each_row(sum, rows, samples, first, wide, [=](int row, int column, Real (&da)[ACROSS], int count) {
            Real* own = to + (Size)row * samples + column;
#pragma unroll
            for (int j = 0; j < ACROSS; j++)
                if (j < count) da[j] *= slope(own[j], NAME);
            put(own, da, count);
        });
    }
};

template <int COLUMNS>
__device__ __forceinline__ void back(
    Sums& sum, Scratch& scratch, const Real* vector, const Tile& tile, Real* units, int samples, int first
) {
    int inner = (int)tile.inner, rows = (int)tile.rows, pitch = (int)tile.bias, most = samples - first;
    const Real *weights = vector + tile.weight, *from = units + tile.source * samples + first;
    multiply<LOW, COLUMNS, false, false>(
        sum, scratch, [=](int r, int k) { return r < rows && k < inner ? weights[k * pitch + r] : (Real)0; },
        [=](int c, int k) { return c < most && k < inner ? from[(Size)k * samples + c] : (Real)0; }, inner, [](int) {});
}

// What is kept of the layer before becomes its dz. In these tiles `bias` is the distance between rows of the weights,
// and the sources are the dz of the layer.
extern "C" __global__ void BOUNDS ragged_back(
    const Real* vector, const Size* tiles, Real* units, Size samples, Size columns
) {
    __shared__ Scratch scratch;
    Sums sum;
    Tile tile = tile_of(tiles, blockIdx.x / columns);
    int wide = BREADTH(LOW), first = (int)(blockIdx.x % columns) * wide, batch = (int)samples;
    if (wide == BROAD) back<BROAD>(sum, scratch, vector, tile, units, batch, first);
    else back<SLIM>(sum, scratch, vector, tile, units, batch, first);
    with_activation(tile.name, Sloped{sum, units + tile.row * batch, (int)tile.rows, batch, first, wide});
}
