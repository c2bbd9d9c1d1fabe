// Multiply panels of weights by whole numbers with products of bytes: sums of a group exact, groups added in float32.
//
// y += scale of x * sum over groups of (scale * P - least * sum of X), P = sum of q * X: three sums of bytes for
// float32 activations, 256 * (256 * P_0 + P_1) + P_2. Their order depends on K alone, so the bits depend on the token's
// and the row's values alone. Not here: what shares out rows and tokens (products.h).
#pragma once
#include "whole.h"

#if defined(__AVX2__)
#if defined(__AVX512VNNI__)
constexpr bool THREE_DIGITS = true;  // faster than float32 products
static inline Ints dot_four(Ints sum, Ints u, Ints x) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)u, (__m512i)x);
}
#elif defined(__AVXVNNI__)
constexpr bool THREE_DIGITS = true;
static inline Ints dot_four(Ints sum, Ints u, Ints x) {
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)u, (__m256i)x);
}
#elif defined(__AVX512BW__)
constexpr bool THREE_DIGITS = false;
static inline Ints dot_four(Ints sum, Ints u, Ints x) {
    const __m512i two = _mm512_maddubs_epi16((__m512i)u, (__m512i)x);
    return sum + (Ints)_mm512_madd_epi16(two, _mm512_set1_epi16(1));
}
#else
constexpr bool THREE_DIGITS = false;
static inline Ints dot_four(Ints sum, Ints u, Ints x) {
    const __m256i two = _mm256_maddubs_epi16((__m256i)u, (__m256i)x);
    return sum + (Ints)_mm256_madd_epi16(two, _mm256_set1_epi16(1));
}
#endif
// Without VNNI two products are added in 16 bits: u up to 127.
constexpr int MOST_BIAS = THREE_DIGITS ? 128 : 64;

// T tokens times a panel: `groups` groups from x's stream on, `of_scale` of them to a scale of x. y: [T][VL].
template <int T, int DIGITS, int GROUP, bool LEAST>
static void dot_panel(const Panel& w, const int32_t* x, const float* scale, long groups, long of_scale, float* y) {
    constexpr int QUADS = GROUP / 4, LAST = DIGITS - 1;
    for (long g = 0; g < groups; scale += T) {
        Vec part[T] = {};
        for (const long end = std::min(groups, g + of_scale); g < end; g++, x += T * (3 + QUADS * DIGITS)) {
            Ints sum[DIGITS][T] = {};
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) {
                if (DIGITS == 3) sum[0][t] = all_of(x[t]);
                sum[LAST][t] = all_of(x[T + t]);
            }
#pragma GCC unroll 8
            for (int q = 0; q < QUADS; q++) {
                const Ints u = load<Ints>(w.four[g * QUADS + q]);
#pragma GCC unroll 24
                for (int i = 0; i < DIGITS * T; i++)
                    sum[i / T][i % T] = dot_four(sum[i / T][i % T], u, all_of(x[3 * T + q * DIGITS * T + i]));
            }
            const Vec by = load<Vec>(w.scale[g]), least = load<Vec>(w.least[g]);
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) {
                Vec s = __builtin_convertvector(sum[LAST][t], Vec);
                if (DIGITS == 3)
                    s = fused(__builtin_convertvector((sum[0][t] << 8) + sum[1][t], Vec), all_of(256.0f), s);
                part[t] = fused(by, s, part[t]);
                float total;
                memcpy(&total, x + 2 * T + t, 4);
                if (LEAST) part[t] = fused_less(least, all_of(total), part[t]);
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            const Vec all = fused(part[t], all_of(scale[t]), load<Vec>(y + t * VL));
            memcpy(y + t * VL, &all, sizeof all);
        }
    }
}

using DotPanel = void (*)(const Panel&, const int32_t*, const float*, long, long, float*);

// The most tokens of a panel: their sums fill the registers.
constexpr int widest(int digits) { return digits == 3 ? (VL == 16 ? 6 : 3) : VL == 16 ? 8 : 4; }

template <int DIGITS, int GROUP, bool LEAST, int... T>
static DotPanel dot_of_width(long width, std::integer_sequence<int, T...>) {
    static const DotPanel table[] = {dot_panel<T + 1, DIGITS, GROUP, LEAST>...};
    return table[width - 1];
}

template <int DIGITS>
static DotPanel dot_of(long width, int group, bool least) {
    const std::make_integer_sequence<int, widest(DIGITS)> widths;
    if (group == 16)
        return least ? dot_of_width<DIGITS, 16, true>(width, widths) : dot_of_width<DIGITS, 16, false>(width, widths);
    return least ? dot_of_width<DIGITS, 32, true>(width, widths) : dot_of_width<DIGITS, 32, false>(width, widths);
}

static DotPanel dot_of(int digits, long width, int group, bool least) {
    if constexpr (THREE_DIGITS)
        if (digits == 3) return dot_of<3>(width, group, least);
    return dot_of<1>(width, group, least);
}
#else
constexpr bool THREE_DIGITS = false;
#endif
