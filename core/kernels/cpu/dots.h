// Multiply float32 activations by stored weights in float32: decode a few rows into cache, then dot products.
//
// Each output is a sum over chunks of K of 16 lanes, lane i taking values i, i + 16 ...; a lane is a chain of fused
// multiply-adds, the lanes are added as a tree, the chunks one after the other. The order depends on K alone: not on
// the number of tokens, rows or threads, nor on the instruction set (where it has FMA), so neither do the bits.
// Not here: the K-quants where the processor has AMX (tiles.h).
#pragma once
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <utility>

#include "blocks/layout.h"
#include "rounding.h"
#include "vectors.h"

// ROWS x TOKENS sums fill the registers; ALONE: rows at a time where there is one token.
constexpr int ROWS = VL == 16 ? 4 : 2, TOKENS = VL == 16 ? 6 : VL == 8 ? 3 : 2, ALONE = VL == 16 ? 8 : 4;
constexpr long CHUNK = 1024;    // of K, at most: four rows of it and six tokens' fit the first-level cache
constexpr long TILE_ROWS = 32;  // decoded at a time: 128 KiB, in the second-level cache, each read for all tokens
constexpr long ALONE_MACS = 1 << 17;  // up to here waking a second thread costs more than it saves

#if defined(__AVX2__)
// Lanes i and i + 8, then i and i + 4.
static inline __m128 add_to_four(const Vec* v) {
#if defined(__AVX512F__)
    const __m512d all = _mm512_castps_pd(v[0]);
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v[0]), _mm256_castpd_ps(_mm512_extractf64x4_pd(all, 1)));
#else
    const __m256 eight = _mm256_add_ps(v[0], v[1]);
#endif
    return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}

// Lanes i and i + 2, then i and i + 1, of four sums.
static inline __m128 add_fours(__m128 a, __m128 b, __m128 c, __m128 d) {
    const __m128 ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
    const __m128 cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
    return _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd));
}
#endif

// The sums of R rows and token t, each with its 16 lanes added in the order of add_lanes.
template <int R, int T>
static inline void add_lanes_of(const Vec (&sum)[R][T][PARTS], int t, float* s) {
    int r = 0;
#if defined(__AVX2__)
    const __m128 none = _mm_setzero_ps();
    for (; r + 4 <= R; r += 4)
        _mm_storeu_ps(s + r, add_fours(add_to_four(sum[r][t]), add_to_four(sum[r + 1][t]), add_to_four(sum[r + 2][t]),
                                       add_to_four(sum[r + 3][t])));
    for (; r + 2 <= R; r += 2) {
        const __m128 two = add_fours(add_to_four(sum[r][t]), add_to_four(sum[r + 1][t]), none, none);
        _mm_storel_pi(reinterpret_cast<__m64*>(s + r), two);
    }
#endif
    for (; r < R; r++) s[r] = add_lanes<float>(sum[r][t]);
}

// out[t][r] (+)= w[r] . x[t] over n values (a multiple of 16).
template <int R, int T>
static void dots(
    const float* w, long w_step, const float* x, long x_step, long n, float* out, long out_step, bool first) {
    Vec sum[R][T][PARTS] = {};
    for (long k = 0; k < n; k += LANES) {
        Vec a[R][PARTS];
        for (int r = 0; r < R; r++)
            for (int p = 0; p < PARTS; p++) a[r][p] = load<Vec>(w + r * w_step + k + p * VL);
        for (int t = 0; t < T; t++)
            for (int p = 0; p < PARTS; p++) {
                const Vec b = load<Vec>(x + t * x_step + k + p * VL);
                for (int r = 0; r < R; r++) sum[r][t][p] += a[r][p] * b;
            }
    }
    for (int t = 0; t < T; t++) {
        float s[R];
        add_lanes_of(sum, t, s);
        for (int r = 0; r < R; r++) out[t * out_step + r] = first ? s[r] : out[t * out_step + r] + s[r];
    }
}

using Dots = void (*)(const float*, long, const float*, long, long, float*, long, bool);

template <int R, int... T>
static Dots dots_of(long tokens, std::integer_sequence<int, T...>) {
    static const Dots table[] = {dots<R, T + 1>...};
    return table[tokens - 1];
}

// rows: ALONE (of one token), ROWS or 1.
static Dots dots_of(long rows, long tokens) {
    if (tokens == 1 && rows == ALONE) return dots<ALONE, 1>;
    const std::make_integer_sequence<int, TOKENS> widths;
    return rows == ROWS ? dots_of<ROWS>(tokens, widths) : dots_of<1>(tokens, widths);
}

struct Job {
    const Layout& layout;
    const uint8_t* w;
    long rows, cols, row_bytes;
    const float* x;  // [tokens, x_step], readable up to cols rounded up to 16, zeros there
    long tokens, x_step;
    float* out;
    long out_step;
    bool halves;  // weights and outputs are rounded to bfloat16, as x has been
};

static float* tile() {
    static thread_local std::unique_ptr<float, void (*)(void*)> kept(
        static_cast<float*>(std::aligned_alloc(64, TILE_ROWS * CHUNK * 4)), std::free);
    return kept.get();
}

// Up to TOKENS tokens from t on, times rows first .. last - 1 of the tile w, over values k .. k + n - 1.
static void multiply_panel(const Job& job, const float* w, long w_step, long first, long last, long t, long k, long n) {
    const long tokens = std::min<long>(TOKENS, job.tokens - t);
    const float* x = job.x + t * job.x_step + k;
    for (long r = first, rows; r < last; r += rows, w += rows * w_step) {
        rows = tokens == 1 && last - r >= ALONE ? ALONE : last - r >= ROWS ? ROWS : 1;
        float* out = job.out + t * job.out_step + r;
        dots_of(rows, tokens)(w, w_step, x, job.x_step, n, out, job.out_step, k == 0);
    }
}

// All tokens times rows first .. last - 1, a tile of them.
static void multiply_rows(const Job& job, long first, long last) {
    const long n_chunk = (job.cols + CHUNK - 1) / CHUNK, step = ((job.cols + n_chunk - 1) / n_chunk + 255) / 256 * 256;
    const long group = job.tokens <= TOKENS ? ALONE : last - first;  // few tokens: while it is in the first cache
    const long block = job.layout.block;
    float* w = tile();
    for (long k = 0; k < job.cols; k += step) {
        const long n = std::min(step, job.cols - k), whole = (n + block - 1) / block * block;
        const long padded = (n + LANES - 1) / LANES * LANES;
        if (job.tokens == 1 && job.layout.dot && !job.halves && whole == n) {
            const uint8_t* raw = job.w + first * job.row_bytes + k / block * job.layout.block_bytes;
            job.layout.dot(raw, job.row_bytes, last - first, job.x + k, n, job.out + first, k == 0);
            continue;
        }
        for (long from = first; from < last; from += group) {
            const long to = std::min(from + group, last);
            for (long i = from; i < to; i++) {
                float* row = w + (i - from) * step;
                job.layout.decode(job.w + i * job.row_bytes + k / block * job.layout.block_bytes, row, whole);
                std::fill(row + n, row + padded, 0.0f);
                if (job.halves) std::transform(row, row + n, row, round_half);
            }
            for (long t = 0; t < job.tokens; t += TOKENS) multiply_panel(job, w, step, from, to, t, k, padded);
        }
    }
    for (long t = 0; job.halves && t < job.tokens; t++) {
        float* out = job.out + t * job.out_step;
        std::transform(out + first, out + last, out + first, round_half);
    }
}
