// What the kernels ask of a stored type, and what its decoders share: halves, 16 bytes at once, six-bit scales.
//
// The types themselves: small_blocks.h, super_blocks.h, grid_blocks.h.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

struct Digits;
struct OneToken;
struct HalfWeights;
struct Line;
struct Panel;
struct TileJob;

// The points that a type's indices name: gguf-py has them, so they are given at run time.
struct Grid {
    static constexpr int MOST = 16384;
    alignas(64) uint8_t values[MOST];  // signed; of four or eight to a point
    std::atomic<bool> given;
};

// A row of a table of types. What is null goes by way of float32.
struct Layout {
    const char* name;  // as in quant/types.py
    int block, block_bytes;
    void (*decode)(const uint8_t* raw, float* out, long n);  // n values, whole blocks
    // Rows times one token, whole blocks, without a decoded copy: the same bits (block.h).
    void (*dot)(const uint8_t* w, long w_step, long rows, const float* x, long n, float* out, bool first) = nullptr;
    Grid* grid = nullptr;
    // Rows side by side (panels/panel.h), `group` values to a scale, q + bias of each, up to `most`; least: whether a
    // value is less a least.
    int group = 0, bias = 0, most = 0;
    bool least = false;
    void (*panel)(const uint8_t* w, long row_bytes, long rows, long n, const uint8_t* soon, long soon_step,
                  Panel& out) = nullptr;
    void (*one[2])(const OneToken& job) = {};  // VL rows times one token, of q8 and of f32 (one_token.h)
    // Of super-blocks of 256, where the processor has AMX: to whole numbers (digits.h), times one token (lines.h), to
    // bfloat16 (halves.h).
    bool (*digits)(const uint8_t* raw, Digits& out, int row) = nullptr;
    void (*line)(const TileJob& job, const Line* x, long first, long last, std::vector<long>& odd) = nullptr;
    void (*halves)(const uint8_t* raw, HalfWeights& out, int row) = nullptr;
};

static inline float half_of(uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#elif defined(__aarch64__)
    __fp16 half;
    memcpy(&half, &h, 2);
    return static_cast<float>(half);
#else
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, rest = h & 0x7fff;
    float f;
    if (rest >= 0x7c00) {
        const uint32_t bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
        memcpy(&f, &bits, 4);
        return f;
    }
    const uint32_t bits = rest << 13;
    memcpy(&f, &bits, 4);
    f *= 0x1p112f;  // exact, subnormal halves too
    return sign ? -f : f;
#endif
}

static inline float half_at(const uint8_t* p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return half_of(h);
}

struct HalfPair {
    float first, second;
};
static inline HalfPair halves_at(const uint8_t* p) { return {half_at(p), half_at(p + 2)}; }

typedef uint8_t Bytes __attribute__((vector_size(16)));

static inline Bytes bytes_at(const uint8_t* p) {
    Bytes v;
    memcpy(&v, p, 16);
    return v;
}

static inline uint32_t word_at(const uint8_t* p) {
    uint32_t word;
    memcpy(&word, p, 4);
    return word;
}

static inline float real_of(uint32_t word) { return static_cast<float>(static_cast<int32_t>(word)); }

static inline Bytes four_words(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    typedef uint32_t Four __attribute__((vector_size(16)));
    return reinterpret_cast<Bytes>(Four{a, b, c, d});
}

static inline Bytes two_words(uint64_t low, uint64_t high) {
    typedef uint64_t Two __attribute__((vector_size(16)));
    return reinterpret_cast<Bytes>(Two{low, high});
}

static constexpr Bytes signed_bytes(const int8_t (&v)[16]) {
    Bytes out = {};
    for (int i = 0; i < 16; i++) out[i] = static_cast<uint8_t>(v[i]);
    return out;
}

// Each byte >> by; a neighbour's bits come in from above, for the caller to mask. (Compilers mask every byte shift.)
static inline Bytes shifted(Bytes v, int by) {
    typedef uint16_t Words __attribute__((vector_size(16)));
    return reinterpret_cast<Bytes>(reinterpret_cast<Words>(v) >> by);
}

// table[index], of each index below 16.
static inline Bytes look_up(Bytes table, Bytes index) {
#if defined(__SSSE3__)
    return reinterpret_cast<Bytes>(
        _mm_shuffle_epi8(reinterpret_cast<__m128i>(table), reinterpret_cast<__m128i>(index)));
#elif defined(__aarch64__)
    return reinterpret_cast<Bytes>(vqtbl1q_u8(reinterpret_cast<uint8x16_t>(table), reinterpret_cast<uint8x16_t>(index)));
#else
    Bytes out = {};
    for (int i = 0; i < 16; i++) out[i] = table[index[i]];
    return out;
#endif
}

// 255 for each of 16 bits that is set, the lowest first.
static inline Bytes mask_of(int bits) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    return reinterpret_cast<Bytes>(_mm_movm_epi8(static_cast<__mmask16>(bits)));
#else
    const uint64_t of = 0x8040201008040201;
    const Bytes bit = two_words(of, of);
#if defined(__SSSE3__)
    const Bytes each = look_up(reinterpret_cast<Bytes>(_mm_cvtsi32_si128(bits)), two_words(0, 0x0101010101010101));
#else
    const uint64_t all = 0x0101010101010101;
    const Bytes each = two_words((bits & 255) * all, (bits >> 8 & 255) * all);
#endif
    return reinterpret_cast<Bytes>((each & bit) == bit);
#endif
}

// 16 where a bit is set, of 16 bits.
static inline Bytes sixteens_at(const uint8_t* p) { return mask_of(p[0] | p[1] << 8) & 16; }
