// The same block of VL rows at once: what layout.h reads of one row's bytes, of rows that lie a step apart.
//
// A word of 16 bytes becomes a vector with a lane for each row, so operations on bytes are a block's own, done for all
// rows, and the panel (panels/panel.h) needs no turning. Not here: what a block is (small_blocks.h, super_blocks.h).
#pragma once
#include "../panels/panel.h"
#include "layout.h"

#if defined(__AVX2__)
struct Rows {
    const uint8_t* first;
    long step;
    const uint8_t* row(int r) const { return first + r * step; }
    Rows operator+(long bytes) const { return {first + bytes, step}; }
};

typedef uint8_t RowBytes __attribute__((vector_size(VL * 4)));
typedef uint32_t Words __attribute__((vector_size(VL * 4)));  // of each row one

// 16 bytes of each row: the four words after the other.
struct Wide {
    RowBytes of[4];
    Words word(int i) const { return reinterpret_cast<Words>(of[i]); }
};

template <class Each>
static inline Wide each_of_four(const Each& each) {
    return {each(0), each(1), each(2), each(3)};
}
static inline Wide operator&(const Wide& a, int b) {
    return each_of_four([&](int i) { return a.of[i] & static_cast<uint8_t>(b); });
}
static inline Wide operator|(const Wide& a, const Wide& b) {
    return each_of_four([&](int i) { return a.of[i] | b.of[i]; });
}
static inline Wide operator+(const Wide& a, int b) {
    return each_of_four([&](int i) { return a.of[i] + static_cast<uint8_t>(b); });
}
static inline Wide operator-(const Wide& a, int b) { return a + -b; }
static inline Wide operator>>(const Wide& a, int by) {
    return each_of_four([&](int i) { return a.of[i] >> static_cast<uint8_t>(by); });
}
static inline Wide operator<<(const Wide& a, int by) {
    return each_of_four([&](int i) { return a.of[i] << static_cast<uint8_t>(by); });
}

static inline Wide shifted(const Wide& a, int by) {
    return each_of_four([&](int i) { return reinterpret_cast<RowBytes>(a.word(i) >> static_cast<uint32_t>(by)); });
}

static inline Wide four_words(Words a, Words b, Words c, Words d) {
    return {reinterpret_cast<RowBytes>(a), reinterpret_cast<RowBytes>(b), reinterpret_cast<RowBytes>(c),
            reinterpret_cast<RowBytes>(d)};
}

static inline __m128i sixteen(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

static inline Wide bytes_at(Rows rows) {
#if defined(__AVX512F__)
    typedef __m512i V;
    const auto take = [&](int r) {
        V v = _mm512_inserti32x4(_mm512_castsi128_si512(sixteen(rows.row(r))), sixteen(rows.row(r + 4)), 1);
        v = _mm512_inserti32x4(v, sixteen(rows.row(r + 8)), 2);
        return _mm512_inserti32x4(v, sixteen(rows.row(r + 12)), 3);
    };
    const V a = take(0), b = take(1), c = take(2), d = take(3);
    const V ab = _mm512_unpacklo_epi32(a, b), AB = _mm512_unpackhi_epi32(a, b);
    const V cd = _mm512_unpacklo_epi32(c, d), CD = _mm512_unpackhi_epi32(c, d);
    return {(RowBytes)_mm512_unpacklo_epi64(ab, cd), (RowBytes)_mm512_unpackhi_epi64(ab, cd),
            (RowBytes)_mm512_unpacklo_epi64(AB, CD), (RowBytes)_mm512_unpackhi_epi64(AB, CD)};
#else
    typedef __m256i V;
    const auto take = [&](int r) {
        return _mm256_inserti128_si256(_mm256_castsi128_si256(sixteen(rows.row(r))), sixteen(rows.row(r + 4)), 1);
    };
    const V a = take(0), b = take(1), c = take(2), d = take(3);
    const V ab = _mm256_unpacklo_epi32(a, b), AB = _mm256_unpackhi_epi32(a, b);
    const V cd = _mm256_unpacklo_epi32(c, d), CD = _mm256_unpackhi_epi32(c, d);
    return {(RowBytes)_mm256_unpacklo_epi64(ab, cd), (RowBytes)_mm256_unpackhi_epi64(ab, cd),
            (RowBytes)_mm256_unpacklo_epi64(AB, CD), (RowBytes)_mm256_unpackhi_epi64(AB, CD)};
#endif
}

static inline Words word_at(Rows rows) {
    alignas(64) uint32_t words[VL];
    for (int r = 0; r < VL; r++) words[r] = word_at(rows.row(r));
    return load<Words>(words);
}

static inline Vec real_of(Words words) { return __builtin_convertvector(reinterpret_cast<Ints>(words), Vec); }

// The halves in the lower 16 bits of words.
static inline Vec halves_of(Words words) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)words));
#else
    const __m256i low = _mm256_and_si256((__m256i)words, _mm256_set1_epi32(0xffff));
    const __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(both));
#endif
}

static inline Vec half_at(Rows rows) {
    alignas(32) uint16_t halves[VL];
    for (int r = 0; r < VL; r++) memcpy(halves + r, rows.row(r), 2);
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(halves)));
#else
    return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(halves)));
#endif
}

struct WideHalves {
    Vec first, second;
};
static inline WideHalves halves_at(Rows rows) {
    const Words both = word_at(rows);
    return {halves_of(both), halves_of(both >> 16)};
}

static inline Wide look_up(Bytes table, const Wide& index) {
    return each_of_four([&](int i) {
#if defined(__AVX512F__)
        return (RowBytes)_mm512_shuffle_epi8(_mm512_broadcast_i32x4((__m128i)table), (__m512i)index.of[i]);
#else
        return (RowBytes)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256((__m128i)table), (__m256i)index.of[i]);
#endif
    });
}

// 16 where a bit is set, of 16 bits.
static inline Wide sixteens_at(Rows rows) {
    const Words bits = word_at(rows);
    return each_of_four([&](int i) {
        return reinterpret_cast<RowBytes>(((bits >> static_cast<uint32_t>(4 * i) & 15) * 0x00204081 & 0x01010101) << 4);
    });
}

// by * q for 16 scales of each row, signed bytes.
struct WideScales {
    Wide q;
    Vec by;
    Vec operator[](int i) const {
        const Ints up = reinterpret_cast<Ints>(q.of[i / 4]) << (24 - 8 * (i % 4));
        return __builtin_convertvector(up >> 24, Vec) * by;
    }
};
static inline WideScales scales_by(const Wide& q, Vec by) { return {q, by}; }

// n values of VL rows: as fill_panel, without a row's own order of bytes in between. What is wanted soon is asked of
// memory bit by bit: more requests at once than a processor keeps would hold up the reading.
template <class Block>
[[gnu::flatten]] static void fill_panel_of(Rows rows, long n, Rows soon, Panel& out) {
    constexpr int PART = 256, PART_BYTES = PART / Block::VALUES * Block::BYTES;  // of a row, asked for at once
    for (long k = 0; k < n; k += Block::VALUES, rows = rows + Block::BYTES)
        Block::each(rows, [&](int at, const Wide& q, Vec scale, const auto& least) {
            const Wide u = q + Block::BIAS;
            const long row = (k + at) % PART / 16, from = (k + at) / PART * PART_BYTES;
            for (int i = 0; row < VL && i < PART_BYTES; i += 64)
                __builtin_prefetch(soon.row(static_cast<int>(row)) + from + i, 0, 2);
            memcpy(out.four[(k + at) / 4], &u, sizeof u);
            if (at % Block::GROUP) return;
            memcpy(out.scale[(k + at) / Block::GROUP], &scale, sizeof scale);
            if (Block::LEAST) memcpy(out.least[(k + at) / Block::GROUP], &least, sizeof least);
        });
}
#endif

// Scales (bytes 0..7) and mins (8..15) of a block of Q4_K or Q5_K: 6 bits each, in 12 bytes, as three words.
template <class Word>
static inline auto scales_of(Word a, Word b, Word c) {
    return four_words(a & 0x3f3f3f3f, (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030), b & 0x3f3f3f3f,
                      (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030));
}

static inline Bytes scales_of(const uint8_t* raw) {
    return scales_of(word_at(raw + 4), word_at(raw + 8), word_at(raw + 12));
}
