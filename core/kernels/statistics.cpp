// Statistics of each token's values, in float64, and each channel's largest size over the tokens, in two passes.
//
// Sums run in 16 lanes, added as a tree: their bits depend on the values and the width alone, not on the threads.
// Not here: what the statistics mean (stats.py), which channels are told (tap.py).
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "pool.h"
#include "vectors.h"

constexpr int32_t NO_SIGN = 0x7fffffff, NOT_FINITE = 0x7f800000;
constexpr long TOKENS_A_TASK = 8;

struct Row {
    double mean, m2, least, most, sumsq;
    double nan, inf, zero, peak_channel, nan_channel;  // counts and indices, exact in a double
};

static int32_t bits_of(float f) {
    int32_t i;
    memcpy(&i, &f, 4);
    return i;
}

// The order of the sums is that of the fast path: lane i takes values i, i + 16 ... that are finite.
static Row take_odd(const float* x, long n, float* peak) {
    Row row{0, 0, std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(), 0, 0, 0, 0, -1, -1};
    double sum[LANES] = {}, square[LANES] = {}, spread[LANES] = {};
    float largest = -1;
    long finite = 0;
    for (long i = 0; i < n; i++) {
        const double d = x[i];
        const float size = std::fabs(x[i]);
        if (std::isnan(d)) {
            if (row.nan++ == 0) row.nan_channel = static_cast<double>(i);
        } else if (std::isinf(d)) {
            row.inf++;
        } else {
            finite++, row.zero += d == 0, row.least = std::min(row.least, d), row.most = std::max(row.most, d);
            sum[i % LANES] += d, square[i % LANES] += d * d;
            if (size > largest) largest = size, row.peak_channel = static_cast<double>(i);
            peak[i] = std::max(peak[i], size);
        }
    }
    row.mean = add_lanes<double>(sum) / static_cast<double>(std::max(1L, finite));
    for (long i = 0; i < n; i++)
        if (std::isfinite(x[i])) spread[i % LANES] += (x[i] - row.mean) * (x[i] - row.mean);
    row.m2 = add_lanes<double>(spread), row.sumsq = add_lanes<double>(square);
    return row;
}

static Row take(const float* x, long n, float* peak) {
    constexpr int STEP = VL / 2;
    Vec least = Vec{} + x[0], most = least;
    Ints size_most = {}, zeros = {};
    Double sum[LANES / STEP] = {}, square[LANES / STEP] = {}, spread[LANES / STEP] = {};
    const long whole = n / LANES * LANES;
    for (long k = 0; k < whole; k += LANES) {
        for (int p = 0; p < PARTS; p++) {
            const Vec v = load<Vec>(x + k + p * VL);
            const Ints size = load<Ints>(x + k + p * VL) & NO_SIGN;
            least = v < least ? v : least, most = v > most ? v : most;
            size_most = size > size_most ? size : size_most, zeros -= size == 0;
        }
        for (int p = 0; p < LANES / STEP; p++) {
            const Double d = __builtin_convertvector(load<Half>(x + k + p * STEP), Double);
            sum[p] += d, square[p] += d * d;
        }
    }
    double tail_sum[LANES] = {}, tail_square[LANES] = {}, tail_spread[LANES] = {};
    memcpy(tail_sum, sum, sizeof sum), memcpy(tail_square, square, sizeof square);
    int32_t largest = 0, zero = 0;
    float low = x[0], high = x[0];
    for (int i = 0; i < VL; i++)
        largest = std::max(largest, size_most[i]), zero += zeros[i], low = std::min(low, least[i]), high = std::max(high, most[i]);
    for (long k = whole; k < n; k++) {
        const double d = x[k];
        tail_sum[k - whole] += d, tail_square[k - whole] += d * d, low = std::min(low, x[k]), high = std::max(high, x[k]);
        largest = std::max(largest, bits_of(x[k]) & NO_SIGN), zero += x[k] == 0;
    }
    if (largest >= NOT_FINITE) return take_odd(x, n, peak);

    Row row{0, 0, low, high, add_lanes<double>(tail_square), 0, 0, static_cast<double>(zero), 0, -1};
    row.mean = add_lanes<double>(tail_sum) / static_cast<double>(n);
    for (long k = 0; k < whole; k += LANES) {
        for (int p = 0; p < LANES / STEP; p++) {
            const Double d = __builtin_convertvector(load<Half>(x + k + p * STEP), Double) - row.mean;
            spread[p] += d * d;
        }
        for (int p = 0; p < PARTS; p++) {  // sizes are compared as whole numbers: the order is that of the floats
            const Ints size = load<Ints>(x + k + p * VL) & NO_SIGN, had = load<Ints>(peak + k + p * VL);
            const Ints most_yet = size > had ? size : had;
            memcpy(peak + k + p * VL, &most_yet, sizeof most_yet);
        }
    }
    memcpy(tail_spread, spread, sizeof spread);
    for (long k = whole; k < n; k++) {
        tail_spread[k - whole] += (x[k] - row.mean) * (x[k] - row.mean);
        peak[k] = std::max(peak[k], std::fabs(x[k]));
    }
    row.m2 = add_lanes<double>(tail_spread);
    long at = 0;
    while ((bits_of(x[at]) & NO_SIGN) != largest) at++;
    row.peak_channel = static_cast<double>(at);
    return row;
}

// rows: [10][tokens], in the order of Row. peak: [width], the largest finite size of each channel, below 0 where none is.
extern "C" __attribute__((visibility("default"))) int measure(const float* x, long tokens, long width, long x_step, double* rows, float* peak, int threads) {
    const long tasks = (tokens + TOKENS_A_TASK - 1) / TOKENS_A_TASK;
    const int crew = static_cast<int>(std::min<long>(tokens * width < 1 << 16 ? 1 : threads, tasks));
    std::unique_ptr<float[]> peaks(new (std::nothrow) float[static_cast<size_t>(crew * width)]);
    if (!peaks) return 1;
    std::fill_n(peaks.get(), crew * width, -1.0f);
    pool().run(crew, crew, [&](long worker) {
        float* mine = peaks.get() + worker * width;
        for (long task = worker; task < tasks; task += crew)
            for (long t = task * TOKENS_A_TASK; t < std::min(tokens, (task + 1) * TOKENS_A_TASK); t++) {
                const Row row = take(x + t * x_step, width, mine);
                const double values[] = {row.mean, row.m2, row.least, row.most, row.sumsq, row.nan, row.inf, row.zero, row.peak_channel, row.nan_channel};
                for (int i = 0; i < 10; i++) rows[i * tokens + t] = values[i];
            }
    });
    for (long c = 0; c < width; c++) {
        float most = peaks[c];
        for (int worker = 1; worker < crew; worker++) most = std::max(most, peaks[worker * width + c]);
        peak[c] = most;
    }
    return 0;
}
