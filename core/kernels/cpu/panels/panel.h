// Rows of a weight side by side, a lane each, and the transposition that brings them there.
//
// A panel holds VL rows: four unsigned bytes u = q + bias of each to a lane, and each group's scale and least, so that
// value = scale * q - least. Where bytes.h and pairs.h multiply, every type comes as a panel.
#pragma once
#include "../vectors.h"

#if defined(__AVX2__)
constexpr long SPAN = 512;  // of K at a time: its panel and six tokens' digits fit the first-level cache

typedef int8_t RowSigned __attribute__((vector_size(VL * 4)));

struct Panel {
    alignas(64) uint32_t four[SPAN / 4][VL];
    alignas(64) float scale[SPAN / 16][VL], least[SPAN / 16][VL];
};

// The rows of a span on their way into a panel.
struct Unturned {
    alignas(64) uint8_t u[VL][SPAN];
    alignas(64) float scale[VL][SPAN / 16], least[VL][SPAN / 16];
};

static inline Unturned& unturned() {
    static thread_local Unturned kept;
    return kept;
}

static inline Ints all_of(int32_t v) { return Ints{} + v; }

#if defined(__AVX512F__)
static inline Vec all_of(float v) { return _mm512_set1_ps(v); }
static inline Vec fused(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vec fused_less(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b

// VL words of each of VL rows: lane r of to[i] is word i of row r.
static inline void turn(const void* from, long step, void* to) {
    __m512i a[16], b[16];
    const auto* at = static_cast<const char*>(from);
    for (int r = 0; r < 16; r++) a[r] = _mm512_loadu_si512(at + r * step);
    for (int r = 0; r < 16; r += 2)
        b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]), b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
    for (int r = 0; r < 16; r += 4)
        for (int i = 0; i < 2; i++)
            a[r + 2 * i] = _mm512_unpacklo_epi64(b[r + i], b[r + i + 2]),
            a[r + 2 * i + 1] = _mm512_unpackhi_epi64(b[r + i], b[r + i + 2]);
    // a[r + i], lane of 128 bits l: words 4 * l + i of rows r .. r + 3
    for (int i = 0; i < 4; i++) {
        const __m512i low = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88);
        const __m512i odd = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
        const __m512i high = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
        const __m512i last = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
        auto* out = static_cast<char*>(to) + 64 * i;
        _mm512_storeu_si512(out, _mm512_shuffle_i32x4(low, high, 0x88));
        _mm512_storeu_si512(out + 64 * 4, _mm512_shuffle_i32x4(odd, last, 0x88));
        _mm512_storeu_si512(out + 64 * 8, _mm512_shuffle_i32x4(low, high, 0xdd));
        _mm512_storeu_si512(out + 64 * 12, _mm512_shuffle_i32x4(odd, last, 0xdd));
    }
}
#else
static inline Vec all_of(float v) { return _mm256_set1_ps(v); }
static inline Vec fused(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline Vec fused_less(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }

static inline void turn(const void* from, long step, void* to) {
    __m256i a[8], b[8];
    const auto* at = static_cast<const char*>(from);
    for (int r = 0; r < 8; r++) a[r] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + r * step));
    for (int r = 0; r < 8; r += 2)
        b[r] = _mm256_unpacklo_epi32(a[r], a[r + 1]), b[r + 1] = _mm256_unpackhi_epi32(a[r], a[r + 1]);
    for (int r = 0; r < 8; r += 4)
        for (int i = 0; i < 2; i++)
            a[r + 2 * i] = _mm256_unpacklo_epi64(b[r + i], b[r + i + 2]),
            a[r + 2 * i + 1] = _mm256_unpackhi_epi64(b[r + i], b[r + i + 2]);
    auto* out = static_cast<__m256i*>(to);
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_si256(out + i, _mm256_permute2x128_si256(a[i], a[4 + i], 0x20));
        _mm256_storeu_si256(out + 4 + i, _mm256_permute2x128_si256(a[i], a[4 + i], 0x31));
    }
}
#endif

// As many words of every row as a span has of them, in steps of VL.
static inline void turn_words(const void* from, long step, long words, void* to) {
    for (long i = 0; i < words; i += VL)
        turn(static_cast<const char*>(from) + 4 * i, step, static_cast<char*>(to) + 4 * i * VL);
}
#endif
