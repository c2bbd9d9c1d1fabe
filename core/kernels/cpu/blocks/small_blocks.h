// The types of small blocks: 32 values to a scale, or 16 (NVFP4). A block of two halves has its low nibbles first.
//
// A new type: a struct with VALUES, BYTES and each (block.h), and its row of SMALL_BLOCKS.
#pragma once
#include "block.h"

static const Bytes IQ4_VALUES = signed_bytes({-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113});
static const Bytes FP4_VALUES = signed_bytes({0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12});  // twice E2M1

struct Q4_0 {
    static constexpr int VALUES = 32, BYTES = 18;
    static constexpr int GROUP = 32, BIAS = 8, MOST = 15;
    static constexpr bool LEAST = false;

    template <class Raw, class Put>
    static inline void each(Raw raw, Put put) {
        const auto q = bytes_at(raw + 2);
        const auto d = half_at(raw);
        put(0, (q & 15) - 8, d, 0), put(16, (q >> 4) - 8, d, 0);
    }
};

struct Q4_1 {
    static constexpr int VALUES = 32, BYTES = 20;
    static constexpr int GROUP = 32, BIAS = 0, MOST = 15;
    static constexpr bool LEAST = true;

    template <class Raw, class Put>
    static inline void each(Raw raw, Put put) {
        const auto q = bytes_at(raw + 4);
        const auto [d, m] = halves_at(raw);
        put(0, q & 15, d, -m), put(16, q >> 4, d, -m);
    }
};

struct Q5_0 {
    static constexpr int VALUES = 32, BYTES = 22;
    static constexpr int GROUP = 32, BIAS = 16, MOST = 31;
    static constexpr bool LEAST = false;

    template <class Raw, class Put>
    static inline void each(Raw raw, Put put) {
        const auto q = bytes_at(raw + 6);
        const auto d = half_at(raw);
        put(0, ((q & 15) | sixteens_at(raw + 2)) - 16, d, 0);
        put(16, (q >> 4 | sixteens_at(raw + 4)) - 16, d, 0);
    }
};

struct Q5_1 {
    static constexpr int VALUES = 32, BYTES = 24;
    static constexpr int GROUP = 32, BIAS = 0, MOST = 31;
    static constexpr bool LEAST = true;

    template <class Raw, class Put>
    static inline void each(Raw raw, Put put) {
        const auto q = bytes_at(raw + 8);
        const auto [d, m] = halves_at(raw);
        put(0, (q & 15) | sixteens_at(raw + 4), d, -m), put(16, q >> 4 | sixteens_at(raw + 6), d, -m);
    }
};

struct Q8_0 {
    static constexpr int VALUES = 32, BYTES = 34;
    static constexpr int GROUP = 32, BIAS = 128, MOST = 255;
    static constexpr bool LEAST = false;

    template <class Raw, class Put>
    static inline void each(Raw raw, Put put) {
        const auto d = half_at(raw);
        put(0, bytes_at(raw + 2), d, 0), put(16, bytes_at(raw + 18), d, 0);
    }
};

struct IQ4_NL {
    static constexpr int VALUES = 32, BYTES = 18;
    static constexpr int GROUP = 32, BIAS = 128, MOST = 255;
    static constexpr bool LEAST = false;

    template <class Raw, class Put>
    static inline void each(Raw raw, Put put) {
        const auto q = bytes_at(raw + 2);
        const auto d = half_at(raw);
        put(0, look_up(IQ4_VALUES, q & 15), d, 0), put(16, look_up(IQ4_VALUES, q >> 4), d, 0);
    }
};

// Half of 2^(e - 127), of the bits of a float: below e = 2 it is subnormal.
static inline float half_power_at(const uint8_t* raw) {
    const uint32_t e = raw[0], bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
    float d;
    memcpy(&d, &bits, 4);
    return d;
}

#if defined(__AVX2__)
static inline Vec half_power_at(Rows rows) {
    const Words e = word_at(rows) & 255;
    return reinterpret_cast<Vec>(e < 2 ? (Words{} + 0x00200000u) << e : (e - 1) << 23);
}
#endif

struct MXFP4 {
    static constexpr int VALUES = 32, BYTES = 17;
    static constexpr int GROUP = 32, BIAS = 16, MOST = 28;
    static constexpr bool LEAST = false;

    template <class Raw, class Put>
    static inline void each(Raw raw, Put put) {
        const auto q = bytes_at(raw + 1);
        const auto d = half_power_at(raw);
        put(0, look_up(FP4_VALUES, q & 15), d, 0), put(16, look_up(FP4_VALUES, q >> 4), d, 0);
    }
};

// Half of every E4M3 without its sign: the values of FP4_VALUES are doubled. 0x7f is 0, as gguf-py has it.
struct Minifloats {
    float half[256];
};

static constexpr Minifloats all_minifloats() {
    Minifloats all{};
    for (int x = 0; x < 256; x++) {
        const int exponent = x >> 3 & 15;
        float value = static_cast<float>((exponent ? 8 : 0) + (x & 7)) * 0x1p-10f;
        for (int i = 1; i < exponent; i++) value *= 2;
        all.half[x] = x == 0x7f ? 0 : value;
    }
    return all;
}
static constexpr Minifloats MINIFLOATS = all_minifloats();

struct NVFP4 {
    static constexpr int VALUES = 64, BYTES = 36;
    static constexpr int GROUP = 16, BIAS = 16, MOST = 28;
    static constexpr bool LEAST = false;

    template <class Put>
    static inline void each(const uint8_t* raw, Put put) {
#pragma GCC unroll 16
        for (int s = 0; s < 4; s++) {
            uint64_t q;  // eight low nibbles, then the high ones
            memcpy(&q, raw + 4 + 8 * s, 8);
            put(16 * s, look_up(FP4_VALUES, two_words(q, q >> 4) & 15), MINIFLOATS.half[raw[s]], 0);
        }
    }
};

static const Layout SMALL_BLOCKS[] = {
    blocks<Q4_0>("Q4_0"), blocks<Q4_1>("Q4_1"),     blocks<Q5_0>("Q5_0"),   blocks<Q5_1>("Q5_1"),
    blocks<Q8_0>("Q8_0"), blocks<IQ4_NL>("IQ4_NL"), blocks<MXFP4>("MXFP4"), blocks<NVFP4>("NVFP4"),
};
