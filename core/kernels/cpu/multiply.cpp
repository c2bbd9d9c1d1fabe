// The entries of the products: share the rows out among threads, to tiles (AMX and a K-quant) or to float32 dots.
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

// A stored matrix, and how activations are rounded before they meet it.
struct Matrix {
    const Layout& layout;
    const uint8_t* w;
    long rows, cols;
    Compute compute;

    long row_bytes() const { return (cols + layout.block - 1) / layout.block * layout.block_bytes; }
    Matrix part(long first, long n) const { return {layout, w + first * row_bytes(), n, cols, compute}; }
};

static void multiply_matrix(
    const Matrix& m, const float* x, long tokens, long x_step, float* out, long out_step, int threads) {
    const Compute how = m.compute;
    const long padded = (m.cols + LANES - 1) / LANES * LANES;
    std::vector<float> copy;
    if (how == Compute::Q8_K || how == Compute::Q8_0 || (how == Compute::BF16 ? !ROUNDS_HALVES : padded != m.cols)) {
        copy = prepare(x, tokens, x_step, m.cols, padded, how, tokens < TOKENS ? 1 : threads);
        x = copy.data(), x_step = padded;
    }
    const Job job{m.layout, m.w, m.rows, m.cols, m.row_bytes(), x, tokens, x_step, out, out_step, how == Compute::BF16};
    multiply_all(job, how, threads);
}

// Why a type cannot be multiplied yet; 0 where it can.
static int why_not(const Layout* found) { return !found ? UNKNOWN : found->grid && !found->grid->given ? NO_GRID : 0; }

// out[t][r] = x[t] . w[r]; steps are in values. Returns 0, or why not.
extern "C" __attribute__((visibility("default"))) int multiply(
    const char* quant, int compute, const uint8_t* w, long rows, long cols, const float* x, long tokens, long x_step,
    float* out, long out_step, int threads) try {
    const Layout* found = find_layout(quant);
    if (const int failed = why_not(found)) return failed;
    multiply_matrix({*found, w, rows, cols, static_cast<Compute>(compute)}, x, tokens, x_step, out, out_step, threads);
    return 0;
} catch (const std::bad_alloc&) {
    return NO_MEMORY;
}

// The tokens of one expert, gathered, times rows first .. first + n - 1 of it, and put back in their places.
static void multiply_gathered(const Matrix& expert, long first, long n, const float* x, const long* at, long tokens,
                              float* out, long out_step) {
    const Matrix part = expert.part(first, n);
    if (tokens == 1)
        return multiply_matrix(part, x + *at * part.cols, 1, part.cols, out + *at * out_step + first, out_step, 1);
    static thread_local std::vector<float> some, made;
    some.resize(static_cast<size_t>(tokens * part.cols)), made.resize(static_cast<size_t>(tokens * n));
    for (long t = 0; t < tokens; t++) std::copy_n(x + at[t] * part.cols, part.cols, some.data() + t * part.cols);
    multiply_matrix(part, some.data(), tokens, part.cols, made.data(), n, 1);
    for (long t = 0; t < tokens; t++) std::copy_n(made.data() + t * n, n, out + at[t] * out_step + first);
}

// out[at[i]][r] = x[at[i]] . w[e][r] for the rows at[i] of x, from[e] <= i < from[e + 1], of each expert ids[e].
// Experts are shared out whole, and parts of them where they are few beside the threads: that changes no bit.
extern "C" __attribute__((visibility("default"))) int multiply_experts(
    const char* quant, int compute, const uint8_t* w, long rows, long cols, const float* x, const long* at,
    const long* ids, const long* from, long n, float* out, int threads) {
    constexpr long TASKS = 4;  // a thread's share, at least
    constexpr long PART_ROWS = 256;  // each part turns its activations for itself
    const Layout* found = find_layout(quant);
    if (const int failed = why_not(found)) return failed;
    const Matrix all{*found, w, rows, cols, static_cast<Compute>(compute)};
    const long groups = (rows + PART_ROWS - 1) / PART_ROWS, wanted = (TASKS * threads + n - 1) / n;
    const long step = (groups + wanted - 1) / wanted * PART_ROWS, parts = (rows + step - 1) / step;
    std::atomic<bool> failed{false};
    pool().run(n * parts, threads, [&](long i) {
        const long e = i / parts, first = i % parts * step;
        try {
            multiply_gathered(all.part(ids[e] * rows, rows), first, std::min(step, rows - first), x, at + from[e],
                              from[e + 1] - from[e], out, rows);
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    });
    return failed ? NO_MEMORY : 0;
}

// out[r] = w[r] as float32, rows of cols values; returns 0, or why not.
extern "C" __attribute__((visibility("default"))) int decode(
    const char* quant, const uint8_t* w, long rows, long cols, float* out, int threads) try {
    const Layout* found = find_layout(quant);
    if (const int failed = why_not(found)) return failed;
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
