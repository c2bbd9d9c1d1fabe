// Float32 products shared out among threads: all of a weight, or the rows and tokens that other ways leave over.
//
// A row is one thread's, so the number of threads changes no bit.
#pragma once
#include "dots.h"
#include "pool.h"

// Rows are shared out by tiles of TILE_ROWS; few products are not worth waking a second thread for.
static void multiply_dots(const Job& job, int threads) {
    const long tasks = (job.rows + TILE_ROWS - 1) / TILE_ROWS;
    if (job.rows * job.cols * job.tokens <= ALONE_MACS) threads = 1;
    pool().run(tasks, threads, [&](long i) {
        multiply_rows(job, i * TILE_ROWS, std::min(job.rows, (i + 1) * TILE_ROWS));
    });
}

// Rows and tokens that have no whole numbers: not finite, or too small to be scaled.
struct Odd {
    std::vector<long> rows, tokens;
};

// All products of odd rows; those of odd tokens are gathered, multiplied and put back in their places.
[[maybe_unused]] static void multiply_odd(const Job& job, const Odd& odd, int threads) {
    pool().run(static_cast<long>(odd.rows.size()), threads,
               [&](long i) { multiply_rows(job, odd.rows[i], odd.rows[i] + 1); });
    const long n = static_cast<long>(odd.tokens.size()), width = job.x_step;
    if (n == 0) return;
    std::vector<float> x(static_cast<size_t>(n * width)), out(static_cast<size_t>(n * job.rows));
    for (long i = 0; i < n; i++) std::copy_n(job.x + odd.tokens[i] * width, width, x.data() + i * width);
    Job some = job;
    some.x = x.data(), some.tokens = n, some.x_step = width, some.out = out.data(), some.out_step = job.rows;
    multiply_dots(some, threads);
    for (long i = 0; i < n; i++)
        std::copy_n(out.data() + i * job.rows, job.rows, job.out + odd.tokens[i] * job.out_step);
}
