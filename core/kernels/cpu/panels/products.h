// Share out products by panels: a task is a few panels of rows, times all tokens, panel by panel of tokens.
//
// Not here: one panel times another (bytes.h, pairs.h), what is left over (shares.h).
#pragma once
#include "bytes.h"
#include "../shares.h"

#if defined(__AVX2__)
constexpr long PANELS = 4;  // of rows, of one task

// The width of token panels: as even as can be, so that 7 tokens are 4 and 3.
static inline long even_width(long tokens, long most) {
    const long panels = (tokens + most - 1) / most;
    return (tokens + panels - 1) / panels;
}

// What one way to multiply says to walk(): where values k .. k + n - 1 of a panel of rows come from, and what they add to
// the sums y [tokens][VL]. A panel is multiplied while it is in the first cache; of many tokens a span's activations meet
// all panels of the task, from the second.
template <class Fill, class Multiply>
static void walk(const Job& job, long width, long first, long last, const Fill& fill, const Multiply& multiply) {
    const long parts = (last - first + VL - 1) / VL, together = job.tokens <= width ? 1 : parts;
    static thread_local std::vector<float> kept;
    kept.assign(static_cast<size_t>(parts * job.tokens * VL), 0.0f);
    for (long part = 0; part < parts; part += together)
        for (long k = 0; k < job.cols; k += SPAN)
            for (long p = part; p < part + together; p++) {
                const long n = std::min(SPAN, job.cols - k);
                fill(first + p * VL, std::min(last, first + (p + 1) * VL), k, n);
                for (long t = 0; t < job.tokens; t += width)
                    multiply(t, std::min(width, job.tokens - t), k, n, kept.data() + (p * job.tokens + t) * VL);
            }
    for (long t = 0; t < job.tokens; t++)
        for (long p = 0; p < parts; p++)
            std::copy_n(kept.data() + (p * job.tokens + t) * VL, std::min<long>(VL, last - first - p * VL),
                        job.out + t * job.out_step + first + p * VL);
}

// Values k .. k + n - 1 of rows first .. last - 1 into a panel; what follows is asked of memory ahead.
static inline void take_panel(const Job& job, long first, long last, long k, long n, Panel& out) {
    const long bytes = SPAN / job.layout.block * job.layout.block_bytes, at = k / SPAN * bytes;
    const uint8_t *raw = job.w + first * job.row_bytes, *soon = raw + VL * (job.row_bytes + at);
    job.layout.panel(raw + at, job.row_bytes, last - first, n, soon, out);
}

// Whether a scale of a panel is not finite, or so large that a group's sum may not be, lane by lane.
static inline void find_odd(const Panel& w, long groups, bool leasts, bool* odd) {
    constexpr int32_t FAR = 0x67000000;  // 2^79
    Ints most = {};
    const auto take = [&](const float* scales) {
        const Ints size = load<Ints>(scales) & 0x7fffffff;
        most = size > most ? size : most;
    };
    for (long g = 0; g < groups; g++) {
        take(w.scale[g]);
        if (leasts) take(w.least[g]);
    }
    for (int r = 0; r < VL; r++) odd[r] |= most[r] >= FAR;
}

static void multiply_bytes_of(
    const Job& job, const Cut& cut, const Whole& x, long width, long first, long last, std::vector<long>& odd) {
    static thread_local std::unique_ptr<Panel> w(new Panel());
    bool not_finite[PANELS * VL] = {};
    const bool least = job.layout.least;
    walk(job, width, first, last, [&](long from, long to, long k, long n) {
        take_panel(job, from, to, k, n, *w);
        find_odd(*w, (n + cut.group - 1) / cut.group, least, not_finite + (from - first));
    }, [&](long t, long tokens, long k, long n, float* y) {
        dot_of(cut.digits, tokens, cut.group, least, fit_of(job.layout.most))(
            *w, job.layout.bias, x.stream.data() + (t * cut.groups() + tokens * (k / cut.group)) * cut.words(),
            x.scale.data() + t * cut.scales() + tokens * (k / cut.of_scale), (n + cut.group - 1) / cut.group,
            cut.of_scale / cut.group, y);
    });
    for (long r = first; r < last; r++)
        if (not_finite[r - first]) odd.push_back(r);
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
    const long width = even_width(job.tokens, widest(digits)), rows = VL * PANELS;
    if (job.rows * job.cols * job.tokens <= ALONE_MACS) threads = 1;
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
