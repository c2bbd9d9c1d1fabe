// Multiply K-quants by whole numbers in AMX tiles: activations of a super-block become 24-bit numbers with one scale.
//
// x = E * X, |X| < 2^23, rounded once: beside the largest |x| of its 256 the error is at most 2^-24, as a float32's.
// Products and their sums over a super-block are exact; then y += E * (d * sum - mins), in float32, super-block by
// super-block. So the bits depend on the token's and the row's values alone. A token or row that is not finite, or too
// small to be scaled, is multiplied in float32 by the caller (the odd ones).
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "digits.h"

constexpr float TOP = 8355000.0f;     // below 0x7f7f7f, the largest number of three signed bytes
constexpr float Q8_TOP = 127.0f;      // of activations that are whole multiples of a 127th of their block's largest
constexpr float SMALLEST = 0x1p-90f;  // of a block's largest |x|: below it E loses digits

// A super-block of 16 tokens. digits: three bytes of X, the highest first, as AMX wants them: [4 values][token][value].
struct Inputs {
    alignas(64) int8_t digits[3][STEPS][TILE][STEP];
    alignas(64) float sums[8][TILE];  // of X over sub-blocks of 32
    alignas(64) float scale[TILE];    // E
};

// One token's n values (up to 256) of a super-block, the largest to become top; returns whether they can be scaled.
static inline bool split(const float* x, long n, float top, Inputs& out, int token) {
    alignas(64) float v[SUPER];
    std::copy_n(x, n, v), std::fill(v + n, v + SUPER, 0.0f);
    __m512i size = _mm512_setzero_si512();
    for (int k = 0; k < SUPER; k += 16)
        size = _mm512_max_epi32(size, _mm512_and_si512(_mm512_load_si512(v + k), _mm512_set1_epi32(0x7fffffff)));
    const int most_bits = _mm512_reduce_max_epi32(size);
    float most;
    memcpy(&most, &most_bits, 4);
    const bool fine = most_bits == 0 || (most >= SMALLEST && most_bits < 0x7f800000);
    const float inverse = fine && most_bits ? top / most : 0.0f;
    out.scale[token] = fine && most_bits ? static_cast<float>(1.0 / static_cast<double>(inverse)) : 0.0f;
    if (!fine) std::fill(v, v + SUPER, 0.0f);
    const __m512i round = _mm512_set1_epi32(128);
    for (int b = 0; b < 8; b++) {
        __m512i sum = _mm512_setzero_si512();
        for (int part = 0; part < 2; part++) {
            const int k = 32 * b + 16 * part;
            __m512i X = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(v + k), _mm512_set1_ps(inverse)));
            sum = _mm512_add_epi32(sum, X);
            for (int digit = 2; digit >= 0; digit--, X = _mm512_srai_epi32(_mm512_add_epi32(X, round), 8)) {
                alignas(16) int32_t four[4];
                _mm_store_si128(reinterpret_cast<__m128i*>(four), _mm512_cvtepi32_epi8(X));
                for (int i = 0; i < 4; i++)
                    memcpy(out.digits[digit][k / STEP][k % STEP / 4 + i] + 4 * token, four + i, 4);
            }
        }
        out.sums[b][token] = static_cast<float>(_mm512_reduce_add_epi32(sum));
    }
    return fine;
}

struct alignas(64) TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {STEP, STEP, STEP, STEP, STEP, STEP, STEP, STEP};
    uint8_t rows[16] = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE};
};

// Own the tile registers for a while; other libraries set them up for themselves.
struct Tiles {
    Tiles() {
        static const TileConfig config;
        __asm__ volatile("ldtilecfg %0" ::"m"(config));  // gcc 12's intrinsic tells of 8 bytes read, not 64
    }
    ~Tiles() { _tile_release(); }
};

// What a super-block's exact sums P_d of W * digit d add to y: E * (d * (P_0 * 2^16 + P_1 * 2^8 + P_2) - mins).
static inline __m512 with_block(__m512 y, __m512i p0, __m512i p1, __m512i p2, __m512 d, __m512 least, __m512 scale) {
    const __m512 low = _mm512_fmadd_ps(_mm512_cvtepi32_ps(p1), _mm512_set1_ps(256), _mm512_cvtepi32_ps(p2));
    const __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(p0), _mm512_set1_ps(65536), low);
    return _mm512_fmadd_ps(scale, _mm512_fmsub_ps(d, sum, least), y);
}

// Exact sums of weights times the last digit: the only one that is not 0 where activations are whole 127ths.
static inline void add_last_digit(const Digits& w, const Inputs& x, int32_t (*sums)[TILE][TILE]) {
    _tile_zero(4);
    _tile_zero(5);
    for (int i = 0; i < STEPS; i++) {
        _tile_loadd(7, x.digits[2][i], STEP);
        _tile_loadd(6, w.high[i], STEP);
        _tile_dpbssd(4, 6, 7);
        _tile_loadd(3, w.low[i], STEP);
        _tile_dpbusd(5, 3, 7);
    }
    _tile_stored(4, sums[4], STEP);
    _tile_stored(5, sums[5], STEP);
}

static inline void add_digits(const Digits& w, const Inputs& x, int32_t (*sums)[TILE][TILE]) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int i = 0; i < STEPS; i++) {  // tiles 0, 2, 4: high bytes times digits 0, 1, 2; tiles 1, 3, 5: low bytes
        _tile_loadd(6, w.high[i], STEP);
        _tile_loadd(7, x.digits[0][i], STEP);
        _tile_dpbssd(0, 6, 7);
        _tile_loadd(6, w.low[i], STEP);
        _tile_dpbusd(1, 6, 7);
        _tile_loadd(7, x.digits[1][i], STEP);
        _tile_dpbusd(3, 6, 7);
        _tile_loadd(6, w.high[i], STEP);
        _tile_dpbssd(2, 6, 7);
        _tile_loadd(7, x.digits[2][i], STEP);
        _tile_dpbssd(4, 6, 7);
        _tile_loadd(6, w.low[i], STEP);
        _tile_dpbusd(5, 6, 7);
    }
    _tile_stored(0, sums[0], STEP);
    _tile_stored(1, sums[1], STEP);
    _tile_stored(2, sums[2], STEP);
    _tile_stored(3, sums[3], STEP);
    _tile_stored(4, sums[4], STEP);
    _tile_stored(5, sums[5], STEP);
}

// y[row][token] += one super-block's part.
template <bool MINS>
static inline void add_block(const Digits& w, const Inputs& x, int first_digit, float (*y)[TILE]) {
    alignas(64) int32_t sums[6][TILE][TILE];
    first_digit ? add_last_digit(w, x, sums) : add_digits(w, x, sums);
    const __m512 scale = _mm512_load_ps(x.scale);
    for (int row = 0; row < TILE; row++) {
        __m512i p[3] = {};
        for (int digit = first_digit; digit < 3; digit++) {
            const __m512i high = _mm512_slli_epi32(_mm512_load_si512(sums[2 * digit][row]), 8);
            p[digit] = _mm512_add_epi32(high, _mm512_load_si512(sums[2 * digit + 1][row]));
        }
        __m512 least = _mm512_setzero_ps();
        for (int b = 0; MINS && b < 8; b++)
            least = _mm512_fmadd_ps(_mm512_set1_ps(w.mins[row][b]), _mm512_load_ps(x.sums[b]), least);
        const __m512 old = _mm512_load_ps(y[row]), d = _mm512_set1_ps(w.d[row]);
        _mm512_store_ps(y[row], with_block(old, p[0], p[1], p[2], d, least, scale));
    }
}

struct TileJob {
    bool (*digits)(const uint8_t*, Digits&, int);
    const uint8_t* w;
    long cols, block_bytes, row_bytes;
    const Inputs* x;  // [super-blocks][groups of 16 tokens]
    long tokens;
    float* out;
    long out_step;
    int first_digit;  // 2 where the digits before are 0
};

constexpr long GROUP = 128;  // rows of one call at most: their digits stay in the second-level cache

// The digits of a super-block of rows first .. last - 1 (at most 16); ahead: how far from a row lie bytes wanted soon.
static inline void take_digits(
    const TileJob& job, long block, long first, long last, long ahead, Digits& out, bool* bad) {
    for (long r = first; r < last; r++) {
        const uint8_t* raw = job.w + r * job.row_bytes + block * job.block_bytes;
        for (long at = 0; at < job.block_bytes; at += 64)  // rows lie apart: no order to run ahead in
            _mm_prefetch(reinterpret_cast<const char*>(raw + ahead + at), _MM_HINT_T0);
        if (!job.digits(raw, out, static_cast<int>(r - first))) bad[r - first] = true;
    }
}

// Rows first .. last - 1 (at most GROUP) times all tokens; the rows that are not finite are added to odd.
template <bool MINS>
static void multiply_tiles(const TileJob& job, long first, long last, std::vector<long>& odd) {
    const long blocks = (job.cols + SUPER - 1) / SUPER, groups = (job.tokens + TILE - 1) / TILE;
    const long parts = (last - first + TILE - 1) / TILE;
    static thread_local std::vector<float> kept;
    static thread_local std::unique_ptr<Digits[]> w(new Digits[GROUP / TILE]());
    kept.assign(static_cast<size_t>(parts * groups * TILE * TILE + 16), 0.0f);
    auto* y = reinterpret_cast<float(*)[TILE][TILE]>((reinterpret_cast<uintptr_t>(kept.data()) + 63) / 64 * 64);
    bool bad[GROUP] = {};
    const auto end = [&](long p) { return std::min(first + (p + 1) * TILE, last); };
    const Tiles tiles;
    if (groups == 1) {
        for (long p = 0; p < parts; p++)
            for (long j = 0; j < blocks; j++) {
                take_digits(job, j, first + p * TILE, end(p), TILE * job.row_bytes, w[0], bad + p * TILE);
                add_block<MINS>(w[0], job.x[j], job.first_digit, y[p]);
            }
    } else {
        for (long j = 0; j < blocks; j++) {
            for (long p = 0; p < parts; p++)
                take_digits(job, j, first + p * TILE, end(p), job.block_bytes, w[p], bad + p * TILE);
            for (long g = 0; g < groups; g++)
                for (long p = 0; p < parts; p++)
                    add_block<MINS>(w[p], job.x[j * groups + g], job.first_digit, y[p * groups + g]);
        }
    }
    for (long t = 0; t < job.tokens; t++)
        for (long r = first; r < last; r++)
            job.out[t * job.out_step + r] = y[(r - first) / TILE * groups + t / TILE][(r - first) % TILE][t % TILE];
    for (long r = first; r < last; r++)
        if (bad[r - first]) odd.push_back(r);
}
