// Multiply K-quants by one token's whole numbers with VNNI: the same exact sums as tiles.h, so the same bits.
//
// For one token the tiles would stand mostly empty. A lane of 32 bits holds four products, W * digit is built from
// q * digit (at most 16 bits) times the sub-block's scale, and 16 rows are turned into lanes for what is not exact.
#pragma once
#include "tiles.h"

// A super-block of one token, in the order of its values.
struct Line {
    alignas(64) int8_t digits[3][STEPS][STEP];
    alignas(64) int32_t offset[3][STEPS][TILE];  // -32 times each lane's four digits: Q6_K stores q + 32
    float sums[8], scale;
};

static inline void to_line(const Inputs& x, int token, Line& out) {
    for (int digit = 0; digit < 3; digit++)
        for (int k = 0; k < SUPER; k += 4) {
            const int8_t* four = x.digits[digit][k / STEP][k % STEP / 4] + 4 * token;
            memcpy(out.digits[digit][k / STEP] + k % STEP, four, 4);
            out.offset[digit][k / STEP][k % STEP / 4] = -32 * (four[0] + four[1] + four[2] + four[3]);
        }
    for (int b = 0; b < 8; b++) out.sums[b] = x.sums[b][token];
    out.scale = x.scale[token];
}

// What 16 rows of a super-block give before the float32 part.
struct Sums {
    alignas(64) int32_t p[3][TILE];
    alignas(64) float d[TILE], dmin[TILE];
    alignas(64) uint64_t least[TILE];  // m of eight sub-blocks, a byte each
};

struct Scaled {
    __m512i q, sc;  // 64 unsigned values; each lane's scale in its low 16 bits, above it 0
};

// Add the lanes of each of four vectors.
static inline __m128i add_lanes_of_four(const __m512i* v) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// Rows row .. row + 3 of a super-block (the last one again beyond n_row) into out; returns a bit for each finite one.
// Block: a type of super_blocks.h. D: the byte of its d, before dmin where it has LEAST; scales: its 16 bytes of scales
// (and mins); values: the 64 values of step i, and their scales.
template <class Block>
static inline unsigned sum_rows(
    const uint8_t* block, const TileJob& job, const Line& x, Sums& out, int row, long n_row) {
    __m512i p[3][4] = {};
    unsigned finite = 0;
    for (int r = 0; r < 4; r++) {
        const uint8_t* raw = block + std::min<long>(row + r, n_row - 1) * job.row_bytes;
        for (long at = 0; at < job.block_bytes; at += 64)  // rows lie apart: no order to run ahead in
            _mm_prefetch(reinterpret_cast<const char*>(raw + TILE * job.row_bytes + at), _MM_HINT_T0);
        alignas(16) uint8_t sc[16];
        const float d = half_at(raw + Block::D), dmin = Block::LEAST ? half_at(raw + Block::D + 2) : 0.0f;
        Block::scales(raw, sc);
        out.d[row + r] = d, out.dmin[row + r] = dmin;
        memcpy(out.least + row + r, sc + 8, 8);
        finite |= static_cast<unsigned>(d - d == 0 && dmin - dmin == 0) << (row + r);
        for (int i = 0; i < STEPS; i++) {
            const Scaled w = Block::values(raw, sc, i);
            for (int digit = job.first_digit; digit < 3; digit++) {
                const __m512i from = Block::LEAST ? _mm512_setzero_si512() : _mm512_load_si512(x.offset[digit][i]);
                const __m512i four = _mm512_dpbusd_epi32(from, w.q, _mm512_load_si512(x.digits[digit][i]));
                p[digit][r] = _mm512_dpwssd_epi32(p[digit][r], four, w.sc);
            }
        }
    }
    for (int digit = 0; digit < 3; digit++)
        _mm_store_si128(reinterpret_cast<__m128i*>(out.p[digit] + row), add_lanes_of_four(p[digit]));
    return finite;
}

// Sum of dmin * m times the sub-block's activations, for 16 rows.
static inline __m512 least_of(const Sums& s, const Line& x) {
    const __m512 dmin = _mm512_load_ps(s.dmin);
    __m512i first = _mm512_load_si512(s.least), last = _mm512_load_si512(s.least + 8);
    __m512 least = _mm512_setzero_ps();
    for (int b = 0; b < 8; b++, first = _mm512_srli_epi64(first, 8), last = _mm512_srli_epi64(last, 8)) {
        const __m512i low = _mm512_castsi256_si512(_mm512_cvtepi64_epi32(first));
        const __m512i m = _mm512_inserti64x4(low, _mm512_cvtepi64_epi32(last), 1);
        const __m512 mins = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(_mm512_and_si512(m, _mm512_set1_epi32(255))));
        least = _mm512_fmadd_ps(mins, _mm512_set1_ps(x.sums[b]), least);
    }
    return least;
}

template <class Block>
static void multiply_line(const TileJob& job, const Line* x, long first, long last, std::vector<long>& odd) {
    const long blocks = (job.cols + SUPER - 1) / SUPER;
    for (long from = first; from < last; from += TILE) {
        const long rows = std::min<long>(TILE, last - from);
        Sums sums;
        __m512 y = _mm512_setzero_ps();
        unsigned finite = 0xffff;
        for (long j = 0; j < blocks; j++) {
            const uint8_t* raw = job.w + from * job.row_bytes + j * job.block_bytes;
            unsigned now = 0;
            for (int r = 0; r < TILE; r += 4) now |= sum_rows<Block>(raw, job, x[j], sums, r, rows);
            finite &= now;
            const __m512 least = Block::LEAST ? least_of(sums, x[j]) : _mm512_setzero_ps();
            y = with_block(y, _mm512_load_si512(sums.p[0]), _mm512_load_si512(sums.p[1]), _mm512_load_si512(sums.p[2]),
                           _mm512_load_ps(sums.d), least, _mm512_set1_ps(x[j].scale));
        }
        alignas(64) float out[TILE];
        _mm512_store_ps(out, y);
        for (long r = 0; r < rows; r++) {
            job.out[from + r] = out[r];
            if (!(finite >> r & 1)) odd.push_back(from + r);
        }
    }
}
