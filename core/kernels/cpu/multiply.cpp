// The entry of the products: shares the rows out among threads, to tiles (AMX and a K-quant) or to float32 dots.
//
// A row is one thread's, so the number of threads changes no bit. Not here: which build is loaded (build.py).
#include "blocks/table.h"
#include "dots.h"
#include "pool.h"

#if defined(__AMX_INT8__)
#include <sys/syscall.h>

// Ask the kernel once for the tile registers.
static bool has_tiles() {
    constexpr int ASK = 0x1023, TILE_DATA = 18;
    static const bool granted = syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
    return granted;
}
#endif

// Rows are shared out by tiles of TILE_ROWS; few products are not worth waking a second thread for.
static void multiply_dots(const Job& job, int threads) {
    const long tasks = (job.rows + TILE_ROWS - 1) / TILE_ROWS;
    if (job.rows * job.cols * job.tokens <= ALONE_MACS) threads = 1;
    pool().run(tasks, threads, [&](long i) {
        multiply_rows(job, i * TILE_ROWS, std::min(job.rows, (i + 1) * TILE_ROWS));
    });
}

#if defined(__AMX_INT8__)
// Tokens that cannot be scaled: gathered, multiplied in float32, and put back in their places.
static void multiply_odd_tokens(const Job& job, const std::vector<long>& odd, int threads) {
    const long n = static_cast<long>(odd.size()), width = job.x_step;
    std::vector<float> x(static_cast<size_t>(n * width)), out(static_cast<size_t>(n * job.rows));
    for (long i = 0; i < n; i++) std::copy_n(job.x + odd[i] * width, width, x.data() + i * width);
    Job some = job;
    some.x = x.data(), some.tokens = n, some.x_step = width, some.out = out.data(), some.out_step = job.rows;
    multiply_dots(some, threads);
    for (long i = 0; i < n; i++) std::copy_n(out.data() + i * job.rows, job.rows, job.out + odd[i] * job.out_step);
}

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
    const float top = compute == Q8_K ? Q8_TOP : TOP;
    const std::vector<long> odd_tokens = split_all(job, blocks, top, inputs, job.tokens == 1 ? 1 : threads);
    std::vector<Line> alone(job.tokens == 1 ? static_cast<size_t>(blocks) : 0);
    for (size_t j = 0; j < alone.size(); j++) to_line(inputs[j], 0, alone[j]);

    const TileJob tiles{job.layout.digits, job.w, job.cols, job.layout.block_bytes, job.row_bytes, inputs,
                        job.tokens, job.out, job.out_step, compute == Q8_K ? 2 : 0};
    const auto multiply_group = job.layout.mins ? multiply_tiles<true> : multiply_tiles<false>;
    std::mutex lock;
    std::vector<long> odd_rows;
    pool().run((job.rows + GROUP - 1) / GROUP, threads, [&](long i) {
        std::vector<long> odd;
        const long first = i * GROUP, last = std::min(job.rows, first + GROUP);
        if (alone.empty())
            multiply_group(tiles, first, last, odd);
        else
            job.layout.line(tiles, alone.data(), first, last, odd);
        std::lock_guard<std::mutex> hold(lock);
        odd_rows.insert(odd_rows.end(), odd.begin(), odd.end());
    });
    pool().run(static_cast<long>(odd_rows.size()), threads,
               [&](long i) { multiply_rows(job, odd_rows[i], odd_rows[i] + 1); });
    if (!odd_tokens.empty()) multiply_odd_tokens(job, odd_tokens, threads);
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

static void multiply_all(const Job& job, Compute compute, int threads) {
    if (compute == BF16)
        multiply_bf16(job, threads);
    else if (job.layout.digits)
        multiply_digits(job, compute, threads);
    else
        multiply_dots(job, threads);
}
#else
constexpr bool ROUNDS_HALVES = false;  // multiply_all, by itself

static void multiply_all(const Job& job, Compute, int threads) { multiply_dots(job, threads); }
#endif

// x as the compute wants it, each token padded with zeros to whole lanes; Q8_K needs whole blocks.
static std::vector<float> prepare(
    const float* x, long tokens, long x_step, long cols, long padded, Compute compute, int threads) {
    std::vector<float> copy(static_cast<size_t>(padded * tokens));
    pool().run(tokens, threads, [&](long t) {
        const float* from = x + t * x_step;
        float* to = copy.data() + t * padded;
        if (compute == BF16)
            std::transform(from, from + cols, to, round_half);
        else if (compute == Q8_K)
            for (long k = 0; k < cols; k += Q8_BLOCK) round_q8_k(from + k, to + k);
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
    if (how == Q8_K || (how == BF16 ? !ROUNDS_HALVES : padded != cols)) {
        copy = prepare(x, tokens, x_step, cols, padded, how, tokens < TOKENS ? 1 : threads);
        x = copy.data(), x_step = padded;
    }
    const long row_bytes = (cols + layout.block - 1) / layout.block * layout.block_bytes;
    multiply_all({layout, w, rows, cols, row_bytes, x, tokens, x_step, out, out_step, how == BF16}, how, threads);
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
