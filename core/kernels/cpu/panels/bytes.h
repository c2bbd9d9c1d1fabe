// Multiply panels of weights by whole numbers with products of bytes: sums of a group exact, groups added in float32.
//
// y += scale of x * sum over groups of (scale * P - least * sum of X), P = sum of q * X: three sums of bytes for
// float32 activations, 256 * (256 * P_0 + P_1) + P_2. Their order depends on K alone, so the bits depend on the token's
// and the row's values alone. Not here: what shares out rows and tokens (products.h).
#pragma once
#include <cassert>

#include "whole.h"

#if defined(__AVX2__)
// How far a sum of products fits 16 bits, where products of bytes are added there first (the quads of that many, two
// products each): u up to 15, up to 63; or, as signed bytes, not at all.
enum class Fit { EIGHT = 8, TWO = 2, SIGNED = 1 };
constexpr Fit fit_of(int most) { return most <= 15 ? Fit::EIGHT : most <= 63 ? Fit::TWO : Fit::SIGNED; }

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr bool VNNI = true, THREE_DIGITS = true;  // faster than float32 products
#else
constexpr bool VNNI = false, THREE_DIGITS = false;
#endif

#if defined(__AVX512VNNI__)
// x for all lanes, in one instruction; compilers make two of it, for which the processor has too few registers.
static inline Ints dot_four(Ints sum, Ints u, const int32_t& x) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(u), "m"(x));
    return sum;
}
#elif defined(__AVXVNNI__)
static inline Ints dot_four(Ints sum, Ints u, int32_t x) {
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)u, (__m256i)all_of(x));
}
#elif defined(__AVX512BW__)
typedef __m512i Whole16;
static inline Whole16 dot_two(Ints u, Ints x) { return _mm512_maddubs_epi16((__m512i)u, (__m512i)x); }
static inline Whole16 add_two(Whole16 a, Whole16 b) { return _mm512_add_epi16(a, b); }
static inline Ints add_pairs(Whole16 two) { return (Ints)_mm512_madd_epi16(two, _mm512_set1_epi16(1)); }
static inline Ints size_of(Ints q) { return (Ints)_mm512_abs_epi8((__m512i)q); }
static inline Ints with_sign(Ints x, Ints q) {
    const __m512i all = (__m512i)x;
    return (Ints)_mm512_mask_sub_epi8(all, _mm512_movepi8_mask((__m512i)q), _mm512_setzero_si512(), all);
}
#else
typedef __m256i Whole16;
static inline Whole16 dot_two(Ints u, Ints x) { return _mm256_maddubs_epi16((__m256i)u, (__m256i)x); }
static inline Whole16 add_two(Whole16 a, Whole16 b) { return _mm256_add_epi16(a, b); }
static inline Ints add_pairs(Whole16 two) { return (Ints)_mm256_madd_epi16(two, _mm256_set1_epi16(1)); }
static inline Ints size_of(Ints q) { return (Ints)_mm256_abs_epi8((__m256i)q); }
static inline Ints with_sign(Ints x, Ints q) { return (Ints)_mm256_sign_epi8((__m256i)x, (__m256i)q); }
#endif

// Sums of u * x (of q * x, u less bias, where they are SIGNED) over QUADS times four bytes of VL rows, of N bytes of
// tokens, added to `sum`.
template <int N, int QUADS, Fit FIT>
static inline void dot_quads(const void* four, int bias, const int32_t* x, Ints* sum) {
    const auto quad = [&](int q) { return load<Ints>(static_cast<const char*>(four) + q * sizeof(Ints)); };
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
    (void)bias;
#pragma GCC unroll 8
    for (int q = 0; q < QUADS; q++) {
        const Ints u = quad(q);
#pragma GCC unroll 24
        for (int i = 0; i < N; i++) sum[i] = dot_four(sum[i], u, x[q * N + i]);
    }
#else
    constexpr int STEP_QUADS = std::min(QUADS, static_cast<int>(FIT));
    const RowSigned off = RowSigned{} + static_cast<int8_t>(bias);
#pragma GCC unroll 8
    for (int from = 0; from < QUADS; from += STEP_QUADS) {
        Whole16 two[N];
#pragma GCC unroll 8
        for (int q = from; q < from + STEP_QUADS; q++) {
            const Ints u = quad(q), signed_q = reinterpret_cast<Ints>(reinterpret_cast<RowSigned>(u) - off);
            const Ints size = FIT == Fit::SIGNED ? size_of(signed_q) : u;
#pragma GCC unroll 24
            for (int i = 0; i < N; i++) {
                const Ints each = all_of(x[q * N + i]);
                const Whole16 now = dot_two(size, FIT == Fit::SIGNED ? with_sign(each, signed_q) : each);
                two[i] = q == from ? now : add_two(two[i], now);
            }
        }
        for (int i = 0; i < N; i++) sum[i] += add_pairs(two[i]);
    }
#endif
}

// Sums of one group, of T tokens; x: the group's words.
template <int T, int DIGITS>
struct GroupSums {
    Ints of[DIGITS][T];

    void begin(const int32_t* x) {
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            if constexpr (DIGITS == 3) of[0][t] = all_of(x[t]), of[1][t] = Ints{};
            of[DIGITS - 1][t] = all_of(x[T + t]);
        }
    }

    // part += scale * (its sum) - least * total, for each token.
    template <bool LEAST>
    void end(Vec by, Vec least, const int32_t* x, Vec* part) const {
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            Vec s = __builtin_convertvector(of[DIGITS - 1][t], Vec);
            if constexpr (DIGITS == 3)
                s = fused(__builtin_convertvector((of[0][t] << 8) + of[1][t], Vec), all_of(256.0f), s);
            part[t] = fused(by, s, part[t]);
            float total;
            memcpy(&total, x + 2 * T + t, 4);
            if (LEAST) part[t] = fused_less(least, all_of(total), part[t]);
        }
    }
};

// T tokens times a panel: `groups` groups from x's stream on, `of_scale` of them to a scale of x. y: [T][VL].
template <int T, int DIGITS, int GROUP, bool LEAST, Fit FIT>
static void dot_panel(
    const Panel& w, int bias, const int32_t* x, const float* scale, long groups, long of_scale, float* y) {
    constexpr int QUADS = GROUP / 4;
    for (long g = 0; g < groups; scale += T) {
        Vec part[T] = {};
        for (const long end = std::min(groups, g + of_scale); g < end; g++, x += T * (3 + QUADS * DIGITS)) {
            GroupSums<T, DIGITS> sums;
            sums.begin(x);
            dot_quads<DIGITS * T, QUADS, FIT>(w.four + g * QUADS, bias, x + 3 * T, sums.of[0]);
            sums.template end<LEAST>(load<Vec>(w.scale[g]), load<Vec>(w.least[g]), x, part);
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            const Vec all = fused(part[t], all_of(scale[t]), load<Vec>(y + t * VL));
            memcpy(y + t * VL, &all, sizeof all);
        }
    }
}

using DotPanel = void (*)(const Panel&, int, const int32_t*, const float*, long, long, float*);

// The most tokens of a panel: their sums fill the registers.
constexpr int widest(int digits) { return VL == 16 ? 8 : digits == 3 ? 3 : 4; }

template <int DIGITS, int GROUP, bool LEAST, Fit FIT, int... T>
static DotPanel dot_of_width(long width, std::integer_sequence<int, T...>) {
    static const DotPanel table[] = {dot_panel<T + 1, DIGITS, GROUP, LEAST, FIT>...};
    return table[width - 1];
}

template <int DIGITS, int GROUP, bool LEAST>
static DotPanel dot_of_fit(long width, Fit fit) {
    const std::make_integer_sequence<int, widest(DIGITS)> widths;
    if constexpr (!VNNI) {
        if (fit == Fit::EIGHT) return dot_of_width<DIGITS, GROUP, LEAST, Fit::EIGHT>(width, widths);
        if (fit == Fit::TWO) return dot_of_width<DIGITS, GROUP, LEAST, Fit::TWO>(width, widths);
        assert(!LEAST);
    }
    return dot_of_width<DIGITS, GROUP, LEAST && VNNI, Fit::SIGNED>(width, widths);
}

template <int DIGITS>
static DotPanel dot_of(long width, int group, bool least, Fit fit) {
    if (group == 16)
        return least ? dot_of_fit<DIGITS, 16, true>(width, fit) : dot_of_fit<DIGITS, 16, false>(width, fit);
    return least ? dot_of_fit<DIGITS, 32, true>(width, fit) : dot_of_fit<DIGITS, 32, false>(width, fit);
}

static DotPanel dot_of(int digits, long width, int group, bool least, Fit fit) {
    if constexpr (THREE_DIGITS)
        if (digits == 3) return dot_of<3>(width, group, least, fit);
    return dot_of<1>(width, group, least, fit);
}
#else
constexpr bool THREE_DIGITS = false;
#endif
