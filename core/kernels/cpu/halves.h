// Multiply bfloat16 activations by stored weights rounded to bfloat16, in AMX tiles: products exact, sums in float32.
//
// An output is one chain of sums over K, so its bits depend on the token's and the row's values alone. NaN and Inf take
// their usual way; what is subnormal counts as zero (the tiles do that).
// Not here: processors without such tiles, which take float32 dots of rounded values (dots.h).
#pragma once
#include "dots.h"
#include "tiles.h"

constexpr int HALF_STEP = 32, HALF_STEPS = SUPER / HALF_STEP, PAIRS = HALF_STEP / 2;

static const __m512 FROM_0 = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

constexpr long HALF_ROWS = 64;  // of one call at most: four tiles, so four chains of sums

// 256 values of 16 tokens, as AMX wants them: [2 values][token][value].
struct HalfInputs {
    alignas(64) uint16_t pairs[HALF_STEPS][PAIRS][TILE][2];
};

// 256 values of 16 rows.
struct HalfWeights {
    alignas(64) uint16_t values[HALF_STEPS][TILE][HALF_STEP];
};

// One token's n values (up to 256), rounded.
static inline void to_pairs(const float* x, long n, HalfInputs& out, int token) {
    alignas(64) float v[SUPER];
    std::copy_n(x, n, v), std::fill(v + n, v + SUPER, 0.0f);
    const __m512i places = _mm512_mullo_epi32(_mm512_cvtps_epi32(FROM_0), _mm512_set1_epi32(TILE));
    for (int i = 0; i < HALF_STEPS; i++) {
        const float* at = v + i * HALF_STEP;
        const __m512bh two = _mm512_cvtne2ps_pbh(_mm512_load_ps(at + 16), _mm512_load_ps(at));
        _mm512_i32scatter_epi32(out.pairs[i][0][token], places, (__m512i)two, 4);
    }
}

static inline void put_halves(HalfWeights& out, int step, int row, __m512i halves) {
    _mm512_store_si512(out.values[step][row], halves);
}

// HeadK in registers (by itself, here, a compiler takes four times as long).
struct HeadHalves {
    float scale[8], least[8];
    explicit HeadHalves(const uint8_t* raw) {
        alignas(16) uint8_t sc[16];
        put_scales(raw, sc);
        const auto wide = [&](int at, float by) {
            const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(sc + at)));
            return _mm256_mul_ps(_mm256_set1_ps(by), _mm256_cvtepi32_ps(bytes));
        };
        _mm256_storeu_ps(scale, wide(0, half_at(raw))), _mm256_storeu_ps(least, wide(8, half_at(raw + 2)));
    }
    // What the numbers q stand for in sub-block s, as float32.
    __m512 values(int s, __m512 q) const {
        return _mm512_fmsub_ps(_mm512_set1_ps(scale[s]), q, _mm512_set1_ps(least[s]));
    }
};

// n values of any other type, by way of float32; zeros behind them.
static void halves_of(const Layout& layout, const uint8_t* raw, long n, HalfWeights& out, int row) {
    alignas(64) float v[SUPER];
    layout.decode(raw, v, (n + layout.block - 1) / layout.block * layout.block);
    if (n < SUPER) std::fill(v + n, v + SUPER, 0.0f);
    for (int i = 0; i < HALF_STEPS; i++) {
        const float* at = v + i * HALF_STEP;
        put_halves(out, i, row, (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(at + 16), _mm512_load_ps(at)));
    }
}

// Values k .. k + 255 of rows first .. last - 1 (at most 16); ahead: how far from a row lie bytes wanted soon.
static inline void take_halves(const Job& job, long k, long first, long last, long ahead, HalfWeights& out) {
    const auto fast = job.layout.halves;
    const long n = std::min<long>(SUPER, job.cols - k), bytes = SUPER / job.layout.block * job.layout.block_bytes;
    for (long r = first; r < last; r++) {
        const uint8_t* raw = job.w + r * job.row_bytes + k / job.layout.block * job.layout.block_bytes;
        for (long at = 0; at < bytes; at += 64)  // rows lie apart: no order to run ahead in
            _mm_prefetch(reinterpret_cast<const char*>(raw + ahead + at), _MM_HINT_T0);
        const int row = static_cast<int>(r - first);
        fast && n == SUPER ? fast(raw, out, row) : halves_of(job.layout, raw, n, out, row);
    }
}

// y[row][token] += 256 values' part, of 16 rows.
static inline void add_halves(const HalfWeights& w, const HalfInputs& x, float (*y)[TILE]) {
    _tile_loadd(0, y, STEP);
    for (int i = 0; i < HALF_STEPS; i++) {
        _tile_loadd(4, w.values[i], STEP);
        _tile_loadd(6, x.pairs[i], STEP);
        _tile_dpbf16ps(0, 4, 6);
    }
    _tile_stored(0, y, STEP);
}

// The same of 64 rows: four chains at once, since one waits for itself.
static inline void add_halves(const HalfWeights* w, const HalfInputs& x, float (*y)[TILE][TILE], long y_step) {
    _tile_loadd(0, y, STEP);
    _tile_loadd(1, y + y_step, STEP);
    _tile_loadd(2, y + 2 * y_step, STEP);
    _tile_loadd(3, y + 3 * y_step, STEP);
    for (int i = 0; i < HALF_STEPS; i++) {
        _tile_loadd(6, x.pairs[i], STEP);
        _tile_loadd(4, w[0].values[i], STEP);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, w[1].values[i], STEP);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(4, w[2].values[i], STEP);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(5, w[3].values[i], STEP);
        _tile_dpbf16ps(3, 5, 6);
    }
    _tile_stored(0, y, STEP);
    _tile_stored(1, y + y_step, STEP);
    _tile_stored(2, y + 2 * y_step, STEP);
    _tile_stored(3, y + 3 * y_step, STEP);
}

// The sums of one token, n rows of it.
static inline void store_column(const float (*y)[TILE], long token, float* out, long n) {
    const __m512i rows = _mm512_mullo_epi32(_mm512_cvtps_epi32(FROM_0), _mm512_set1_epi32(TILE));
    alignas(64) float column[TILE];
    _mm512_store_ps(column, _mm512_i32gather_ps(rows, y[0] + token, 4));
    for (float& value : column) value = round_half(value);
    std::copy_n(column, n, out);
}

// Rows first .. last - 1 (at most HALF_ROWS) times all tokens; x: [blocks of 256][groups of 16 tokens].
static void multiply_halves(const Job& job, const HalfInputs* x, long first, long last) {
    constexpr long N_PART = HALF_ROWS / TILE;
    const long blocks = (job.cols + SUPER - 1) / SUPER, groups = (job.tokens + TILE - 1) / TILE;
    const long next_block = SUPER / job.layout.block * job.layout.block_bytes;
    static thread_local std::vector<float> kept;
    static thread_local std::unique_ptr<HalfWeights[]> w(new HalfWeights[N_PART]());
    kept.assign(static_cast<size_t>(N_PART * groups * TILE * TILE + 16), 0.0f);
    auto* y = reinterpret_cast<float(*)[TILE][TILE]>((reinterpret_cast<uintptr_t>(kept.data()) + 63) / 64 * 64);
    const auto begin = [&](long p) { return std::min(first + p * TILE, last); };
    const Tiles tiles;
    if (groups == 1) {
        for (long p = 0; p < N_PART; p++)
            for (long j = 0; j < blocks; j++) {
                take_halves(job, j * SUPER, begin(p), begin(p + 1), TILE * job.row_bytes, w[0]);
                add_halves(w[0], x[j], y[p]);
            }
    } else {
        for (long j = 0; j < blocks; j++) {
            for (long p = 0; p < N_PART; p++)
                take_halves(job, j * SUPER, begin(p), begin(p + 1), next_block, w[p]);
            for (long g = 0; g < groups; g++) add_halves(w.get(), x[j * groups + g], y + g, groups);
        }
    }
    for (long t = 0; t < job.tokens; t++)
        for (long p = 0; p < N_PART; p++)
            store_column(y[p * groups + t / TILE], t % TILE, job.out + t * job.out_step + begin(p),
                         begin(p + 1) - begin(p));
}
