// What is made of one description of a stored block: decoding to float32, and the product with one token.
//
// A type describes itself by `each(raw, put)`, which calls put(at, q, scale, least) for 16 values after the other, in
// their order: value = scale * q - least, q signed bytes; GROUP of them share scale and least, q + BIAS is
// from 0 to MOST, and without LEAST least is 0. scale * q is exact in float32 (d of float16 has 11 bits, q
// and its scale together at most 13); only the last subtraction rounds, so the bits are those of quant/dequantize.py.
// Source of the layouts: gguf-py 0.19, gguf/quants.py.
#pragma once
#include "../panels/bytes.h"
#include "../dots.h"
#include "one_token.h"
#include "layout.h"
#include "rows.h"

// scale * q - least as float32. (Compilers widen bytes one by one.)
static inline void values_of(Bytes q, float scale, float least, Vec* out) {
#if defined(__AVX512F__)
    const __m512 v = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(reinterpret_cast<__m128i>(q)));
    out[0] = _mm512_fmsub_ps(v, _mm512_set1_ps(scale), _mm512_set1_ps(least));
#elif defined(__AVX2__)
    const __m128i b = reinterpret_cast<__m128i>(q);
    const __m256i wide[2] = {_mm256_cvtepi8_epi32(b), _mm256_cvtepi8_epi32(_mm_srli_si128(b, 8))};
    for (int p = 0; p < 2; p++)
        out[p] = _mm256_fmsub_ps(_mm256_cvtepi32_ps(wide[p]), _mm256_set1_ps(scale), _mm256_set1_ps(least));
#else
    int8_t each[16];
    float v[16];
    memcpy(each, &q, 16);
    for (int i = 0; i < 16; i++) v[i] = scale * static_cast<float>(each[i]) - least;
    memcpy(out, v, sizeof v);
#endif
}

// by * q for 16 scales.
struct Scales {
    alignas(64) float of[16];
    float operator[](int i) const { return of[i]; }
};

static inline Scales scales_by(Bytes q, float by) {
    Scales scales;
    Vec v[PARTS];
    values_of(q, by, 0, v);
    memcpy(scales.of, v, sizeof v);
    return scales;
}

template <class Block>
static void decode_blocks(const uint8_t* raw, float* out, long n) {
    for (long b = 0; b < n / Block::VALUES; b++, raw += Block::BYTES, out += Block::VALUES)
        Block::each(raw, [&](int at, Bytes q, float scale, float least) {
            Vec v[PARTS];
            values_of(q, scale, least, v);
            memcpy(out + at, v, sizeof v);
        });
}

// Rows follow each other, so what is wanted soon lies so far on; where four rows are read at once, processors see no
// order to run ahead in, and memory gives a tenth of what it could.
constexpr long AHEAD = 4096;

// out[r] (+)= w[r] . x over n values (whole blocks) of R rows, in the order of dots: the same bits, nothing stored.
template <class Block, int R>
static inline void dot_blocks(const uint8_t* w, long w_step, const float* x, long n, float* out, bool first) {
    Vec sum[R][1][PARTS] = {};
    for (long b = 0; b < n / Block::VALUES; b++, w += Block::BYTES, x += Block::VALUES)
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const uint8_t* raw = w + r * w_step;
            for (int at = 0; at < Block::BYTES; at += 64) __builtin_prefetch(raw + AHEAD + at);
            Block::each(raw, [&](int at, Bytes q, float scale, float least) {
                Vec v[PARTS];
                values_of(q, scale, least, v);
                for (int p = 0; p < PARTS; p++) sum[r][0][p] += v[p] * load<Vec>(x + at + p * VL);
            });
        }
    float s[R];
    add_lanes_of(sum, 0, s);
    for (int r = 0; r < R; r++) out[r] = first ? s[r] : out[r] + s[r];
}

template <class Block>
static void dot_rows(const uint8_t* w, long w_step, long rows, const float* x, long n, float* out, bool first) {
    constexpr int R = 4;
    for (; rows >= R; rows -= R, w += R * w_step, out += R) dot_blocks<Block, R>(w, w_step, x, n, out, first);
    for (; rows; rows--, w += w_step, out++) dot_blocks<Block, 1>(w, w_step, x, n, out, first);
}

#if defined(__AVX2__)
struct Nothing {
    template <class... Any>
    void operator()(const Any&...) const {}
};

// Whether each() reads VL rows at once.
template <class Block, class = void>
constexpr bool READS_ROWS = false;
template <class Block>
constexpr bool READS_ROWS<Block, std::void_t<decltype(Block::each(Rows{}, Nothing{}))>> = true;

// n values (up to SPAN) of `rows` rows (the last again beyond them). soon: what is wanted next of memory.
template <class Block>
static void fill_panel(
    const uint8_t* w, long row_bytes, long rows, long n, const uint8_t* soon, long soon_step, Panel& out) {
    const long blocks = (n + Block::VALUES - 1) / Block::VALUES, bytes = blocks * Block::BYTES;
    if constexpr (READS_ROWS<Block>)
        if (rows == VL) return fill_panel_of<Block>({w, row_bytes}, n, {soon, soon_step}, out);
    Unturned& line = unturned();
    for (long r = 0; r < VL; r++) {
        const uint8_t* raw = w + (r < rows ? r : rows - 1) * row_bytes;
        for (long at = 0; at < bytes; at += 64) __builtin_prefetch(soon + r * soon_step + at, 0, 2);
        uint8_t* u = line.u[r];
        float *scales = line.scale[r], *leasts = line.least[r];
        for (long b = 0; b < blocks; b++, raw += Block::BYTES, u += Block::VALUES)
            Block::each(raw, [&](int at, Bytes q, float scale, float least) {
                q += static_cast<uint8_t>(Block::BIAS);
                memcpy(u + at, &q, 16);
                if (at % Block::GROUP) return;
                const long g = (b * Block::VALUES + at) / Block::GROUP;
                scales[g] = scale, leasts[g] = least;
            });
    }
    const long groups = blocks * Block::VALUES / Block::GROUP;
    turn_words(line.u, SPAN, blocks * Block::VALUES / 4, out.four);
    turn_words(line.scale, sizeof line.scale[0], groups, out.scale);
    if (Block::LEAST) turn_words(line.least, sizeof line.least[0], groups, out.least);
}
#endif

template <class Block>
static constexpr Layout blocks(const char* name) {
    Layout layout = {name, Block::VALUES, Block::BYTES, decode_blocks<Block>};
    if constexpr (!THREE_DIGITS) layout.dot = dot_rows<Block>;
    layout.group = Block::GROUP, layout.bias = Block::BIAS, layout.most = Block::MOST, layout.least = Block::LEAST;
#if defined(__AVX2__)
    layout.panel = fill_panel<Block>;
    if constexpr (READS_ROWS<Block>) {
        layout.one[0] = dot_token<Block, 1>;
        if constexpr (THREE_DIGITS) layout.one[1] = dot_token<Block, 3>;
    }
#endif
    return layout;
}
