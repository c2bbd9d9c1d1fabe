// Activations as whole numbers for products of bytes: x = scale * X, rounded once.
//
// f32: |X| < 2^23 beside the largest of 256 values, so that the error is a float32's; three signed bytes of it are
// multiplied. q8: |X| <= 127, one byte, exact where the values have been rounded as ggml rounds them (rounding.h).
// A token with a value that is not finite, or too small to be scaled, is multiplied in float32 by the caller.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "panel.h"
#include "../rounding.h"

#if defined(__AVX2__)
constexpr float THREE_BYTES = 8355000.0f;   // below 0x7f7f7f, the largest number of three signed bytes
constexpr float ONE_BYTE = 127.0f;
constexpr float LEAST_SCALED = 0x1p-90f;  // of a block's largest |x|: below it the scale loses digits
constexpr long MOST_OF_SCALE = 256;

// How the activations of one product are cut. Their stream has, for each group, of each token of a panel side by side:
// where sums of the first and the last byte begin (less the weights' bias), the sum of X as float32, and the bytes of
// four values after the other.
struct Cut {
    long cols, group, of_scale;  // of_scale: values that share a scale
    int digits, bias;
    long groups() const { return (cols + group - 1) / group; }
    long scales() const { return (cols + of_scale - 1) / of_scale; }
    long words() const { return 3 + group / 4 * digits; }  // of one token's group
};

struct Whole {
    std::vector<int32_t> stream;
    std::vector<float> scale;
};

// n values (up to MOST_OF_SCALE) as whole numbers, zeros behind them; returns whether they can be scaled.
static inline bool to_whole(const float* x, long n, float top, int32_t* out, float* scale) {
    int32_t size = 0;
    for (long i = 0; i < n; i++) size = std::max(size, bits_of(x[i]) & 0x7fffffff);
    float most;
    memcpy(&most, &size, 4);
    const bool fine = size == 0 || (most >= LEAST_SCALED && size < 0x7f800000);
    const float inverse = fine && size ? top / most : 0.0f;
    *scale = inverse != 0 ? static_cast<float>(1.0 / static_cast<double>(inverse)) : 0.0f;
    std::fill(out, out + MOST_OF_SCALE, 0);
    for (long i = 0; fine && i < n; i++) out[i] = static_cast<int32_t>(nearbyintf(x[i] * inverse));
    return fine;
}

// One group of token i of a panel of `width`.
template <int GROUP>
static inline void put_group(const Cut& cut, const int32_t* X, int32_t* out, long width, long i) {
    alignas(64) int8_t digit[3][GROUP];
    alignas(64) int32_t rest[GROUP];
    int32_t sums[3] = {}, total = 0;
    for (int k = 0; k < GROUP; k++) total += X[k], rest[k] = X[k];
    for (int d = cut.digits - 1; d >= 0; d--) {
        int32_t sum = 0;
        for (int k = 0; k < GROUP; k++) {
            digit[d][k] = static_cast<int8_t>(rest[k]);
            sum += digit[d][k], rest[k] = (rest[k] + 128) >> 8;
        }
        sums[d] = sum;
    }
    const float sum = static_cast<float>(total);
    const bool three = cut.digits == 3;
    out[i] = three ? -cut.bias * sums[0] : 0;
    out[width + i] = -cut.bias * (three ? 256 * sums[1] + sums[2] : sums[0]);
    memcpy(out + 2 * width + i, &sum, 4);
    for (int q = 0; q < GROUP / 4; q++)
        for (int d = 0; d < cut.digits; d++) memcpy(out + (3 + q * cut.digits + d) * width + i, digit[d] + 4 * q, 4);
}

// Token i of a panel of `width`, whose stream and scales begin at out and scale; returns whether it can be scaled.
static inline bool put_token(const Cut& cut, const float* x, int32_t* out, float* scale, long width, long i) {
    const float top = cut.digits == 3 ? THREE_BYTES : ONE_BYTE;
    alignas(64) int32_t X[MOST_OF_SCALE];
    bool fine = true;
    for (long k = 0; k < cut.cols; k += cut.of_scale, scale += width) {
        fine &= to_whole(x + k, std::min(cut.of_scale, cut.cols - k), top, X, scale + i);
        for (long at = 0; at < cut.of_scale && k + at < cut.cols; at += cut.group, out += width * cut.words())
            cut.group == 16 ? put_group<16>(cut, X + at, out, width, i) : put_group<32>(cut, X + at, out, width, i);
    }
    return fine;
}
#endif
