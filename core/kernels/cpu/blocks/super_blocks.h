// The super-blocks of 256 values with scales of their own for 16 or 32 of them, or one scale for all (TQ1_0, TQ2_0).
//
// A new type: a struct with VALUES, BYTES and each (block.h), and its row of SUPER_BLOCKS.
#pragma once
#include "block.h"
#include "small_blocks.h"
#if defined(__AMX_INT8__)
#include "../halves.h"
#include "../lines.h"
#endif

// d * scale and dmin * min of the eight sub-blocks of Q4_K and Q5_K.
template <class Both>
struct HeadK {
    Both scale, mins;
    auto least(int s) const { return mins[8 + s]; }
};

static inline HeadK<Scales> head_of(const uint8_t* raw) {
    const Bytes six = scales_of(raw);
    return {scales_by(six, half_at(raw)), scales_by(six, half_at(raw + 2))};
}

#if defined(__AVX2__)
static inline HeadK<WideScales> head_of(Rows rows) {
    const Wide head = bytes_at(rows), six = scales_of(head.word(1), head.word(2), head.word(3));
    return {scales_by(six, halves_of(head.word(0))), scales_by(six, halves_of(head.word(0) >> 16))};
}
#endif

struct Q2_K {
    static constexpr int VALUES = 256, BYTES = 84;
    static constexpr int GROUP = 16, BIAS = 0, MOST = 3;
    static constexpr bool LEAST = true;

    template <class Raw, class Put>
    static inline void each(Raw raw, Put put) {
        const auto both = bytes_at(raw);
        const auto scale = scales_by(both & 15, half_at(raw + 80)), least = scales_by(both >> 4, half_at(raw + 82));
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {  // 32 bytes hold four times 32 values, the lowest bits first
            const decltype(both) q[] = {bytes_at(raw + 16 + 32 * half), bytes_at(raw + 32 + 32 * half)};
#pragma GCC unroll 8
            for (int g = 0; g < 8; g++)
                put(128 * half + 16 * g, shifted(q[g % 2], g / 2 * 2) & 3, scale[8 * half + g], least[8 * half + g]);
        }
    }
};

struct Q3_K {
    static constexpr int VALUES = 256, BYTES = 110;
    static constexpr int GROUP = 16, BIAS = 4, MOST = 7;
    static constexpr bool LEAST = false;

    // Scales of 6 bits: low four of 0..7 in low nibbles, of 8..15 in high ones, the upper two in four bytes.
    template <class Raw, class Put>
    static inline void each(Raw raw, Put put) {
        const auto a = word_at(raw + 96), b = word_at(raw + 100), c = word_at(raw + 104);
        const auto six = four_words(
            (a & 0x0f0f0f0f) | (c << 4 & 0x30303030), (b & 0x0f0f0f0f) | (c << 2 & 0x30303030),
            (a >> 4 & 0x0f0f0f0f) | (c & 0x30303030), (b >> 4 & 0x0f0f0f0f) | (c >> 2 & 0x30303030));
        const auto scale = scales_by(six - 32, half_at(raw + 108));
        const decltype(six) third[] = {bytes_at(raw), bytes_at(raw + 16)};  // where a bit is 0, 4 is taken away
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const decltype(six) two[] = {bytes_at(raw + 32 + 32 * half), bytes_at(raw + 48 + 32 * half)};
#pragma GCC unroll 8
            for (int g = 0; g < 8; g++) {
                const auto high = (shifted(third[g % 2], 4 * half + g / 2) & 1) << 2;
                put(128 * half + 16 * g, ((shifted(two[g % 2], g / 2 * 2) & 3) | high) - 4, scale[8 * half + g], 0);
            }
        }
    }
};

struct Q4_K {
    static constexpr int VALUES = 256, BYTES = 144, D = 0;
    static constexpr int GROUP = 32, BIAS = 0, MOST = 15;
    static constexpr bool LEAST = true;

    template <class Raw, class Put>
    static inline void each(Raw raw, Put put) {
        const auto head = head_of(raw);
#pragma GCC unroll 16
        for (int s = 0; s < 8; s += 2) {
            const auto a = bytes_at(raw + 16 + 16 * s), b = bytes_at(raw + 32 + 16 * s);
            put(32 * s, a & 15, head.scale[s], head.least(s));
            put(32 * s + 16, b & 15, head.scale[s], head.least(s));
            put(32 * s + 32, a >> 4, head.scale[s + 1], head.least(s + 1));
            put(32 * s + 48, b >> 4, head.scale[s + 1], head.least(s + 1));
        }
    }

#if defined(__AMX_INT8__)
    static void scales(const uint8_t* raw, uint8_t* sc) { put_scales(raw, sc); }

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
#pragma GCC unroll 16
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
    static constexpr int GROUP = 32, BIAS = 0, MOST = 31;
    static constexpr bool LEAST = true;

    template <class Raw, class Put>
    static inline void each(Raw raw, Put put) {
        const auto head = head_of(raw);
        auto c = bytes_at(raw + 16), d = bytes_at(raw + 32);  // the fifth bits of values 0..15 and 16..31 of each
        for (int s = 0; s < 8; s += 2, c = shifted(c, 2), d = shifted(d, 2)) {
            const auto a = bytes_at(raw + 48 + 16 * s), b = bytes_at(raw + 64 + 16 * s);
            put(32 * s, (a & 15) | (c & 1) << 4, head.scale[s], head.least(s));
            put(32 * s + 16, (b & 15) | (d & 1) << 4, head.scale[s], head.least(s));
            put(32 * s + 32, a >> 4 | (c & 2) << 3, head.scale[s + 1], head.least(s + 1));
            put(32 * s + 48, b >> 4 | (d & 2) << 3, head.scale[s + 1], head.least(s + 1));
        }
    }

#if defined(__AMX_INT8__)
    static void scales(const uint8_t* raw, uint8_t* sc) { put_scales(raw, sc); }

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
#pragma GCC unroll 16
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
    static constexpr int GROUP = 16, BIAS = 32, MOST = 63;
    static constexpr bool LEAST = false;

    // A half of a block has four groups of 32, 16 to a scale: their low nibbles lie in two groups, their high bits in
    // one.
    template <class Raw, class Put>
    static inline void each(Raw raw, Put put) {
        const auto scale = scales_by(bytes_at(raw + 192), half_at(raw + 208));
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const auto at = raw + 64 * half;
            const decltype(bytes_at(raw)) four[] = {
                bytes_at(at), bytes_at(at + 16), bytes_at(at + 32), bytes_at(at + 48)};
            const decltype(bytes_at(raw)) two[] = {bytes_at(raw + 128 + 32 * half), bytes_at(raw + 144 + 32 * half)};
#pragma GCC unroll 8
            for (int g = 0; g < 8; g++) {
                const int part = g / 2;
                const auto low = shifted(four[g % 4], part / 2 * 4) & 15;
                put(128 * half + 16 * g, (low | (shifted(two[g % 2], 2 * part) & 3) << 4) - 32, scale[8 * half + g], 0);
            }
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

struct IQ4_XS {
    static constexpr int VALUES = 256, BYTES = 136;
    static constexpr int GROUP = 32, BIAS = 128, MOST = 255;
    static constexpr bool LEAST = false;

    template <class Raw, class Put>
    static inline void each(Raw raw, Put put) {
        const auto d = half_at(raw);
        const auto high = word_at(raw), low = word_at(raw + 4);
#pragma GCC unroll 16
        for (int s = 0; s < 8; s++) {
            const auto scale = d * real_of(((low >> 4 * s & 15) | (high >> (16 + 2 * s) & 3) << 4) - 32);
            const auto q = bytes_at(raw + 8 + 16 * s);
            put(32 * s, look_up(IQ4_VALUES, q & 15), scale, 0), put(32 * s + 16, look_up(IQ4_VALUES, q >> 4), scale, 0);
        }
    }
};

// Five values of -1, 0, 1 to a byte, as the digits of a fraction of base 3; the last four bytes have four.
struct TQ1_0 {
    static constexpr int VALUES = 256, BYTES = 54;
    static constexpr int GROUP = 32, BIAS = 1, MOST = 2;
    static constexpr bool LEAST = false;

    // The first digit of x / 256, less 1.
    static inline Bytes digit(Bytes x) { return (x > 85 ? ONE : ZERO) + (x > 170 ? ONE : ZERO) - 1; }

    template <class Put>
    static inline void each(const uint8_t* raw, Put put) {
        const float d = half_at(raw + 52);
        Bytes a = bytes_at(raw), b = bytes_at(raw + 16), c = bytes_at(raw + 32);
        for (int i = 0; i < 5; i++, a += a + a, b += b + b)
            put(32 * i, digit(a), d, 0), put(32 * i + 16, digit(b), d, 0);
        for (int i = 0; i < 5; i++, c += c + c) put(160 + 16 * i, digit(c), d, 0);
        const uint32_t one = word_at(raw + 48);
        const auto three = [](uint32_t x) {  // times each byte
            const uint32_t even = (x & 0x00ff00ff) * 3 & 0x00ff00ff, odd = (x >> 8 & 0x00ff00ff) * 3 & 0x00ff00ff;
            return even | odd << 8;
        };
        const uint32_t two = three(one), nine = three(two), last = three(nine);
        put(240, digit(two_words(one | uint64_t(two) << 32, nine | uint64_t(last) << 32)), d, 0);
    }

private:
    static constexpr Bytes ZERO = {}, ONE = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
};

struct TQ2_0 {
    static constexpr int VALUES = 256, BYTES = 66;
    static constexpr int GROUP = 32, BIAS = 1, MOST = 3;
    static constexpr bool LEAST = false;

    template <class Put>
    static inline void each(const uint8_t* raw, Put put) {
        const float d = half_at(raw + 64);
#pragma GCC unroll 16
        for (int g = 0; g < 16; g++) {
            const Bytes q = shifted(bytes_at(raw + 32 * (g / 8) + 16 * (g % 2)), 2 * (g % 8 / 2));
            put(16 * g, (q & 3) - 1, d, 0);
        }
    }
};

// Of a type that has all of digits, values and halves, for AMX.
template <class Block>
static constexpr Layout super_blocks(const char* name) {
    Layout layout = blocks<Block>(name);
#if defined(__AMX_INT8__)
    layout.digits = Block::digits;
    layout.line = multiply_line<Block>, layout.halves = Block::halves;
#endif
    return layout;
}

static const Layout SUPER_BLOCKS[] = {
    blocks<Q2_K>("Q2_K"),       blocks<Q3_K>("Q3_K"),       super_blocks<Q4_K>("Q4_K"), super_blocks<Q5_K>("Q5_K"),
    super_blocks<Q6_K>("Q6_K"), blocks<IQ4_XS>("IQ4_XS"),   blocks<TQ1_0>("TQ1_0"),     blocks<TQ2_0>("TQ2_0"),
};
