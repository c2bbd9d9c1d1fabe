// Round activations as a compute asks for: to bfloat16, or to ggml's Q8_K or Q8_0. The values stay float32.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#if defined(__F16C__)
#include <immintrin.h>
#endif

enum class Compute { F32, Q8_K, BF16, Q8_0 };  // in the order of KINDS in bindings.py

constexpr long Q8_BLOCK = 256, Q8_SMALL = 32;

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

// To the nearest float16, ties to even; Inf above 65520.
static inline float through_half(float f) {
#if defined(__F16C__)
    return _cvtsh_ss(_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT));
#else
    const float size = std::fabs(f);
    if (!(size < 65520)) return size > 65504 ? std::copysign(std::numeric_limits<float>::infinity(), f) : f;
    int exponent;
    std::frexp(size, &exponent);
    const float step = size < 0x1p-14f ? 0x1p-24f : std::ldexp(1.0f, exponent - 11);
    return std::copysign(nearbyintf(size / step) * step, f);
#endif
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

// A block of 32 as q8_0 of quant/activations.py rounds it, to the bit; the scale is kept in float16.
static inline void round_q8_0(const float* x, float* out) {
    int32_t largest = 0;
    for (long i = 0; i < Q8_SMALL; i++) largest = std::max(largest, bits_of(x[i]) & 0x7fffffff);
    float peak;
    memcpy(&peak, &largest, 4);
    const float inverse = 127.0f / peak, scale = through_half(peak / 127.0f);
    for (long i = 0; i < Q8_SMALL; i++)
        out[i] = std::isinf(inverse) ? 0.0f * scale : nearbyintf(x[i] * inverse) * scale;
}
