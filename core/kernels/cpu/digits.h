// Super-blocks of K-quants as whole numbers of two bytes each, in the tiles that AMX multiplies; what their decoders
// (blocks/super_blocks.h) are made of.
//
// A weight is d * W - dmin * m, W = sc * q a whole number: W = 256 * high + low, low unsigned, high signed.
// A tile holds 64 values of 16 rows, one row in 64 bytes; a super-block has four.
#pragma once
#include <array>

#include "blocks/rows.h"

constexpr int TILE = 16, SUPER = 256, STEP = 64, STEPS = SUPER / STEP;

struct Digits {
    alignas(64) uint8_t low[STEPS][TILE][STEP];
    alignas(64) int8_t high[STEPS][TILE][STEP];
    alignas(64) float d[TILE];
    alignas(64) float mins[TILE][8];  // dmin * m of eight sub-blocks of 32; Q6_K has none
};

// Bytes of sc * q for every 6-bit sc and q from 0 to 31: shuffling by q looks 64 of them up.
struct Products {
    alignas(16) uint8_t low[64][32], high[64][32];
};

static constexpr Products all_products() {
    Products p{};
    for (int sc = 0; sc < 64; sc++)
        for (int q = 0; q < 32; q++) p.low[sc][q] = sc * q & 255, p.high[sc][q] = sc * q >> 8;
    return p;
}
static constexpr Products PRODUCTS = all_products();

// Tables for 64 values: the first sub-block's in the lower half, the second's in the upper.
static inline __m512i two_tables(const uint8_t* a, const uint8_t* b) {
    const __m512i lower = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(a)));
    return _mm512_mask_broadcast_i32x4(lower, 0xff00, _mm_load_si128(reinterpret_cast<const __m128i*>(b)));
}

static inline void put_scales(const uint8_t* raw, uint8_t* sc) {
    const Bytes six = scales_of(raw);
    memcpy(sc, &six, 16);
}

// Returns whether d and dmin are finite.
static inline bool head_k(const uint8_t* raw, Digits& out, int row, uint8_t* sc) {
    put_scales(raw, sc);
    const float d = half_at(raw), dmin = half_at(raw + 2);
    const __m256i least = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(sc + 8)));
    _mm256_store_ps(out.mins[row], _mm256_mul_ps(_mm256_set1_ps(dmin), _mm256_cvtepi32_ps(least)));
    out.d[row] = d;
    return d - d == 0 && dmin - dmin == 0;
}

// 64 nibbles of 32 bytes: the low ones, then the high ones.
static inline __m512i nibbles(const uint8_t* p) {
    const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_and_si512(_mm512_srlv_epi64(both, _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0)), _mm512_set1_epi8(15));
}

// The bit of qh that is the fifth of the 64 values of step i.
static inline __m512i fifth_bits(int i) {
    const char low = static_cast<char>(1 << 2 * i), high = static_cast<char>(2 << 2 * i);
    return _mm512_inserti64x4(_mm512_set1_epi8(low), _mm256_set1_epi8(high), 1);
}

// The 64 values q + 32 of step i of a block of Q6_K.
static inline __m512i sixes(const uint8_t* raw, int i) {
    const int half = i / 2, pair = i % 2;
    const __m512i packed = _mm512_loadu_si512(raw + 64 * half);
    const __m512i four = _mm512_and_si512(pair ? _mm512_srli_epi16(packed, 4) : packed, _mm512_set1_epi8(15));
    const uint8_t* bits = raw + 128 + 32 * half;
    const __m512i two = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits)));
    const long at = 4 * pair;  // where the first group's two bits are; the second's are 2 higher
    const __m512i shift = _mm512_set_epi64(at + 2, at + 2, at + 2, at + 2, at, at, at, at);
    const __m512i top = _mm512_and_si512(_mm512_srlv_epi64(two, shift), _mm512_set1_epi8(3));
    return _mm512_or_si512(four, _mm512_slli_epi16(top, 4));
}
