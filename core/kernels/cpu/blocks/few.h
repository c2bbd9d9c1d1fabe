// Few tokens times VL rows, as each() reads them: a block's bytes are multiplied where they were unpacked, in registers.
//
// No panel is made, so nothing is stored and read again; sums and their order are those of dot_panel (panels/bytes.h),
// so the bits are too. Not here: rows left over, types read row by row, many tokens (products.h makes panels of them).
#pragma once
#include "../panels/bytes.h"
#include "rows.h"

#if defined(__AVX2__)
constexpr int FEW = 1;  // tokens, at most

// n values (whole blocks) of VL rows times some tokens, added to y [tokens][VL]. x: their stream; scale: of each `of_scale`
// values; soon: what is wanted next of memory, as much as is read here; most: the largest size of a scale or a least.
struct Few {
    Rows rows;
    long n;
    const int32_t* x;
    const float* scale;
    long of_scale;
    const uint8_t* soon;
    float* y;
    Ints* most;
};

template <class Block, int DIGITS, int T>
[[gnu::flatten]] static void dot_few(const Few& few) {
    constexpr int GROUP = Block::GROUP, QUADS = GROUP / 4, WORDS = 3 + QUADS * DIGITS, LAST = DIGITS - 1;
    constexpr int PUTS = Block::VALUES / 16, LINES = (VL * Block::BYTES + 63) / 64, ASKED = (LINES + PUTS - 1) / PUTS;
    Rows rows = few.rows;
    const int32_t* x = few.x;
    const float* scale = few.scale;
    const uint8_t* soon = few.soon;
    const long n = few.n, of_scale = few.of_scale;
    Ints sum[DIGITS][T], far = *few.most;
    Vec part[T] = {}, all[T];
    for (int t = 0; t < T; t++) all[t] = load<Vec>(few.y + t * VL);
    const auto end_scale = [&] {
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) all[t] = fused(part[t], all_of(scale[t]), all[t]), part[t] = Vec{};
        scale += T;
    };
    const auto take_size = [&](Vec v) {
        const Ints size = reinterpret_cast<Ints>(v) & 0x7fffffff;
        far = size > far ? size : far;
    };
    for (long k = 0; k < n; k += Block::VALUES, rows = rows + Block::BYTES, soon += VL * Block::BYTES)
        Block::each(rows, [&](int at, const Wide& q, Vec by, const auto& least) {
#pragma GCC unroll 16
            for (int line = at / 16 * ASKED; line < std::min(LINES, (at / 16 + 1) * ASKED); line++)
                __builtin_prefetch(soon + 64 * line, 0, 2);
            if (at == 0) take_size(by);
            if constexpr (Block::LEAST)
                if (at == 0) take_size(least);
            const int in = at % GROUP;
#pragma GCC unroll 8
            for (int t = 0; in == 0 && t < T; t++) {
                if (DIGITS == 3) sum[0][t] = all_of(x[t]), sum[1][t] = Ints{};
                sum[LAST][t] = all_of(x[T + t]);
            }
            const Wide u = q + Block::BIAS;
            dot_group<DIGITS * T, 4, fit_of(Block::MOST)>(&u, Block::BIAS, x + T * (3 + in / 4 * DIGITS), sum[0]);
            if (in + 16 < GROUP) return;
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) {
                Vec s = __builtin_convertvector(sum[LAST][t], Vec);
                if (DIGITS == 3)
                    s = fused(__builtin_convertvector((sum[0][t] << 8) + sum[1][t], Vec), all_of(256.0f), s);
                part[t] = fused(by, s, part[t]);
                float total;
                memcpy(&total, x + 2 * T + t, 4);
                if constexpr (Block::LEAST) part[t] = fused_less(least, all_of(total), part[t]);
            }
            x += T * WORDS;
            if (GROUP == 32 && of_scale == 32) return end_scale();
            if (Block::VALUES == MOST_OF_SCALE ? at + 16 == MOST_OF_SCALE : (k + at + 16) % MOST_OF_SCALE == 0) end_scale();
        });
    if (n % of_scale) end_scale();
    memcpy(few.y, all, sizeof all);
    *few.most = far;
}
#endif
