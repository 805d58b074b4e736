// Launchers, which follow the kernels in the text.
namespace emulated {

template <class T, class = void> struct Element { using type = T; };
template <class T> struct Element<T, std::void_t<decltype(T::x)>> { using type = decltype(T::x); };

// "f4" for float, "i8" for long long, "V2" for a bfloat16, "*f4" for a pointer to floats, "*?" for one to something else.
template <class T> static void describe(char*& text) {
    if constexpr (std::is_pointer_v<T>) {
        *text++ = '*';
        using Target = std::remove_cv_t<std::remove_pointer_t<T>>;
        if constexpr (std::is_void_v<Target>) *text++ = '?';
        else describe<typename Element<Target>::type>(text);
    } else if constexpr (std::is_same_v<T, bool>) {
        *text++ = 'b', *text++ = '1';
    } else if constexpr (std::is_arithmetic_v<T>) {
        *text++ = std::is_floating_point_v<T> ? 'f' : std::is_signed_v<T> ? 'i' : 'u';
        *text++ = '0' + sizeof(T);
    } else if constexpr (sizeof(T) == 2) {
        *text++ = 'V', *text++ = '2';
    } else {
        *text++ = '?';
    }
}

template <auto kernel> struct Launcher;
template <class... Types, void (*kernel)(Types...)> struct Launcher<kernel> {
    static inline void** arguments;

    template <std::size_t... I> static void call(std::index_sequence<I...>) {
        kernel(*(std::remove_cv_t<Types>*)arguments[I]...);
    }
    static void thread() { call(std::index_sequence_for<Types...>{}); }

    static const char* signature() {
        static char text[8 * sizeof...(Types) + 8];
        char* end = text;
        ((describe<std::remove_cv_t<Types>>(end), *end++ = ' '), ...);
        *end = 0;
        return text;
    }
};

static bool dynamic_is_whole(unsigned shared) {
    for (unsigned i = shared; i < shared + GUARD; i++)
        if (dynamic[i] != (char)0xff) return false;
    return true;
}

static bool run_poisoned_block(unsigned shared) {
    if (__start_emulated_shared != __stop_emulated_shared)
        std::memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
    std::memset(dynamic, 0xff, shared + GUARD);
    if (!run_block()) return false;
    if (dynamic_is_whole(shared)) return true;
    std::snprintf(trouble, sizeof trouble, "write beyond the %u bytes of shared memory in block (%u, %u, %u)", shared,
                  blockIdx.x, blockIdx.y, blockIdx.z);
    return false;
}

// Returns null, or what went wrong. ``reverse``: blocks and threads take turns in the opposite order.
static const char* launch(void (*thread)(), const unsigned* grid, const unsigned* block, unsigned shared, int reverse) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    threads = block[0] * block[1] * block[2];
    body = thread;
    backwards = reverse;
    if (!idles) forget_fibers();
    unsigned long long blocks = (unsigned long long)grid[0] * grid[1] * grid[2];
    for (unsigned long long i = 0; i < blocks; i++) {
        unsigned long long number = reverse ? blocks - 1 - i : i;
        blockIdx = {(unsigned)(number % grid[0]), (unsigned)(number / grid[0] % grid[1]), (unsigned)(number / grid[0] / grid[1])};
        if (!run_poisoned_block(shared)) return trouble;
    }
    return nullptr;
}

}  // namespace emulated

#define EMULATED_LAUNCHER(name, kernel)                                                                                  \
    extern "C" __attribute__((visibility("default"))) const char* launch_##name(                                 \
        const unsigned* grid, const unsigned* block, void** arguments, unsigned shared, int reverse) {           \
        emulated::Launcher<&kernel>::arguments = arguments;                                                        \
        return emulated::launch(emulated::Launcher<&kernel>::thread, grid, block, shared, reverse);                \
    }                                                                                                            \
    extern "C" __attribute__((visibility("default"))) const char* signature_##name() {                           \
        return emulated::Launcher<&kernel>::signature();                                                           \
    }
