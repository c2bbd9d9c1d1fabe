// What makes a value stand out: the median size beside which it is massive, the factors whose product it is.
//
// Not here: the statistics that every stage has (statistics.cpp), which are taken far more often.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <new>
#include <vector>

#include "rounding.h"

constexpr int32_t NO_SIGN = 0x7fffffff, NOT_FINITE = 0x7f800000;

static int32_t size_bits(float f) { return bits_of(f) & NO_SIGN; }  // as whole numbers sizes keep their order

static float float_of(int32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

// The size of rank k (from 0) of the finite values: 12 of its bits are counted out, what shares them is put in order.
static float size_of_rank(const float* x, long n, long k) {
    constexpr int REST = 19;
    std::array<long, (NO_SIGN >> REST) + 1> count{};
    for (long i = 0; i < n; i++)
        if (size_bits(x[i]) < NOT_FINITE) count[size_bits(x[i]) >> REST]++;
    int32_t high = 0;
    while (k >= count[high]) k -= count[high++];
    std::vector<int32_t> alike(static_cast<size_t>(count[high]) + 1);
    for (long i = 0, at = 0; i < n && at < count[high]; i++) {
        alike[static_cast<size_t>(at)] = size_bits(x[i]);
        at += size_bits(x[i]) >> REST == high;
    }
    std::nth_element(alike.begin(), alike.begin() + k, alike.end() - 1);
    return float_of(alike[static_cast<size_t>(k)]);
}

// How many sizes are under a bound; in blocks, so that they are counted in 32 bits.
static long count_under(const float* x, long n, int32_t bound) {
    constexpr long BLOCK = 1 << 12;
    long all = 0;
    for (long start = 0; start < n; start += BLOCK) {
        int32_t some = 0;
        for (long i = start; i < std::min(n, start + BLOCK); i++) some += size_bits(x[i]) < bound;
        all += some;
    }
    return all;
}

// N sums of value(i, N numbers) over i, in numpy's order: their bits stand in bundles.
// Source: numpy, pairwise_sum in loops_utils.h.src. Through a block in memory, lest a product be fused with its sum.
template <int N, class Value>
static std::array<double, N> add_pairwise(const Value& value, long begin, long n) {
    constexpr long BLOCK = 128;
    std::array<double, N> sums;
    if (n > BLOCK) {
        const long half = n / 2 - n / 2 % 8;
        const auto left = add_pairwise<N>(value, begin, half), right = add_pairwise<N>(value, begin + half, n - half);
        for (int k = 0; k < N; k++) sums[k] = left[k] + right[k];
        return sums;
    }
    double block[N][BLOCK];
    for (long i = 0; i < n; i++) value(begin + i, block, i);
    for (int k = 0; k < N; k++) {
        const double* v = block[k];
        double r[8] = {}, sum = -0.0;
        long i = 0;
        if (n >= 8) {
            std::copy_n(v, 8, r);
            for (i = 8; i < n - n % 8; i += 8)
                for (int lane = 0; lane < 8; lane++) r[lane] += v[i + lane];
            sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
        }
        for (; i < n; i++) sum += v[i];
        sums[k] = sum;
    }
    return sums;
}

// Values over least and over multiple times the median size, in at most `most` channels: room gets the median and
// [most][3] token, channel and value, the largest of each channel (the first token on a tie), channels in order.
// Returns how many channels, -1 where memory is lacking.
extern "C" __attribute__((visibility("default"))) int massive(
    const float* x, long tokens, long width, double least, double multiple, int most, double* room) try {
    const long n = tokens * width;
    int32_t largest = 0;
    for (long i = 0; i < n; i++) largest = std::max(largest, size_bits(x[i]) < NOT_FINITE ? size_bits(x[i]) : 0);
    const int32_t bound = size_bits(static_cast<float>(static_cast<double>(float_of(largest)) / multiple));
    const long small = count_under(x, n, bound), finite = count_under(x, n, NOT_FINITE);
    if (2 * small < finite || finite == 0) return 0;
    const float median = size_of_rank(x, n, (finite - 1) / 2);
    const float far = static_cast<float>(std::max(least, multiple * static_cast<double>(median)));
    int found = 0;
    for (long t = 0; t < tokens; t++) {
        if (count_under(x + t * width, width, size_bits(far) + 1) == width) continue;
        for (long c = 0; c < width; c++) {
            const float value = x[t * width + c];
            if (!(std::fabs(value) > far) || std::isinf(value)) continue;
            int i = 0;
            while (i < found && room[2 + 3 * i] < static_cast<double>(c)) i++;
            if (i == found || room[2 + 3 * i] != static_cast<double>(c)) {
                if (found == most) return 0;
                std::copy_backward(room + 1 + 3 * i, room + 1 + 3 * found, room + 1 + 3 * (found + 1));
                found++;
            } else if (std::fabs(value) <= std::fabs(room[3 + 3 * i])) {
                continue;
            }
            room[1 + 3 * i] = static_cast<double>(t), room[2 + 3 * i] = static_cast<double>(c), room[3 + 3 * i] = value;
        }
    }
    room[0] = median;
    return found;
} catch (const std::bad_alloc&) {
    return -1;
}

// room: left and right at a channel, then the sums of a * b, a * a and b * b, where a and b are left and right less
// their means. Returns 1; 0 where not all values are finite.
extern "C" __attribute__((visibility("default"))) int correlate(
    const float* left, const float* right, long n, long channel, double* room) {
    room[0] = left[channel], room[1] = right[channel];
    const auto means = add_pairwise<2>([&](long at, auto& block, long i) {
        block[0][i] = left[at], block[1][i] = right[at];
    }, 0, n);
    if (!std::isfinite(means[0] + means[1])) return 0;
    const double mean_a = means[0] / static_cast<double>(n), mean_b = means[1] / static_cast<double>(n);
    const auto sums = add_pairwise<3>([&](long at, auto& block, long i) {
        const double a = left[at] - mean_a, b = right[at] - mean_b;
        block[0][i] = a * b, block[1][i] = a * a, block[2][i] = b * b;
    }, 0, n);
    std::copy_n(sums.data(), 3, room + 2);
    return 1;
}
