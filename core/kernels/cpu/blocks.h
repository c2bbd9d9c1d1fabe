// Decode blocks of quantised weights to float32, with the bits that quant/dequantize.py gives. It multiplies nothing.
//
// d * scale * q is exact in float32 (11 + 6 + 5 bits; Q6_K: 11 + 7 + 6); only the last subtraction rounds.
// Source of the layouts: gguf-py 0.19, gguf/quants.py.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

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

// Scales (sc) and mins of the eight sub-blocks of Q4_K and Q5_K: 6 bits each, in 12 bytes.
static inline void scales_k(const uint8_t* p, uint8_t* sc, uint8_t* least) {
    for (int i = 0; i < 4; i++) {
        sc[i] = p[i] & 63, least[i] = p[i + 4] & 63;
        sc[i + 4] = (p[i + 8] & 15) | (p[i] >> 6 << 4);
        least[i + 4] = (p[i + 8] >> 4) | (p[i + 4] >> 6 << 4);
    }
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

// Each: n values (whole blocks) from raw into out.
static void plain_f32(const uint8_t* raw, float* out, long n) { memcpy(out, raw, static_cast<size_t>(n) * 4); }

static void plain_f16(const uint8_t* raw, float* out, long n) {
    long i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(raw + 2 * i))));
#endif
    for (; i < n; i++) out[i] = half_at(raw + 2 * i);
}

static void plain_bf16(const uint8_t* raw, float* out, long n) {
    for (long i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, raw + 2 * i, 2);
        const uint32_t bits = static_cast<uint32_t>(h) << 16;
        memcpy(out + i, &bits, 4);
    }
}

static void q8_0(const uint8_t* raw, float* out, long n) {
    for (long b = 0; b < n / 32; b++, raw += 34, out += 32)
        for (int i = 0; i < 32; i += 16) put<int8_t>(out + i, bytes_at(raw + 2 + i), half_at(raw));
}

static void q4_0(const uint8_t* raw, float* out, long n) {
    for (long b = 0; b < n / 32; b++, raw += 18, out += 32) {
        const Bytes q = bytes_at(raw + 2);
        put<int8_t>(out, (q & 15) - 8, half_at(raw));
        put<int8_t>(out + 16, (q >> 4) - 8, half_at(raw));
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

static void q4_k(const uint8_t* raw, float* out, long n) {
    for (long b = 0; b < n / 256; b++, raw += 144, out += 256) {
        const HeadK head(raw);
        for (int s = 0; s < 8; s += 2)
            for (int i = 0; i < 32; i += 16) {
                const Bytes q = bytes_at(raw + 16 + 16 * s + i);
                put<uint8_t>(out + 32 * s + i, q & 15, head.scale[s], head.least[s]);
                put<uint8_t>(out + 32 * s + 32 + i, q >> 4, head.scale[s + 1], head.least[s + 1]);
            }
    }
}

static void q5_k(const uint8_t* raw, float* out, long n) {
    for (long b = 0; b < n / 256; b++, raw += 176, out += 256) {
        const HeadK head(raw);
        for (int i = 0; i < 32; i += 16) {
            Bytes fifth = bytes_at(raw + 16 + i);
            for (int s = 0; s < 8; s += 2, fifth >>= 2) {
                const Bytes q = bytes_at(raw + 48 + 16 * s + i);
                put<uint8_t>(out + 32 * s + i, (q & 15) | (fifth & 1) << 4, head.scale[s], head.least[s]);
                put<uint8_t>(out + 32 * s + 32 + i, q >> 4 | (fifth & 2) << 3, head.scale[s + 1], head.least[s + 1]);
            }
        }
    }
}

// A half of a block has four groups of 32, 16 to a scale: their low nibbles lie in two groups, their high bits in one.
static void q6_k(const uint8_t* raw, float* out, long n) {
    for (long b = 0; b < n / 256; b++, raw += 210, out += 256) {
        const float d = half_at(raw + 208);
        for (int half = 0; half < 2; half++)
            for (int i = 0; i < 2; i++) {
                const Bytes high = bytes_at(raw + 128 + 32 * half + 16 * i);
                const Bytes even = bytes_at(raw + 64 * half + 16 * i), odd = bytes_at(raw + 64 * half + 32 + 16 * i);
                const Bytes q[4] = {(even & 15) | (high & 3) << 4, (odd & 15) | (high & 12) << 2,
                                    even >> 4 | (high & 48), odd >> 4 | (high & 192) >> 2};
                const int8_t* sc = reinterpret_cast<const int8_t*>(raw + 192 + 8 * half + i);
                for (int g = 0; g < 4; g++)
                    put<int8_t>(out + 128 * half + 32 * g + 16 * i, q[g] - 32, d * sc[2 * g]);
            }
    }
}

struct Layout {
    int block, block_bytes;
    void (*decode)(const uint8_t*, float*, long);
};

// In the order of FUSED in build.py.
static const Layout LAYOUTS[] = {
    {1, 4, plain_f32}, {1, 2, plain_f16}, {1, 2, plain_bf16}, {32, 18, q4_0},
    {32, 34, q8_0},    {256, 144, q4_k},  {256, 176, q5_k},   {256, 210, q6_k},
};
