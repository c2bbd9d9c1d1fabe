// One token times VL rows, as each() reads them: weights are multiplied where they were unpacked, in registers.
//
// No panel is made. The sums and their order are those of dot_panel (panels/bytes.h), so the bits are too.
// Not here: rows left over, and types that are read row by row (products.h makes panels of them).
#pragma once
#include "../panels/bytes.h"
#include "rows.h"

#if defined(__AVX2__)
// n values (whole blocks) of VL rows, added to y [VL]. x: the token's stream; scale: of each `of_scale` values; soon:
// what is wanted next of memory, as much as is read here; most: the largest size of a scale or a least.
struct OneToken {
    Rows rows;
    long n;
    const int32_t* x;
    const float* scale;
    long of_scale;
    const uint8_t* soon;
    float* y;
    Ints* most;
};

template <class Block, int DIGITS>
[[gnu::flatten]] static void dot_token(const OneToken& job) {
    constexpr int GROUP = Block::GROUP, WORDS = 3 + GROUP / 4 * DIGITS;
    constexpr int PUTS = Block::VALUES / 16, LINES = (VL * Block::BYTES + 63) / 64, ASKED = (LINES + PUTS - 1) / PUTS;
    Rows rows = job.rows;
    const int32_t* x = job.x;
    const float* scale = job.scale;
    const uint8_t* soon = job.soon;
    const long n = job.n, of_scale = job.of_scale;
    GroupSums<1, DIGITS> sums;
    Vec part = {}, all = load<Vec>(job.y);
    Ints most = *job.most;
    const auto take_size = [&](Vec v) {
        const Ints size = reinterpret_cast<Ints>(v) & 0x7fffffff;
        most = size > most ? size : most;
    };
    const auto end_scale = [&] { all = fused(part, all_of(*scale++), all), part = Vec{}; };
    for (long k = 0; k < n; k += Block::VALUES, rows = rows + Block::BYTES, soon += VL * Block::BYTES)
        Block::each(rows, [&](int at, const Wide& q, Vec by, const auto& less) {
            for (int line = at / 16 * ASKED; line < std::min(LINES, (at / 16 + 1) * ASKED); line++)
                __builtin_prefetch(soon + 64 * line, 0, 2);
            Vec least = {};
            if constexpr (Block::LEAST) least = less;
            if (at == 0) take_size(by), take_size(least);  // a block's scales are finite together
            if (at % GROUP == 0) sums.begin(x);
            const Wide u = q + Block::BIAS;
            constexpr Fit FIT = fit_of(Block::MOST);
            dot_quads<DIGITS, 4, FIT>(&u, Block::BIAS, x + 3 + at % GROUP / 4 * DIGITS, sums.of[0]);
            if (at % GROUP + 16 < GROUP) return;
            sums.template end<Block::LEAST>(by, least, x, &part);
            x += WORDS;
            const bool is_last = Block::VALUES == MOST_OF_SCALE ? at + 16 == Block::VALUES
                                                                : (k + at + 16) % MOST_OF_SCALE == 0;
            if (is_last || of_scale == GROUP) end_scale();
        });
    if (n % of_scale) end_scale();
    memcpy(job.y, &all, sizeof all);
    *job.most = most;
}
#endif
