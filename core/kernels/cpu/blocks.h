// Every stored type that the kernels know: how a block is decoded, with the bits that quant/dequantize.py gives.
//
// A new type: a struct with VALUES, BYTES and decode, and its row of LAYOUTS. d * scale * q is exact in float32
// (11 + 6 + 5 bits; Q6_K: 11 + 7 + 6); only the last subtraction rounds. Source of the layouts: gguf-py 0.19,
// gguf/quants.py.
#pragma once
#include "layout.h"
#if defined(__AMX_INT8__)
#include "halves.h"
#include "lines.h"
#endif

// Types without blocks: n values from raw into out.
static void plain_f32(const uint8_t* raw, float* out, long n) { memcpy(out, raw, static_cast<size_t>(n) * 4); }

static void plain_f16(const uint8_t* raw, float* out, long n) {
    long i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(raw + 2 * i))));
#endif
    for (; i < n; i++) out[i] = half_at(raw + 2 * i);
}

static void plain_bf16(const uint8_t* raw, float* out, long n) {
    for (long i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, raw + 2 * i, 2);
        const uint32_t bits = static_cast<uint32_t>(h) << 16;
        memcpy(out + i, &bits, 4);
    }
}

struct Q4_0 {
    static constexpr int VALUES = 32, BYTES = 18;

    static void decode(const uint8_t* raw, float* out) {
        const Bytes q = bytes_at(raw + 2);
        put<int8_t>(out, (q & 15) - 8, half_at(raw));
        put<int8_t>(out + 16, (q >> 4) - 8, half_at(raw));
    }
};

struct Q8_0 {
    static constexpr int VALUES = 32, BYTES = 34;

    static void decode(const uint8_t* raw, float* out) {
        for (int i = 0; i < 32; i += 16) put<int8_t>(out + i, bytes_at(raw + 2 + i), half_at(raw));
    }
};

struct Q4_K {
    static constexpr int VALUES = 256, BYTES = 144, D = 0;
    static constexpr bool MINS = true;

    static void decode(const uint8_t* raw, float* out) {
        const HeadK head(raw);
        for (int s = 0; s < 8; s += 2)
            for (int i = 0; i < 32; i += 16) {
                const Bytes q = bytes_at(raw + 16 + 16 * s + i);
                put<uint8_t>(out + 32 * s + i, q & 15, head.scale[s], head.least[s]);
                put<uint8_t>(out + 32 * s + 32 + i, q >> 4, head.scale[s + 1], head.least[s + 1]);
            }
    }

#if defined(__AMX_INT8__)
    static void scales(const uint8_t* raw, uint8_t* sc) { scales_of(raw, sc); }

    static bool digits(const uint8_t* raw, Digits& out, int row) {
        alignas(16) uint8_t sc[16];
        const bool finite = head_k(raw, out, row, sc);
        for (int i = 0; i < STEPS; i++) {
            const __m512i q = nibbles(raw + 16 + 32 * i);
            const int a = sc[2 * i], b = sc[2 * i + 1];
            const auto look_up = [&](const uint8_t (*t)[32]) { return _mm512_shuffle_epi8(two_tables(t[a], t[b]), q); };
            _mm512_store_si512(out.low[i][row], look_up(PRODUCTS.low));
            _mm512_store_si512(out.high[i][row], look_up(PRODUCTS.high));
        }
        return finite;
    }

    static Scaled values(const uint8_t* raw, const uint8_t* sc, int i) {
        const __m512i a = _mm512_set1_epi32(sc[2 * i]);
        return {nibbles(raw + 16 + 32 * i), _mm512_mask_set1_epi32(a, 0xff00, sc[2 * i + 1])};
    }

    // A sub-block has 16 different values (Q5_K: 32): they are rounded once, and looked up.
    static void halves(const uint8_t* raw, HalfWeights& out, int row) {
        const HeadHalves head(raw);
        for (int s = 0; s < 8; s++) {
            const __m512bh table = _mm512_cvtne2ps_pbh(_mm512_setzero_ps(), head.values(s, FROM_0));
            const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(raw + 16 + 32 * (s / 2)));
            const __m256i q = _mm256_and_si256(s % 2 ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
            put_halves(out, s, row, _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(q), (__m512i)table));
        }
    }
#endif
};

struct Q5_K {
    static constexpr int VALUES = 256, BYTES = 176, D = 0;
    static constexpr bool MINS = true;

    static void decode(const uint8_t* raw, float* out) {
        const HeadK head(raw);
        for (int i = 0; i < 32; i += 16) {
            Bytes fifth = bytes_at(raw + 16 + i);
            for (int s = 0; s < 8; s += 2, fifth >>= 2) {
                const Bytes q = bytes_at(raw + 48 + 16 * s + i);
                put<uint8_t>(out + 32 * s + i, (q & 15) | (fifth & 1) << 4, head.scale[s], head.least[s]);
                put<uint8_t>(out + 32 * s + 32 + i, q >> 4 | (fifth & 2) << 3, head.scale[s + 1], head.least[s + 1]);
            }
        }
    }

#if defined(__AMX_INT8__)
    static void scales(const uint8_t* raw, uint8_t* sc) { scales_of(raw, sc); }

    static bool digits(const uint8_t* raw, Digits& out, int row) {
        alignas(16) uint8_t sc[16];
        const bool finite = head_k(raw, out, row, sc);
        const __m512i fifth = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(raw + 16)));
        for (int i = 0; i < STEPS; i++) {
            const __m512i q = nibbles(raw + 48 + 32 * i);
            const int a = sc[2 * i], b = sc[2 * i + 1];
            const __mmask64 above = _mm512_test_epi8_mask(fifth, fifth_bits(i));
            const auto look_up = [&](const uint8_t (*t)[32]) {
                const __m512i below = _mm512_shuffle_epi8(two_tables(t[a], t[b]), q);
                return _mm512_mask_shuffle_epi8(below, above, two_tables(t[a] + 16, t[b] + 16), q);
            };
            _mm512_store_si512(out.low[i][row], look_up(PRODUCTS.low));
            _mm512_store_si512(out.high[i][row], look_up(PRODUCTS.high));
        }
        return finite;
    }

    static Scaled values(const uint8_t* raw, const uint8_t* sc, int i) {
        const __m512i fifth = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(raw + 16)));
        const __m512i q = nibbles(raw + 48 + 32 * i), a = _mm512_set1_epi32(sc[2 * i]);
        return {_mm512_mask_add_epi8(q, _mm512_test_epi8_mask(fifth, fifth_bits(i)), q, _mm512_set1_epi8(16)),
                _mm512_mask_set1_epi32(a, 0xff00, sc[2 * i + 1])};
    }

    static void halves(const uint8_t* raw, HalfWeights& out, int row) {
        const HeadHalves head(raw);
        const __m256i fifth = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(raw + 16));
        for (int s = 0; s < 8; s++) {
            const __m512 above = head.values(s, _mm512_add_ps(FROM_0, _mm512_set1_ps(16)));
            const __m512bh table = _mm512_cvtne2ps_pbh(above, head.values(s, FROM_0));
            const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(raw + 48 + 32 * (s / 2)));
            const __m256i four = _mm256_and_si256(s % 2 ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
            const __mmask32 bit = _mm256_test_epi8_mask(fifth, _mm256_set1_epi8(static_cast<char>(1 << s)));
            const __m256i q = _mm256_mask_add_epi8(four, bit, four, _mm256_set1_epi8(16));
            put_halves(out, s, row, _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(q), (__m512i)table));
        }
    }
#endif
};

struct Q6_K {
    static constexpr int VALUES = 256, BYTES = 210, D = 208;
    static constexpr bool MINS = false;  // q + 32 is stored

    // A half of a block has four groups of 32, 16 to a scale: their low nibbles lie in two groups, their high bits in
    // one.
    static void decode(const uint8_t* raw, float* out) {
        const float d = half_at(raw + 208);
        for (int half = 0; half < 2; half++)
            for (int i = 0; i < 2; i++) {
                const Bytes high = bytes_at(raw + 128 + 32 * half + 16 * i);
                const Bytes even = bytes_at(raw + 64 * half + 16 * i), odd = bytes_at(raw + 64 * half + 32 + 16 * i);
                const Bytes q[4] = {(even & 15) | (high & 3) << 4, (odd & 15) | (high & 12) << 2,
                                    even >> 4 | (high & 48), odd >> 4 | (high & 192) >> 2};
                const int8_t* sc = reinterpret_cast<const int8_t*>(raw + 192 + 8 * half + i);
                for (int g = 0; g < 4; g++)
                    put<int8_t>(out + 128 * half + 32 * g + 16 * i, q[g] - 32, d * sc[2 * g]);
            }
    }

#if defined(__AMX_INT8__)
    static void scales(const uint8_t* raw, uint8_t* sc) { memcpy(sc, raw + 192, 16); }

    static bool digits(const uint8_t* raw, Digits& out, int row) {
        const float d = half_at(raw + 208);
        out.d[row] = d;
        const __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(raw + 192));
        const __m512i scales = _mm512_castsi256_si512(_mm256_cvtepi8_epi16(stored));
        const __m512i zero = _mm512_setzero_si512(), byte = _mm512_set1_epi16(255), offset = _mm512_set1_epi16(32);
        // which scale each 16-bit value takes: 16 values of a byte to a scale, a lane of 128 bits
        const __m512i lane = _mm512_set_epi64(0x0003000300030003, 0x0003000300030003, 0x0002000200020002,
                                              0x0002000200020002, 0x0001000100010001, 0x0001000100010001, 0, 0);
        for (int i = 0; i < STEPS; i++) {
            const __m512i q = sixes(raw, i);
            const __m512i which = _mm512_add_epi16(lane, _mm512_set1_epi16(static_cast<short>(4 * i)));
            const __m512i sc = _mm512_permutexvar_epi16(which, scales);
            const __m512i a = _mm512_mullo_epi16(_mm512_sub_epi16(_mm512_unpacklo_epi8(q, zero), offset), sc);
            const __m512i b = _mm512_mullo_epi16(_mm512_sub_epi16(_mm512_unpackhi_epi8(q, zero), offset), sc);
            const __m512i low = _mm512_packus_epi16(_mm512_and_si512(a, byte), _mm512_and_si512(b, byte));
            _mm512_store_si512(out.low[i][row], low);
            _mm512_store_si512(out.high[i][row], _mm512_packs_epi16(_mm512_srai_epi16(a, 8), _mm512_srai_epi16(b, 8)));
        }
        return d - d == 0;
    }

    static Scaled values(const uint8_t* raw, const uint8_t* sc, int i) {
        int32_t four;
        memcpy(&four, sc + 4 * i, 4);  // one signed scale for 16 values: a lane of 128 bits
        const __m512i wide = _mm512_broadcast_i32x4(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four)));
        const __m512i which = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
        const __m512i each = _mm512_permutexvar_epi32(which, wide);
        return {sixes(raw, i), _mm512_and_si512(each, _mm512_set1_epi32(0xffff))};
    }

    static void halves(const uint8_t* raw, HalfWeights& out, int row) {
        const float d = half_at(raw + 208);
        const int8_t* sc = reinterpret_cast<const int8_t*>(raw + 192);
        for (int i = 0; i < STEPS; i++) {
            alignas(64) uint8_t q[STEP];
            _mm512_store_si512(q, sixes(raw, i));
            const auto values = [&](int part) {
                const __m128i some = _mm_load_si128(reinterpret_cast<const __m128i*>(q + 16 * part));
                const __m512i wide = _mm512_cvtepu8_epi32(some);
                const __m512 each = _mm512_cvtepi32_ps(_mm512_sub_epi32(wide, _mm512_set1_epi32(32)));
                return _mm512_mul_ps(_mm512_set1_ps(d * sc[4 * i + part]), each);
            };
            put_halves(out, 2 * i, row, (__m512i)_mm512_cvtne2ps_pbh(values(1), values(0)));
            put_halves(out, 2 * i + 1, row, (__m512i)_mm512_cvtne2ps_pbh(values(3), values(2)));
        }
    }
#endif
};

template <class Block>
static void decode_blocks(const uint8_t* raw, float* out, long n) {
    for (long b = 0; b < n / Block::VALUES; b++, raw += Block::BYTES, out += Block::VALUES) Block::decode(raw, out);
}

template <class Block>
static constexpr Layout blocks(const char* name) {
    return {name, Block::VALUES, Block::BYTES, decode_blocks<Block>};
}

// Of a type that has all of digits, values and halves, for AMX.
template <class Block>
static constexpr Layout super_blocks(const char* name) {
    Layout layout = blocks<Block>(name);
#if defined(__AMX_INT8__)
    layout.digits = Block::digits, layout.mins = Block::MINS;
    layout.line = multiply_line<Block>, layout.halves = Block::halves;
#endif
    return layout;
}

static const Layout LAYOUTS[] = {
    {"F32", 1, 4, plain_f32},
    {"F16", 1, 2, plain_f16},
    {"BF16", 1, 2, plain_bf16},
    blocks<Q4_0>("Q4_0"),
    blocks<Q8_0>("Q8_0"),
    super_blocks<Q4_K>("Q4_K"),
    super_blocks<Q5_K>("Q5_K"),
    super_blocks<Q6_K>("Q6_K"),
};
