// Decode blocks of quantised weights to float32, with the bits that core/decode.py gives. It multiplies nothing.
//
// d * scale * q is exact in float32 (11 + 6 + 5 bits; Q6_K: 11 + 7 + 6), so only the last subtraction rounds, fused or not.
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

// Each: n values (whole blocks) from raw into out.
static void plain_f32(const uint8_t* raw, float* out, long n) { memcpy(out, raw, static_cast<size_t>(n) * 4); }

static void plain_f16(const uint8_t* raw, float* out, long n) {
    for (long i = 0; i < n; i++) out[i] = half_at(raw + 2 * i);
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
    for (long b = 0; b < n / 32; b++, raw += 34, out += 32) {
        const float d = half_at(raw);
        for (int i = 0; i < 32; i++) out[i] = d * static_cast<float>(static_cast<int8_t>(raw[2 + i]));
    }
}

static void q4_0(const uint8_t* raw, float* out, long n) {
    for (long b = 0; b < n / 32; b++, raw += 18, out += 32) {
        const float d = half_at(raw);
        for (int i = 0; i < 16; i++) {
            out[i] = d * static_cast<float>((raw[2 + i] & 15) - 8);
            out[i + 16] = d * static_cast<float>((raw[2 + i] >> 4) - 8);
        }
    }
}

static void q4_k(const uint8_t* raw, float* out, long n) {
    for (long b = 0; b < n / 256; b++, raw += 144, out += 256) {
        const float d = half_at(raw), dmin = half_at(raw + 2);
        uint8_t sc[8], least[8];
        scales_k(raw + 4, sc, least);
        for (int s = 0; s < 8; s += 2) {
            const uint8_t* q = raw + 16 + 16 * s;
            const float d0 = d * sc[s], m0 = dmin * least[s], d1 = d * sc[s + 1], m1 = dmin * least[s + 1];
            float* to = out + 32 * s;
            for (int i = 0; i < 32; i++) to[i] = d0 * static_cast<float>(q[i] & 15) - m0;
            for (int i = 0; i < 32; i++) to[i + 32] = d1 * static_cast<float>(q[i] >> 4) - m1;
        }
    }
}

static void q5_k(const uint8_t* raw, float* out, long n) {
    for (long b = 0; b < n / 256; b++, raw += 176, out += 256) {
        const float d = half_at(raw), dmin = half_at(raw + 2);
        const uint8_t* high = raw + 16;
        uint8_t sc[8], least[8];
        scales_k(raw + 4, sc, least);
        for (int s = 0; s < 8; s += 2) {
            const uint8_t* q = raw + 48 + 16 * s;
            const float d0 = d * sc[s], m0 = dmin * least[s], d1 = d * sc[s + 1], m1 = dmin * least[s + 1];
            float* to = out + 32 * s;
            for (int i = 0; i < 32; i++) to[i] = d0 * static_cast<float>((q[i] & 15) | (high[i] >> s & 1) << 4) - m0;
            for (int i = 0; i < 32; i++) to[i + 32] = d1 * static_cast<float>((q[i] >> 4) | (high[i] >> (s + 1) & 1) << 4) - m1;
        }
    }
}

static void q6_k(const uint8_t* raw, float* out, long n) {
    for (long b = 0; b < n / 256; b++, raw += 210, out += 256) {
        const float d = half_at(raw + 208);
        for (int half = 0; half < 2; half++) {
            const uint8_t *low = raw + 64 * half, *high = raw + 128 + 32 * half;
            const int8_t* sc = reinterpret_cast<const int8_t*>(raw + 192 + 8 * half);
            for (int s = 0; s < 8; s++) {  // 16 values each; 32 of a group of bits, two groups a nibble
                const int group = s / 2, at = 16 * (s % 2), nibble = group / 2 * 4;
                const uint8_t* l = low + 32 * (group % 2) + at;
                const float scale = d * sc[s];
                float* to = out + 128 * half + 16 * s;
                for (int i = 0; i < 16; i++) {
                    const int q = (l[i] >> nibble & 15) | (high[at + i] >> (2 * group) & 3) << 4;
                    to[i] = scale * static_cast<float>(q - 32);
                }
            }
        }
    }
}

struct Layout {
    int block, block_bytes;
    void (*decode)(const uint8_t*, float*, long);
};

// In the order of FUSED in load.py.
static const Layout LAYOUTS[] = {
    {1, 4, plain_f32}, {1, 2, plain_f16}, {1, 2, plain_bf16}, {32, 18, q4_0}, {32, 34, q8_0}, {256, 144, q4_k}, {256, 176, q5_k}, {256, 210, q6_k},
};
