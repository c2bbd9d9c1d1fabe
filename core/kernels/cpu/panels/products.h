// Share out products by panels: a task is a few panels of rows, times all tokens, panel by panel of tokens.
//
// Not here: one panel times another (bytes.h, pairs.h), what is left over (shares.h).
#pragma once
#include "bytes.h"
#include "../shares.h"

#if defined(__AVX2__)
constexpr long PANELS = 4;  // of rows, of one task
constexpr long TASKS_FEW = 8;  // of a thread, of few tokens: rows follow each other, what comes next is asked of memory
constexpr long NEAR_BYTES = 24 << 10;  // of activations that stay in the first cache beside a panel

// The width of token panels: as even as can be, so that 9 tokens are 5 and 4.
static inline long even_width(long tokens, long most) {
    const long panels = (tokens + most - 1) / most;
    return (tokens + panels - 1) / panels;
}

// Values k .. k + n - 1 of rows first .. last - 1; soon: what of memory is wanted next, `soon_step` from row to row.
struct Place {
    long first, last, k, n;
    const uint8_t* soon;
    long soon_step;
};

// What one way to multiply says to walk(): what a panel is made of, and what it adds to the sums y [tokens][VL].
// A panel is multiplied while it is in the first cache. One panel of tokens meets the panels as they lie in memory, for
// which it waits; so do activations (x_bytes) that stay in the first cache. Of more, a span's meet all of the task.
template <class Fill, class Multiply>
static void walk(const Job& job, long x_bytes, long width, long first, long last, const Fill& fill,
                 const Multiply& multiply) {
    const long parts = (last - first + VL - 1) / VL, spans = (job.cols + SPAN - 1) / SPAN;
    const long span_bytes = SPAN / job.layout.block * job.layout.block_bytes;
    static thread_local std::vector<float> kept;
    kept.assign(static_cast<size_t>(parts * job.tokens * VL), 0.0f);
    for (long i = 0; i < parts * spans; i++) {
        const bool along = job.tokens <= width || x_bytes <= NEAR_BYTES;
        const long p = along ? i / spans : i % parts, span = along ? i % spans : i / parts, k = span * SPAN;
        const long row = first + p * VL, next = along || p + 1 < parts ? row + VL : first;
        const uint8_t* rows = job.w + next * job.row_bytes;
        const Place at{row, std::min(last, row + VL), k, std::min(SPAN, job.cols - k),
                       along ? rows + VL * span * span_bytes : rows + (span + (next == first)) * span_bytes,
                       along ? span_bytes : job.row_bytes};
        fill(at);
        for (long t = 0; t < job.tokens; t += width)
            multiply(at, t, std::min(width, job.tokens - t), kept.data() + (p * job.tokens + t) * VL);
    }
    for (long t = 0; t < job.tokens; t++)
        for (long p = 0; p < parts; p++)
            std::copy_n(kept.data() + (p * job.tokens + t) * VL, std::min<long>(VL, last - first - p * VL),
                        job.out + t * job.out_step + first + p * VL);
}

static inline void take_panel(const Job& job, const Place& at, Panel& out) {
    const uint8_t* raw = job.w + at.first * job.row_bytes + at.k / job.layout.block * job.layout.block_bytes;
    job.layout.panel(raw, job.row_bytes, at.last - at.first, at.n, at.soon, at.soon_step, out);
}

constexpr int32_t FAR = 0x67000000;  // 2^79: with such a scale a group's sum may not be finite

// The largest size of a scale or a least of a panel, lane by lane.
static inline Ints largest_scale(const Panel& w, long groups, bool leasts) {
    Ints most = {};
    const auto take = [&](const float* scales) {
        const Ints size = load<Ints>(scales) & 0x7fffffff;
        most = size > most ? size : most;
    };
    for (long g = 0; g < groups; g++) {
        take(w.scale[g]);
        if (leasts) take(w.least[g]);
    }
    return most;
}

static void multiply_bytes_of(
    const Job& job, const Cut& cut, const Whole& x, long width, long first, long last, std::vector<long>& odd) {
    static thread_local std::unique_ptr<Panel> w(new Panel());
    static thread_local std::vector<Ints> most;
    most.assign(static_cast<size_t>((last - first + VL - 1) / VL), Ints{});
    const bool least = job.layout.least;
    const long x_bytes = job.tokens * cut.groups() * cut.words() * 4;
    const auto one = job.tokens == 1 ? job.layout.one[cut.digits == 3] : nullptr;
    const auto alone = [&](const Place& at) {
        return one && at.last - at.first == VL && at.n % job.layout.block == 0;
    };
    walk(job, x_bytes, width, first, last, [&](const Place& at) {
        if (alone(at)) return;
        take_panel(job, at, *w);
        Ints& all = most[(at.first - first) / VL];
        const Ints size = largest_scale(*w, (at.n + cut.group - 1) / cut.group, least);
        all = size > all ? size : all;
    }, [&](const Place& at, long t, long tokens, float* y) {
        const int32_t* stream = x.stream.data() + (t * cut.groups() + tokens * (at.k / cut.group)) * cut.words();
        const float* scale = x.scale.data() + t * cut.scales() + tokens * (at.k / cut.of_scale);
        if (alone(at)) {
            const uint8_t* raw = job.w + at.first * job.row_bytes + at.k / job.layout.block * job.layout.block_bytes;
            return one({{raw, job.row_bytes}, at.n, stream, scale, cut.of_scale, at.soon, y,
                        &most[(at.first - first) / VL]});
        }
        dot_of(cut.digits, tokens, cut.group, least, fit_of(job.layout.most))(
            *w, job.layout.bias, stream, scale, (at.n + cut.group - 1) / cut.group, cut.of_scale / cut.group, y);
    });
    for (long r = first; r < last; r++)
        if (most[(r - first) / VL][(r - first) % VL] >= FAR) odd.push_back(r);
}

// Turn all activations into whole numbers; returns the tokens that cannot be scaled.
static std::vector<long> cut_all(const Job& job, const Cut& cut, long width, Whole& out, int threads) {
    const size_t words = static_cast<size_t>(job.tokens * cut.groups() * cut.words());
    const size_t scales = static_cast<size_t>(job.tokens * cut.scales());
    if (out.stream.size() < words) out.stream.resize(words);
    if (out.scale.size() < scales) out.scale.resize(scales);
    std::vector<char> fine(static_cast<size_t>(job.tokens));
    pool().run(job.tokens, threads, [&](long t) {
        const long first = t / width * width, tokens = std::min(width, job.tokens - first);
        fine[t] = put_token(cut, job.x + t * job.x_step, out.stream.data() + first * cut.groups() * cut.words(),
                            out.scale.data() + first * cut.scales(), tokens, t - first);
    });
    std::vector<long> odd;
    for (long t = 0; t < job.tokens; t++)
        if (!fine[t]) odd.push_back(t);
    return odd;
}

// Whether this build multiplies a type by whole numbers.
static inline bool has_bytes(const Job& job, Compute compute) {
    const bool cut = compute != Compute::BF16 && (compute != Compute::F32 || THREE_DIGITS);
    return cut && job.layout.panel;
}

static void multiply_bytes(const Job& job, Compute compute, int threads) {
    const int digits = compute == Compute::F32 ? 3 : 1;
    const bool is_signed = !VNNI && fit_of(job.layout.most) == Fit::SIGNED;
    const Cut cut{job.cols, job.layout.group, compute == Compute::Q8_0 ? 32 : MOST_OF_SCALE, digits,
                  is_signed ? 0 : job.layout.bias};
    const long width = even_width(job.tokens, widest(digits));
    if (job.rows * job.cols * job.tokens <= ALONE_MACS) threads = 1;
    const long panels = job.tokens <= width ? std::max(PANELS, job.rows / (VL * TASKS_FEW * threads)) : PANELS;
    const long rows = VL * panels;
    static thread_local Whole x;
    Odd odd;
    odd.tokens = cut_all(job, cut, width, x, threads);
    std::mutex lock;
    const Whole& inputs = x;
    pool().run((job.rows + rows - 1) / rows, threads, [&](long i) {
        std::vector<long> some;
        multiply_bytes_of(job, cut, inputs, width, i * rows, std::min(job.rows, (i + 1) * rows), some);
        std::lock_guard<std::mutex> hold(lock);
        odd.rows.insert(odd.rows.end(), some.begin(), some.end());
    });
    multiply_odd(job, odd, threads);
}
#else
static inline bool has_bytes(const Job&, Compute) { return false; }

static void multiply_bytes(const Job&, Compute, int) {}
#endif
