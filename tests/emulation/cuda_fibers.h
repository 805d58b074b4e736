// Blocks of threads as fibers: a thread runs until it comes to a barrier, and goes on when all that it waits for are there.
#pragma once
#include <cstdint>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct uint4 { unsigned x, y, z, w; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

extern "C" {
extern char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emulated {

constexpr unsigned MOST = 1024, STACK = 128 << 10, DYNAMIC = 227 << 10, GUARD = 1024;
enum State : unsigned char { NEW, AT_BLOCK, AT_WARP, RUNNING, RETURNED };

struct Fiber {
    char* stack = nullptr;
#if defined(__x86_64__)
    void* saved = nullptr;
#else
    ucontext_t saved;
#endif
};

struct Lane {
    State state;
    int line;
    unsigned mask;
    Fiber* fiber;
    unsigned long long given, taken;
};

static Fiber fibers[MOST], host;
static Fiber* idle[MOST];
static Fiber* running;
static Lane lanes[MOST];
static unsigned idles = 0, current, started, threads, votes[2], phase;
static bool backwards = false;
static void (*body)();
static char trouble[512];
alignas(1024) static char dynamic[DYNAMIC + GUARD];

#if defined(__x86_64__)
extern "C" void emulated_switch(void** saved, void* next) __attribute__((visibility("hidden")));
asm(R"(
.pushsection .text
.type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulated_switch, . - emulated_switch
.popsection
)");
static inline void change(Fiber& from, Fiber& to) {
    emulated_switch(&from.saved, to.saved);
    asm volatile("" ::: "memory");
}
static void prepare(Fiber& fiber, void (*entry)()) {
    void** top = (void**)(fiber.stack + STACK);
    *--top = nullptr;
    *--top = (void*)entry;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.saved = top;
}
#else
static inline void change(Fiber& from, Fiber& to) { swapcontext(&from.saved, &to.saved); }
static void prepare(Fiber& fiber, void (*entry)()) {
    getcontext(&fiber.saved);
    fiber.saved.uc_stack = {fiber.stack, 0, STACK};
    fiber.saved.uc_link = nullptr;
    makecontext(&fiber.saved, entry, 0);
}
#endif

static void place_thread(unsigned number) {
    current = number;
    threadIdx = {number % blockDim.x, number / blockDim.x % blockDim.y, number / (blockDim.x * blockDim.y)};
}

// A fiber runs one new thread after another until one has to wait; a kernel without barriers needs one fiber only.
static void work() {
    while (true) {
        while (started < threads) {
            unsigned position = started++;
            place_thread(backwards ? threads - 1 - position : position);
            lanes[current].state = RUNNING;
            body();
            lanes[current].state = RETURNED;
        }
        idle[idles++] = running;
        change(*running, host);
    }
}

static void resume(Fiber* fiber) {
    running = fiber;
    change(host, *fiber);
}

static Fiber* fresh() {
    Fiber* fiber = idle[--idles];
    if (!fiber->stack) {
        void* stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) abort();
        mprotect(stack, 4096, PROT_NONE);
        fiber->stack = (char*)stack;
        prepare(*fiber, work);
    }
    return fiber;
}

static void forget_fibers() {
    idles = 0;
    for (Fiber& fiber : fibers) {
        if (fiber.stack) prepare(fiber, work);
        idle[idles++] = &fiber;
    }
}

__attribute__((noinline)) static void wait(State why, int line, unsigned mask) {
    unsigned number = current;
    uint3 own = threadIdx;
    Fiber* fiber = running;
    lanes[number].state = why;
    lanes[number].line = line;
    lanes[number].mask = mask;
    lanes[number].fiber = fiber;
    change(*fiber, host);
    current = number;
    threadIdx = own;
}

static void go_on(unsigned number) {
    lanes[number].state = RUNNING;
    resume(lanes[number].fiber);
}

static inline unsigned ordered(unsigned position, unsigned count) { return backwards ? count - 1 - position : position; }

static bool release_block() {
    for (unsigned i = 0; i < threads; i++)
        if (lanes[i].state != AT_BLOCK || lanes[i].line != lanes[0].line) return false;
    phase++;
    votes[phase & 1] = 0;
    for (unsigned i = 0; i < threads; i++) go_on(ordered(i, threads));
    return true;
}

// The lanes of a warp that wait for each other; lanes that the block doesn't have count as there.
static bool release_group(unsigned first, unsigned lane) {
    Lane* warp = lanes + first;
    unsigned mask = warp[lane].mask, size = threads - first < 32 ? threads - first : 32;
    if (!(mask >> lane & 1)) return false;
    for (unsigned i = 0; i < size; i++)
        if (mask >> i & 1)
            if (warp[i].state != AT_WARP || warp[i].mask != mask || warp[i].line != warp[lane].line) return false;
    for (unsigned i = 0; i < size; i++)
        if (mask >> i & 1) warp[i].taken = warp[i].given;
    for (unsigned i = 0; i < size; i++) {
        unsigned next = ordered(i, size);
        if (mask >> next & 1) go_on(first + next);
    }
    return true;
}

static bool release_warps() {
    bool any = false;
    for (unsigned first = 0; first < threads; first += 32)
        for (unsigned lane = 0; lane < 32 && first + lane < threads; lane++)
            if (lanes[first + lane].state == AT_WARP && release_group(first, lane)) {
                any = true;
                break;
            }
    return any;
}

static bool all_returned() {
    for (unsigned i = 0; i < threads; i++)
        if (lanes[i].state != RETURNED) return false;
    return true;
}

static void report_divergence() {
    unsigned waiting = 0, returned = 0, first = threads;
    for (unsigned i = 0; i < threads; i++) {
        if (lanes[i].state == RETURNED) returned++;
        else if (first == threads) first = i;
    }
    for (unsigned i = 0; i < threads; i++)
        if (lanes[i].state == lanes[first].state && lanes[i].line == lanes[first].line) waiting++;
    std::snprintf(
        trouble, sizeof trouble,
        "divergent barrier in block (%u, %u, %u): %u of %u threads wait %s in line %d, %u have returned, %u wait elsewhere",
        blockIdx.x, blockIdx.y, blockIdx.z, waiting, threads, lanes[first].state == AT_BLOCK ? "for their block" : "for their warp",
        lanes[first].line, returned, threads - returned - waiting);
}

static bool run_block() {
    started = phase = votes[0] = votes[1] = 0;
    for (unsigned i = 0; i < threads; i++) lanes[i].state = NEW;
    while (true) {
        while (started < threads) resume(fresh());
        if (all_returned()) return true;
        if (release_block() || release_warps()) continue;
        report_divergence();
        forget_fibers();
        return false;
    }
}

static inline void barrier(int line) { wait(AT_BLOCK, line, 0); }

static inline int count(int line, int vote) {
    unsigned side = phase & 1;
    votes[side] += vote;
    barrier(line);
    return votes[side];
}

static inline void sync_warp(int line, unsigned mask = 0xffffffffu) { wait(AT_WARP, line, mask); }

// What a lane that takes no part, or is not there, would give is undefined: here all bits are set, which is NaN.
template <class T> static inline T exchange(int line, unsigned mask, T value, unsigned source) {
    static_assert(sizeof(T) <= 8, "a shuffle moves 8 bytes at most");
    Lane& own = lanes[current];
    unsigned first = current & ~31u;
    std::memcpy(&own.given, &value, sizeof value);
    wait(AT_WARP, line, mask);
    T got;
    if (source < 32 && (mask >> source & 1) && first + source < threads)
        std::memcpy(&got, &lanes[first + source].taken, sizeof got);
    else
        std::memset((void*)&got, 0xff, sizeof got);
    return got;
}

template <class T> static inline T shuffle(int line, unsigned mask, T value, int source, int width = 32) {
    unsigned lane = current & 31;
    return exchange(line, mask, value, (lane & ~(width - 1u)) | (source & (width - 1u)));
}
template <class T> static inline T shuffle_up(int line, unsigned mask, T value, unsigned by, int width = 32) {
    unsigned lane = current & 31;
    return exchange(line, mask, value, (lane & (width - 1u)) < by ? lane : lane - by);
}
template <class T> static inline T shuffle_down(int line, unsigned mask, T value, unsigned by, int width = 32) {
    unsigned lane = current & 31;
    return exchange(line, mask, value, (lane & (width - 1u)) + by >= (unsigned)width ? lane : lane + by);
}
template <class T> static inline T shuffle_xor(int line, unsigned mask, T value, int with, int width = 32) {
    unsigned lane = current & 31, source = lane ^ with;
    return exchange(line, mask, value, (source & ~(width - 1u)) > (lane & ~(width - 1u)) ? lane : source);
}

static inline unsigned ballot(int line, unsigned mask, int vote) {
    unsigned first = current & ~31u, votes = 0;
    exchange(line, mask, vote, 0);
    for (unsigned i = 0; i < 32 && first + i < threads; i++)
        if ((mask >> i & 1) && (int)lanes[first + i].taken) votes |= 1u << i;
    return votes;
}

static inline unsigned active() {
    unsigned first = current & ~31u, mask = 0;
    for (unsigned i = 0; i < 32 && first + i < threads; i++)
        if (lanes[first + i].state != RETURNED) mask |= 1u << i;
    return mask;
}

}  // namespace emulated
