// The entry of the products: shares the rows out among threads, to tiles (AMX and a K-quant) or to float32 dots.
//
// A row is one thread's, so the number of threads changes no bit. Not here: which build is loaded (build.py).
#include "blocks/table.h"
#include "panels/pairs.h"

#if defined(__AMX_INT8__)
#include <sys/syscall.h>

// Ask the kernel once for the tile registers.
static bool has_tiles() {
    constexpr int ASK = 0x1023, TILE_DATA = 18;
    static const bool granted = syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
    return granted;
}
#endif

#if defined(__AMX_INT8__)
// Turn the activations into whole numbers, 16 tokens of a super-block a task; returns the tokens that cannot be scaled.
static std::vector<long> split_all(const Job& job, long blocks, float top, Inputs* inputs, int threads) {
    const long groups = (job.tokens + TILE - 1) / TILE;
    std::vector<char> unfit(static_cast<size_t>(blocks * job.tokens));
    pool().run(blocks * groups, threads, [&](long i) {
        const long j = i / groups, first = i % groups * TILE, n = std::min<long>(SUPER, job.cols - j * SUPER);
        for (long t = first; t < std::min(first + TILE, job.tokens); t++) {
            const float* x = job.x + t * job.x_step + j * SUPER;
            unfit[j * job.tokens + t] = !split(x, n, top, inputs[i], static_cast<int>(t - first));
        }
    });
    std::vector<long> odd;
    for (long t = 0; t < job.tokens; t++) {
        char any = 0;
        for (long j = 0; j < blocks; j++) any |= unfit[j * job.tokens + t];
        if (any) odd.push_back(t);
    }
    return odd;
}

static void multiply_digits(const Job& job, Compute compute, int threads) {
    const long blocks = (job.cols + SUPER - 1) / SUPER, groups = (job.tokens + TILE - 1) / TILE;
    if (job.rows * job.cols * job.tokens <= ALONE_MACS) threads = 1;
    static thread_local std::vector<Inputs> kept;
    if (kept.size() < static_cast<size_t>(blocks * groups)) kept.resize(static_cast<size_t>(blocks * groups));
    Inputs* inputs = kept.data();
    const float top = compute == Compute::Q8_K ? Q8_TOP : TOP;
    Odd odd;
    odd.tokens = split_all(job, blocks, top, inputs, job.tokens == 1 ? 1 : threads);
    std::vector<Line> alone(job.tokens == 1 ? static_cast<size_t>(blocks) : 0);
    for (size_t j = 0; j < alone.size(); j++) to_line(inputs[j], 0, alone[j]);

    const TileJob tiles{job.layout.digits, job.w, job.cols, job.layout.block_bytes, job.row_bytes, inputs,
                        job.tokens, job.out, job.out_step, compute == Compute::Q8_K ? 2 : 0};
    const auto multiply_group = job.layout.least ? multiply_tiles<true> : multiply_tiles<false>;
    std::mutex lock;
    pool().run((job.rows + GROUP - 1) / GROUP, threads, [&](long i) {
        std::vector<long> some;
        const long first = i * GROUP, last = std::min(job.rows, first + GROUP);
        if (alone.empty())
            multiply_group(tiles, first, last, some);
        else
            job.layout.line(tiles, alone.data(), first, last, some);
        std::lock_guard<std::mutex> hold(lock);
        odd.rows.insert(odd.rows.end(), some.begin(), some.end());
    });
    multiply_odd(job, odd, threads);
}

// Products of bfloat16, rows shared out by groups of HALF_ROWS.
static void multiply_bf16(const Job& job, int threads) {
    const long blocks = (job.cols + SUPER - 1) / SUPER, groups = (job.tokens + TILE - 1) / TILE;
    if (job.rows * job.cols * job.tokens <= ALONE_MACS) threads = 1;
    static thread_local std::vector<HalfInputs> kept;
    if (kept.size() < static_cast<size_t>(blocks * groups)) kept.resize(static_cast<size_t>(blocks * groups));
    HalfInputs* inputs = kept.data();
    pool().run(blocks * groups, job.tokens == 1 ? 1 : threads, [&](long i) {
        const long j = i / groups, first = i % groups * TILE, n = std::min<long>(SUPER, job.cols - j * SUPER);
        for (long t = first; t < std::min(first + TILE, job.tokens); t++)
            to_pairs(job.x + t * job.x_step + j * SUPER, n, inputs[i], static_cast<int>(t - first));
    });
    pool().run((job.rows + HALF_ROWS - 1) / HALF_ROWS, threads,
               [&](long i) { multiply_halves(job, inputs, i * HALF_ROWS, std::min(job.rows, (i + 1) * HALF_ROWS)); });
}

constexpr bool ROUNDS_HALVES = true;
#elif defined(__AVX512BF16__) && defined(__AVX512VBMI__)
constexpr bool ROUNDS_HALVES = true;
static void multiply_bf16(const Job& job, int threads) { multiply_pairs(job, threads); }
#else
constexpr bool ROUNDS_HALVES = false;  // multiply_dots, by itself
static void multiply_bf16(const Job& job, int threads) { multiply_dots(job, threads); }
#endif

static void multiply_all(const Job& job, Compute compute, int threads) {
    if (compute == Compute::BF16) return multiply_bf16(job, threads);
#if defined(__AMX_INT8__)
    if (job.layout.digits) return multiply_digits(job, compute, threads);
#endif
    has_bytes(job, compute) ? multiply_bytes(job, compute, threads) : multiply_dots(job, threads);
}

// x as the compute wants it, each token padded with zeros to whole lanes; Q8_K needs whole blocks.
static std::vector<float> prepare(
    const float* x, long tokens, long x_step, long cols, long padded, Compute compute, int threads) {
    std::vector<float> copy(static_cast<size_t>(padded * tokens));
    pool().run(tokens, threads, [&](long t) {
        const float* from = x + t * x_step;
        float* to = copy.data() + t * padded;
        if (compute == Compute::BF16)
            std::transform(from, from + cols, to, round_half);
        else if (compute == Compute::Q8_K)
            for (long k = 0; k < cols; k += Q8_BLOCK) round_q8_k(from + k, to + k);
        else if (compute == Compute::Q8_0)
            for (long k = 0; k < cols; k += Q8_SMALL) round_q8_0(from + k, to + k);
        else
            std::copy_n(from, cols, to);
    });
    return copy;
}

constexpr int MOST_BLOCK = 256;  // values of a block, at most
constexpr int NO_MEMORY = 1, UNKNOWN = 2, NO_GRID = 3;

// out[t][r] = x[t] . w[r]; steps are in values. Returns 0, or why not.
extern "C" __attribute__((visibility("default"))) int multiply(
    const char* quant, int compute, const uint8_t* w, long rows, long cols, const float* x, long tokens, long x_step,
    float* out, long out_step, int threads) try {
    const Layout* found = find_layout(quant);
    if (!found) return UNKNOWN;
    const Layout& layout = *found;
    if (layout.grid && !layout.grid->given) return NO_GRID;
    const Compute how = static_cast<Compute>(compute);
    const long padded = (cols + LANES - 1) / LANES * LANES;
    std::vector<float> copy;
    if (how == Compute::Q8_K || how == Compute::Q8_0 || (how == Compute::BF16 ? !ROUNDS_HALVES : padded != cols)) {
        copy = prepare(x, tokens, x_step, cols, padded, how, tokens < TOKENS ? 1 : threads);
        x = copy.data(), x_step = padded;
    }
    const long row_bytes = (cols + layout.block - 1) / layout.block * layout.block_bytes;
    const Job job{layout, w, rows, cols, row_bytes, x, tokens, x_step, out, out_step, how == Compute::BF16};
    multiply_all(job, how, threads);
    return 0;
} catch (const std::bad_alloc&) {
    return NO_MEMORY;
}

// out[r] = w[r] as float32, rows of cols values; returns 0, or why not.
extern "C" __attribute__((visibility("default"))) int decode(
    const char* quant, const uint8_t* w, long rows, long cols, float* out, int threads) try {
    const Layout* found = find_layout(quant);
    if (!found) return UNKNOWN;
    if (found->grid && !found->grid->given) return NO_GRID;
    const long block = found->block, whole = cols / block * block, rest = cols - whole;
    const long row_bytes = (cols + block - 1) / block * found->block_bytes;
    pool().run(rows, rows * cols <= ALONE_MACS ? 1 : threads, [&](long r) {
        float last[MOST_BLOCK];
        const uint8_t* raw = w + r * row_bytes;
        found->decode(raw, out + r * cols, whole);
        if (!rest) return;
        found->decode(raw + whole / block * found->block_bytes, last, block);
        std::copy_n(last, rest, out + r * cols + whole);
    });
    return 0;
} catch (const std::bad_alloc&) {
    return NO_MEMORY;
}

// Keep the points of a type's grid; returns 0, or UNKNOWN where it has none, or one of another size.
extern "C" __attribute__((visibility("default"))) int take_grid(const char* quant, const uint8_t* values, long bytes) {
    const Layout* found = find_layout(quant);
    if (!found || !found->grid || bytes > Grid::MOST) return UNKNOWN;
    memcpy(found->grid->values, values, static_cast<size_t>(bytes));
    found->grid->given = true;
    return 0;
}

// Say whether the operating system lets this build run here.
extern "C" __attribute__((visibility("default"))) int ready() {
#if defined(__AMX_INT8__)
    return has_tiles();
#else
    return 1;
#endif
}
