// Multiply bfloat16 activations by panels of weights rounded to bfloat16: products exact, sums in float32.
//
// An output is one chain of sums over K, two products a step, so its bits depend on the token's and the row's values
// alone. NaN and Inf take their usual way; what is subnormal counts as zero (the instruction does that).
// Not here: AMX (halves.h); processors without such products, which take float32 dots of rounded values (dots.h).
#pragma once
#include "products.h"

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
constexpr long MOST_PAIRED = 12;  // tokens of a panel, a chain each

// Two values of each row, the first in the lower half.
struct PairPanel {
    alignas(64) uint32_t two[SPAN / 2][VL];
};

// Of 16 values: which row's they are, twice each, and which bytes of a panel's words (half: of the rows; pair: of four
// values).
struct Places {
    alignas(64) int32_t row[2][16];
    alignas(64) uint8_t byte[2][2][64];
};

static constexpr Places all_places() {
    Places p{};
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 16; i++) {
            p.row[half][i] = 8 * half + i / 2;
            for (int pair = 0; pair < 2; pair++)
                p.byte[pair][half][4 * i] = static_cast<uint8_t>(4 * p.row[half][i] + 2 * pair + i % 2);
        }
    return p;
}
static constexpr Places PLACES = all_places();

// scale * q - least, rounded once to float32 as decoders do, then to bfloat16. Without least: scale * u - scale * bias.
static inline void pair_panel(const Panel& from, const Layout& layout, long n, PairPanel& out) {
    for (long g = 0; g * layout.group < n; g++) {
        __m512 scale[2], least[2];
        for (int half = 0; half < 2; half++) {
            const __m512i rows = _mm512_load_si512(PLACES.row[half]);
            scale[half] = _mm512_permutexvar_ps(rows, load<Vec>(from.scale[g]));
            least[half] = layout.least ? _mm512_permutexvar_ps(rows, load<Vec>(from.least[g]))
                                       : scale[half] * static_cast<float>(layout.bias);
        }
        for (long i = g * layout.group / 4; i < (g + 1) * layout.group / 4; i++) {
            const __m512i four = _mm512_load_si512(from.four[i]);
            for (int pair = 0; pair < 2; pair++) {
                const auto value = [&](int half) {
                    const __m512i places = _mm512_load_si512(PLACES.byte[pair][half]);
                    const __m512i u = _mm512_maskz_permutexvar_epi8(0x1111111111111111, places, four);
                    return _mm512_fmsub_ps(scale[half], _mm512_cvtepi32_ps(u), least[half]);
                };
                _mm512_store_si512(out.two[2 * i + pair], (__m512i)_mm512_cvtne2ps_pbh(value(1), value(0)));
            }
        }
    }
}

// Of types without panels: by way of decoded rows.
static void pair_rows(const Job& job, const Place& at, PairPanel& out) {
    alignas(64) float v[SPAN + LANES];
    static thread_local uint16_t halves[VL][SPAN];
    const long block = job.layout.block;
    for (long r = 0; r < VL; r++) {
        const uint8_t* row = job.w + std::min(at.first + r, at.last - 1) * job.row_bytes;
        job.layout.decode(row + at.k / block * job.layout.block_bytes, v, (at.n + block - 1) / block * block);
        std::fill(v + at.n, v + (at.n + LANES - 1) / LANES * LANES, 0.0f);
        for (long i = 0; i < at.n; i += LANES) {
            const __m256bh some = _mm512_cvtneps_pbh(load<Vec>(v + i));
            memcpy(halves[r] + i, &some, sizeof some);
        }
    }
    turn_words(halves, sizeof halves[0], (at.n + 1) / 2, out.two);
}

// y [T][VL] += `pairs` pairs' products, of x [pairs][T].
template <int T>
static void dot_pairs(const PairPanel& w, const int32_t* x, long pairs, float* y) {
    Vec sum[T];
    for (int t = 0; t < T; t++) sum[t] = load<Vec>(y + t * VL);
    for (long i = 0; i < pairs; i++, x += T) {
        const __m512bh two = (__m512bh)_mm512_load_si512(w.two[i]);
#pragma GCC unroll 12
        for (int t = 0; t < T; t++) sum[t] = _mm512_dpbf16_ps(sum[t], two, (__m512bh)all_of(x[t]));
    }
    memcpy(y, sum, sizeof sum);
}

using DotPairs = void (*)(const PairPanel&, const int32_t*, long, float*);

template <int... T>
static DotPairs dot_pairs_of(long width, std::integer_sequence<int, T...>) {
    static const DotPairs table[] = {dot_pairs<T + 1>...};
    return table[width - 1];
}

// All activations as pairs: panels of `width` tokens, [pairs][tokens of the panel].
static const std::vector<int32_t>& pair_all(const Job& job, long width, int threads) {
    static thread_local std::vector<int32_t> kept;
    const long pairs = (job.cols + 1) / 2;
    if (kept.size() < static_cast<size_t>(job.tokens * pairs)) kept.resize(static_cast<size_t>(job.tokens * pairs));
    int32_t* out = kept.data();
    pool().run(job.tokens, threads, [&](long t) {
        const long first = t / width * width, side = std::min(width, job.tokens - first);
        const float* x = job.x + t * job.x_step;
        for (long i = 0; i < pairs; i++) {
            const int32_t low = bits_of(round_half(x[2 * i])) >> 16 & 0xffff;
            const int32_t high = 2 * i + 1 < job.cols ? bits_of(round_half(x[2 * i + 1])) & ~0xffff : 0;
            out[first * pairs + i * side + t - first] = low | high;
        }
    });
    return kept;
}

static void multiply_pairs(const Job& job, int threads) {
    const long width = even_width(job.tokens, MOST_PAIRED), rows = VL * PANELS, all = (job.cols + 1) / 2;
    if (job.rows * job.cols * job.tokens <= ALONE_MACS) threads = 1;
    const std::vector<int32_t>& x = pair_all(job, width, threads);
    pool().run((job.rows + rows - 1) / rows, threads, [&](long task) {
        static thread_local std::unique_ptr<PairPanel> w(new PairPanel());
        static thread_local std::unique_ptr<Panel> panel(new Panel());
        const long first = task * rows, last = std::min(job.rows, first + rows);
        walk(job, 4 * job.tokens * all, width, first, last, [&](const Place& at) {
            if (!job.layout.panel) return pair_rows(job, at, *w);
            take_panel(job, at, *panel);
            pair_panel(*panel, job.layout, at.n, *w);
        }, [&](const Place& at, long t, long tokens, float* y) {
            const auto dot = dot_pairs_of(tokens, std::make_integer_sequence<int, MOST_PAIRED>());
            dot(*w, x.data() + t * all + tokens * (at.k / 2), (at.n + 1) / 2, y);
        });
        for (long t = 0; t < job.tokens; t++) {
            float* out = job.out + t * job.out_step;
            std::transform(out + first, out + last, out + first, round_half);
        }
    });
}
#endif
