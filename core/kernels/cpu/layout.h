// What the kernels ask of a stored type, and what its decoders share: halves, 16 values at once, six-bit scales.
//
// The types themselves: blocks.h.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

struct Digits;
struct HalfWeights;
struct Line;
struct TileJob;

// A row of LAYOUTS in blocks.h. What is null goes by way of float32.
struct Layout {
    const char* name;  // as in quant/types.py
    int block, block_bytes;
    void (*decode)(const uint8_t* raw, float* out, long n);  // n values, whole blocks
    // Of super-blocks of 256, where the processor has AMX: to whole numbers (digits.h; mins: whether they are less a
    // minimum), times one token (lines.h), to bfloat16 (halves.h).
    bool (*digits)(const uint8_t* raw, Digits& out, int row) = nullptr;
    bool mins = false;
    void (*line)(const TileJob& job, const Line* x, long first, long last, std::vector<long>& odd) = nullptr;
    void (*halves)(const uint8_t* raw, HalfWeights& out, int row) = nullptr;
};

static inline float half_at(const uint8_t* p) {
    uint16_t h;
    memcpy(&h, p, 2);
#if defined(__F16C__)
    return _cvtsh_ss(h);
#elif defined(__aarch64__)
    __fp16 half;
    memcpy(&half, p, 2);
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

typedef uint8_t Bytes __attribute__((vector_size(16)));

static inline Bytes bytes_at(const uint8_t* p) {
    Bytes v;
    memcpy(&v, p, 16);
    return v;
}

// out = scale * q - least, for 16 values of type Q; the product is exact. (Compilers widen bytes one by one.)
template <class Q>
static inline void put(float* out, Bytes bytes, float scale, float least = 0) {
#if defined(__AVX512F__)
    const __m128i b = reinterpret_cast<__m128i>(bytes);
    const __m512 v = _mm512_cvtepi32_ps(Q(-1) < 0 ? _mm512_cvtepi8_epi32(b) : _mm512_cvtepu8_epi32(b));
    _mm512_storeu_ps(out, _mm512_fmsub_ps(v, _mm512_set1_ps(scale), _mm512_set1_ps(least)));
#elif defined(__AVX2__)
    __m128i b = reinterpret_cast<__m128i>(bytes);
    for (int i = 0; i < 16; i += 8, b = _mm_srli_si128(b, 8)) {
        const __m256 v = _mm256_cvtepi32_ps(Q(-1) < 0 ? _mm256_cvtepi8_epi32(b) : _mm256_cvtepu8_epi32(b));
        _mm256_storeu_ps(out + i, _mm256_fmsub_ps(v, _mm256_set1_ps(scale), _mm256_set1_ps(least)));
    }
#else
    Q q[16];
    memcpy(q, &bytes, 16);
    for (int i = 0; i < 16; i++) out[i] = scale * static_cast<float>(q[i]) - least;
#endif
}

// Scales (sc) and mins of the eight sub-blocks of Q4_K and Q5_K: 6 bits each, in 12 bytes.
static inline void scales_k(const uint8_t* p, uint8_t* sc, uint8_t* least) {
    for (int i = 0; i < 4; i++) {
        sc[i] = p[i] & 63, least[i] = p[i + 4] & 63;
        sc[i + 4] = (p[i + 8] & 15) | (p[i] >> 6 << 4);
        least[i + 4] = (p[i + 8] >> 4) | (p[i + 4] >> 6 << 4);
    }
}

// The float32 part of a block of Q4_K or Q5_K: d * scale and dmin * min of eight sub-blocks.
struct HeadK {
    float scale[8], least[8];
    explicit HeadK(const uint8_t* raw) {
        const float d = half_at(raw), dmin = half_at(raw + 2);
        uint8_t sc[8], m[8];
        scales_k(raw + 4, sc, m);
        for (int s = 0; s < 8; s++) scale[s] = d * sc[s], least[s] = dmin * m[s];
    }
};
