// Statistics of each token's values, in float64, and each channel's largest size over the tokens, in one pass.
//
// A second pass takes the deviations where the mean is large beside them: sum x^2 - n mean^2 would lose digits there.
// Sums run in 16 lanes, added as a tree: their bits depend on the values and the width alone, not on the threads.
// Not here: what the statistics mean (trace/stats.py), which channels are told (trace/taps.py).
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "pool.h"
#include "rounding.h"
#include "vectors.h"

constexpr int32_t NO_SIGN = 0x7fffffff, NOT_FINITE = 0x7f800000;
constexpr long TASK_VALUES = 1 << 14;   // of the tokens of one task, at least
constexpr long ALONE_VALUES = 1 << 19;  // fewer values than that are not worth waking a thread for: 0.2 ms

constexpr int TOP = 8, FAR = 4;

struct Row {  // of a token: ROW in trace/stats.py
    double mean, m2, least, most, sumsq;
    int64_t nan, inf, zero, peak_channel, nan_channel;
};

struct Peaks {  // of a stage: PEAKS in trace/stats.py
    int64_t n, channel[TOP], row[TOP];
    double value[TOP];
    int64_t n_far;
    double median, far[FAR][3];  // row, channel, value
    int64_t factors, factors_row, factors_channel;
    double left, right, correlation;
};
enum { NONE, GIVEN, NOT_ALL_FINITE };  // of factors: not a product with a peak; told; there, but not told

extern "C" int massive(const float*, long tokens, long width, double least, double multiple, int most, double* room);
extern "C" int correlate(const float* left, const float* right, long n, long channel, double* room);

// A row with NaN or Inf. The order of the sums is that of take: lane i has values i, i + 16 ... that are finite.
static Row take_odd(const float* x, long n) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    Row row{0, 0, infinity, -infinity, 0, 0, 0, 0, -1, -1};
    double sum[LANES] = {}, square[LANES] = {}, spread[LANES] = {};
    float largest = -1;
    long finite = 0;
    for (long i = 0; i < n; i++) {
        const double d = x[i];
        const float size = std::fabs(x[i]);
        if (std::isnan(d)) {
            if (row.nan++ == 0) row.nan_channel = i;
        } else if (std::isinf(d)) {
            row.inf++;
        } else {
            finite++, row.zero += d == 0, row.least = std::min(row.least, d), row.most = std::max(row.most, d);
            sum[i % LANES] += d, square[i % LANES] += d * d;
            if (size > largest) largest = size, row.peak_channel = i;
        }
    }
    row.mean = add_lanes<double>(sum) / static_cast<double>(std::max(1L, finite));
    for (long i = 0; i < n; i++)
        if (std::isfinite(x[i])) spread[i % LANES] += (x[i] - row.mean) * (x[i] - row.mean);
    row.m2 = add_lanes<double>(spread), row.sumsq = add_lanes<double>(square);
    return row;
}

// widen: GCC 12 makes six instructions of __builtin_convertvector, two of the intrinsic.
#if defined(__AVX512F__)
static inline Vec smaller(Vec a, Vec b) { return _mm512_min_ps(a, b); }
static inline Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
static inline Ints smaller(Ints a, Ints b) { return (Ints)_mm512_min_epi32((__m512i)a, (__m512i)b); }
static inline Ints larger(Ints a, Ints b) { return (Ints)_mm512_max_epi32((__m512i)a, (__m512i)b); }
static inline bool any(Ints mask) { return _mm512_movepi32_mask((__m512i)mask); }
static inline Double widen(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
#elif defined(__AVX2__)
static inline Vec smaller(Vec a, Vec b) { return _mm256_min_ps(a, b); }
static inline Vec larger(Vec a, Vec b) { return _mm256_max_ps(a, b); }
static inline Ints smaller(Ints a, Ints b) { return (Ints)_mm256_min_epi32((__m256i)a, (__m256i)b); }
static inline Ints larger(Ints a, Ints b) { return (Ints)_mm256_max_epi32((__m256i)a, (__m256i)b); }
static inline bool any(Ints mask) { return _mm256_movemask_ps((__m256)mask); }
static inline Double widen(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
#else
static inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
static inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
static inline Ints smaller(Ints a, Ints b) { return a < b ? a : b; }
static inline Ints larger(Ints a, Ints b) { return a > b ? a : b; }
static inline bool any(Ints mask) {
    int found = 0;
    for (int i = 0; i < VL; i++) found |= mask[i];
    return found;
}
static inline Double widen(const float* p) { return __builtin_convertvector(load<Half>(p), Double); }
#endif

// Sum of squared deviations; the same lanes as in take.
static double spread_of(const float* x, long n, double mean) {
    double spread[LANES] = {};
    for (long k = 0; k < n; k++) spread[k % LANES] += (x[k] - mean) * (x[k] - mean);
    return add_lanes<double>(spread);
}

// A row; peak is of use only where it has no NaN and no Inf, which odd then tells.
static Row take(const float* x, long n, float* peak, bool& odd) {
    constexpr int STEP = VL / 2, HALVES = LANES / STEP;
    Vec least = Vec{} + x[0], most = least;
    Ints size_least = Ints{} + NO_SIGN;
    Double sum[HALVES] = {}, square[HALVES] = {};
    const long whole = n / LANES * LANES;
    for (long k = 0; k < whole; k += LANES) {
        __builtin_prefetch(x + k + 1024);
        for (int p = 0; p < PARTS; p++) {
            const Vec v = load<Vec>(x + k + p * VL);
            const Ints size = load<Ints>(x + k + p * VL) & NO_SIGN;  // sizes as whole numbers keep their order
            least = smaller(least, v), most = larger(most, v), size_least = smaller(size_least, size);
            const Ints most_yet = larger(load<Ints>(peak + k + p * VL), size);
            memcpy(peak + k + p * VL, &most_yet, sizeof most_yet);
        }
        for (int p = 0; p < HALVES; p++) {
            const Double d = widen(x + k + p * STEP);
            sum[p] += d, square[p] += d * d;
        }
    }
    double sums[LANES], squares[LANES];
    memcpy(sums, sum, sizeof sum), memcpy(squares, square, sizeof square);
    float low = x[0], high = x[0];
    int32_t smallest = NO_SIGN;
    for (int i = 0; i < VL; i++)
        low = std::min(low, least[i]), high = std::max(high, most[i]), smallest = std::min(smallest, size_least[i]);
    for (long k = whole; k < n; k++) {
        const double d = x[k];
        sums[k - whole] += d, squares[k - whole] += d * d, peak[k] = std::max(peak[k], std::fabs(x[k]));
        low = std::min(low, x[k]), high = std::max(high, x[k]), smallest = std::min(smallest, bits_of(x[k]) & NO_SIGN);
    }
    const double sumsq = add_lanes<double>(squares);
    if (!std::isfinite(sumsq)) {  // squares of floats cannot overflow
        odd = true;
        return take_odd(x, n);
    }
    const double count = static_cast<double>(n), mean = add_lanes<double>(sums) / count;
    const double about_zero = count * mean * mean, rest = sumsq - about_zero;
    int64_t zero = 0, at = 0;
    for (long k = 0; smallest == 0 && k < n; k++) zero += x[k] == 0;
    const int32_t largest = bits_of(std::max(-low, high)) & NO_SIGN;
    while (at < whole && !any((load<Ints>(x + at) & NO_SIGN) == largest)) at += VL;
    while ((bits_of(x[at]) & NO_SIGN) != largest) at++;
    return {mean, about_zero <= 4 * rest ? rest : spread_of(x, n, mean), low, high, sumsq, 0, 0, zero, at, -1};
}

// The peaks of the channels where some values are not finite.
static void find_peaks(const float* x, long tokens, long width, float* peak) {
    std::fill_n(peak, width, -1.0f);
    for (long t = 0; t < tokens; t++, x += width)
        for (long c = 0; c < width; c++)
            if (std::isfinite(x[c])) peak[c] = std::max(peak[c], std::fabs(x[c]));
}

// The channels of the largest peaks, the lowest first on a tie, and for each its first token. Returns how many.
static int find_top(const float* x, long tokens, long width, const float* peak, int64_t* channels, int64_t* at) {
    int n = 0;
    for (long c = 0; c < width; c++) {
        while (n == TOP && c + VL <= width && !any(load<Ints>(peak + c) > bits_of(peak[channels[TOP - 1]]))) c += VL;
        if (c >= width || !(peak[c] >= 0) || (n == TOP && !(peak[c] > peak[channels[TOP - 1]]))) continue;
        int i = n < TOP ? n++ : TOP - 1;
        for (; i > 0 && peak[c] > peak[channels[i - 1]]; i--) channels[i] = channels[i - 1];
        channels[i] = c;
    }
    for (int i = 0; i < n; i++)
        for (at[i] = 0; at[i] < tokens && std::fabs(x[at[i] * width + channels[i]]) != peak[channels[i]];) at[i]++;
    return n;
}

// A stage to measure, and where to.
struct Stage {
    const float* x;
    long tokens, width;
    long at_once, tasks;  // tokens of a task
    const float *left, *right;  // whose product it is; null where it is none
    Row* rows;            // [tokens]
    Peaks* peaks;
    long first;           // of its channels among those of all stages
    std::atomic<bool> odd{false};

    void take_tokens(long task, float* most) {
        bool any_odd = false;
        for (long t = task * at_once; t < std::min(tokens, (task + 1) * at_once); t++) {
            rows[t] = take(x + t * width, width, most, any_odd);
        }
        if (any_odd) odd = true;
    }

    // Tell what stands out; false where memory is lacking.
    bool tell_peaks(float* most, double least, double multiple) {
        Peaks& p = *peaks;
        if (odd) find_peaks(x, tokens, width, most);
        p.n = find_top(x, tokens, width, most, p.channel, p.row);
        for (int i = 0; i < p.n; i++) p.value[i] = x[p.row[i] * width + p.channel[i]];
        if (p.n && std::fabs(p.value[0]) > least)
            p.n_far = massive(x, tokens, width, least, multiple, FAR, &p.median);
        if (p.n && left) tell_factors();
        return p.n_far >= 0;
    }

    void tell_factors() {
        double largest = -1, room[5];
        for (long t = 0; t < tokens; t++) {
            const double size = std::max(std::fabs(rows[t].least), std::fabs(rows[t].most));
            if (std::isfinite(size) && size > largest) largest = size, peaks->factors_row = t;
        }
        const long at = peaks->factors_row * width, channel = rows[peaks->factors_row].peak_channel;
        const bool told = correlate(left + at, right + at, width, channel, room);
        const double norm = std::sqrt(room[3] * room[4]);
        peaks->factors = told ? GIVEN : NOT_ALL_FINITE, peaks->factors_channel = channel;
        peaks->left = room[0], peaks->right = room[1];
        peaks->correlation = told && norm != 0 ? room[2] / norm : std::numeric_limits<double>::quiet_NaN();
    }
};

// table: [stages][5] (int64) address of the values, tokens, width, addresses of the factors of a product (else 0).
// rows: those of each stage, one stage after the other; peaks: of each stage, zeros. least, multiple: of massive values.
// All stages' tokens are shared out at once.
// Returns 0, 1 where memory is lacking, or 2 where the caller's records have other sizes.
extern "C" __attribute__((visibility("default"))) int measure(
    const int64_t* table, long stages, Row* rows, long row_bytes, Peaks* peaks, long peaks_bytes, double least,
    double multiple, int threads) {
    if (row_bytes != sizeof(Row) || peaks_bytes != sizeof(Peaks)) return 2;
    std::unique_ptr<Stage[]> all(new (std::nothrow) Stage[static_cast<size_t>(stages)]);
    if (!all) return 1;
    long width = 0, tasks = 0, values = 0;
    for (long i = 0; i < stages; i++, table += 5) {
        Stage& one = all[i];
        one.x = reinterpret_cast<const float*>(table[0]), one.tokens = table[1], one.width = table[2];
        one.at_once = std::min(8L, (TASK_VALUES + one.width - 1) / one.width);
        one.tasks = (one.tokens + one.at_once - 1) / one.at_once, one.first = width;
        one.left = reinterpret_cast<const float*>(table[3]), one.right = reinterpret_cast<const float*>(table[4]);
        one.rows = rows, one.peaks = peaks + i;
        width += one.width, tasks += one.tasks, values += one.tokens * one.width, rows += one.tokens;
    }
    const int crew = static_cast<int>(std::min<long>(values < ALONE_VALUES ? 1 : threads, tasks));
    std::unique_ptr<float[]> most(new (std::nothrow) float[static_cast<size_t>(crew * width)]);
    if (!most) return 1;
    std::fill_n(most.get(), crew * width, -1.0f);
    std::atomic<long> next{0};
    pool().run(crew, crew, [&](long worker) {
        long stage = 0, before = 0;  // tasks of the stages before it
        for (long task; (task = next.fetch_add(1)) < tasks;) {
            while (task - before >= all[stage].tasks) before += all[stage++].tasks;
            all[stage].take_tokens(task - before, most.get() + worker * width + all[stage].first);
        }
    });
    for (int worker = 1; worker < crew; worker++)
        for (long c = 0; c < width; c++) most[c] = std::max(most[c], most[worker * width + c]);
    std::atomic<bool> fine{true};
    pool().run(stages, crew, [&](long i) {
        if (!all[i].tell_peaks(most.get() + all[i].first, least, multiple)) fine = false;
    });
    return fine ? 0 : 1;
}
