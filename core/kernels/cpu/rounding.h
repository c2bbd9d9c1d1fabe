// Round activations as a compute asks for: to bfloat16, or to ggml's Q8_K. The values stay float32.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

enum Compute { F32 = 0, Q8_K = 1, BF16 = 2 };  // in the order of KINDS in bindings.py

constexpr long Q8_BLOCK = 256;

static inline int32_t bits_of(float f) {
    int32_t i;
    memcpy(&i, &f, 4);
    return i;
}

// To the nearest bfloat16, ties to even; NaN stays NaN.
static inline float round_half(float f) {
    const uint32_t bits = static_cast<uint32_t>(bits_of(f));
    const uint32_t near = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000, nan = (bits | 0x400000) & 0xffff0000;
    const uint32_t out = (bits & 0x7fffffff) > 0x7f800000 ? nan : near;
    memcpy(&f, &out, 4);
    return f;
}

// A block of 256 as model/matmul.py's q8_k rounds it, to the bit: -127 for the first value of largest size.
static inline void round_q8_k(const float* x, float* out) {
    int32_t largest = 0;
    for (long i = 0; i < Q8_BLOCK; i++) largest = std::max(largest, bits_of(x[i]) & 0x7fffffff);
    if (largest >= 0x7f800000) {
        std::fill_n(out, Q8_BLOCK, std::numeric_limits<float>::quiet_NaN());
        return;
    }
    long at = 0;
    while ((bits_of(x[at]) & 0x7fffffff) != largest) at++;
    const float inverse = -127.0f / x[at];
    if (largest == 0 || std::isinf(inverse)) {
        std::fill_n(out, Q8_BLOCK, 0.0f);
        return;
    }
    const float scale = 1 / inverse;
    for (long i = 0; i < Q8_BLOCK; i++) out[i] = std::min(std::nearbyintf(inverse * x[i]), 127.0f) * scale;
}
