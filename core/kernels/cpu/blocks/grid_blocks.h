// The super-blocks whose values are points of a grid: eight or four to an index, with a bit for each sign.
//
// gguf-py has the grids; bindings.py hands them over before the first product (take_grid). q * scale stays exact:
// at most 6 bits of q, 5 of the scale and 11 of d.
// A new type: a struct with VALUES, BYTES, GRID and each (block.h), and its row of GRID_BLOCKS.
#pragma once
#include "block.h"

static Grid GRID_2XXS, GRID_2XS, GRID_2S, GRID_3XXS, GRID_3S, GRID_1;

static inline uint64_t eight_of(const Grid& grid, int index) {
    uint64_t q;
    memcpy(&q, grid.values + 8 * index, 8);
    return q;
}

static inline uint64_t four_of(const Grid& grid, int index) { return word_at(grid.values + 4 * index); }

static inline Bytes with_signs(Bytes q, int signs) {
    const Bytes minus = mask_of(signs);
    return (q ^ minus) - minus;
}

// Seven signs are stored: of eight values an even number is negative.
static inline int eighth_sign(int seven) { return seven | __builtin_parity(static_cast<unsigned>(seven)) << 7; }

// The signs of 16 values, two times seven bits of a word from `at` on.
static inline int signs_of(uint32_t word, int at) {
    return eighth_sign(word >> at & 127) | eighth_sign(word >> (at + 7) & 127) << 8;
}

struct IQ2_XXS {
    static constexpr int VALUES = 256, BYTES = 66;
    static constexpr int GROUP = 32, BIAS = 64, MOST = 127;
    static constexpr bool LEAST = false;
    static constexpr Grid& GRID = GRID_2XXS;

    template <class Put>
    static inline void each(const uint8_t* raw, Put put) {
        const float d = half_at(raw) * 0.25f;
#pragma GCC unroll 16
        for (int s = 0; s < 8; s++) {
            const uint8_t* i = raw + 2 + 8 * s;
            const uint32_t word = word_at(i + 4);
            const float scale = d * (0.5f + static_cast<float>(word >> 28));
            for (int h = 0; h < 2; h++) {
                const Bytes q = two_words(eight_of(GRID, i[2 * h]), eight_of(GRID, i[2 * h + 1]));
                put(32 * s + 16 * h, with_signs(q, signs_of(word, 14 * h)), scale, 0);
            }
        }
    }
};

struct IQ2_XS {
    static constexpr int VALUES = 256, BYTES = 74;
    static constexpr int GROUP = 16, BIAS = 64, MOST = 127;
    static constexpr bool LEAST = false;
    static constexpr Grid& GRID = GRID_2XS;

    template <class Put>
    static inline void each(const uint8_t* raw, Put put) {
        const float d = half_at(raw) * 0.25f;
#pragma GCC unroll 16
        for (int g = 0; g < 16; g++) {
            const uint32_t both = word_at(raw + 2 + 4 * g);  // twice nine bits of an index and seven signs
            const Bytes q = two_words(eight_of(GRID, both & 511), eight_of(GRID, both >> 16 & 511));
            const int signs = eighth_sign(both >> 9 & 127) | eighth_sign(both >> 25) << 8;
            const float scale = d * (0.5f + static_cast<float>(raw[66 + g / 2] >> 4 * (g % 2) & 15));
            put(16 * g, with_signs(q, signs), scale, 0);
        }
    }
};

struct IQ2_S {
    static constexpr int VALUES = 256, BYTES = 82;
    static constexpr int GROUP = 16, BIAS = 64, MOST = 127;
    static constexpr bool LEAST = false;
    static constexpr Grid& GRID = GRID_2S;

    template <class Put>
    static inline void each(const uint8_t* raw, Put put) {
        const float d = half_at(raw) * 0.25f;
#pragma GCC unroll 16
        for (int g = 0; g < 16; g++) {
            const int high = raw[66 + g / 2] >> 4 * (g % 2);  // two bits more of each index
            const int a = raw[2 + 2 * g] | (high & 3) << 8, b = raw[3 + 2 * g] | (high >> 2 & 3) << 8;
            const float scale = d * (0.5f + static_cast<float>(raw[74 + g / 2] >> 4 * (g % 2) & 15));
            const int signs = raw[34 + 2 * g] | raw[35 + 2 * g] << 8;
            put(16 * g, with_signs(two_words(eight_of(GRID, a), eight_of(GRID, b)), signs), scale, 0);
        }
    }
};

struct IQ3_XXS {
    static constexpr int VALUES = 256, BYTES = 98;
    static constexpr int GROUP = 32, BIAS = 64, MOST = 127;
    static constexpr bool LEAST = false;
    static constexpr Grid& GRID = GRID_3XXS;

    template <class Put>
    static inline void each(const uint8_t* raw, Put put) {
        const float d = half_at(raw) * 0.5f;
#pragma GCC unroll 16
        for (int g = 0; g < 16; g++) {
            const uint8_t* i = raw + 2 + 4 * g;
            const uint32_t word = word_at(raw + 66 + 4 * (g / 2));
            const Bytes q = two_words(four_of(GRID, i[0]) | four_of(GRID, i[1]) << 32,
                                      four_of(GRID, i[2]) | four_of(GRID, i[3]) << 32);
            const float scale = d * (0.5f + static_cast<float>(word >> 28));
            put(16 * g, with_signs(q, signs_of(word, 14 * (g % 2))), scale, 0);
        }
    }
};

struct IQ3_S {
    static constexpr int VALUES = 256, BYTES = 110;
    static constexpr int GROUP = 32, BIAS = 64, MOST = 127;
    static constexpr bool LEAST = false;
    static constexpr Grid& GRID = GRID_3S;

    template <class Put>
    static inline void each(const uint8_t* raw, Put put) {
        const float d = half_at(raw);
#pragma GCC unroll 16
        for (int g = 0; g < 16; g++) {
            const uint8_t* i = raw + 2 + 4 * g;
            const int high = raw[66 + g / 2] >> 4 * (g % 2);  // a bit more of each index
            const auto four = [&](int k) { return four_of(GRID, i[k] | (high >> k & 1) << 8); };
            const int signs = raw[74 + 2 * g] | raw[75 + 2 * g] << 8;
            const float scale = d * static_cast<float>(1 + 2 * (raw[106 + g / 4] >> 4 * (g / 2 % 2) & 15));
            put(16 * g, with_signs(two_words(four(0) | four(1) << 32, four(2) | four(3) << 32), signs), scale, 0);
        }
    }
};

// Of IQ1: the grid's -1, 0 and 1 are moved by an eighth up or down, so q is 8 * point + 1 or - 1.
static inline Bytes with_eighth(int a, int b, bool a_down, bool b_down) {
    constexpr uint64_t UP = 0x0101010101010101, DOWN = ~uint64_t{0};
    const Bytes q = two_words(eight_of(GRID_1, a), eight_of(GRID_1, b)) << 3;
    return q + two_words(a_down ? DOWN : UP, b_down ? DOWN : UP);
}

struct IQ1_S {
    static constexpr int VALUES = 256, BYTES = 50;
    static constexpr int GROUP = 32, BIAS = 16, MOST = 25;
    static constexpr bool LEAST = false;
    static constexpr Grid& GRID = GRID_1;

    template <class Put>
    static inline void each(const uint8_t* raw, Put put) {
        const float d = half_at(raw) * 0.125f;
#pragma GCC unroll 16
        for (int s = 0; s < 8; s++) {
            const int word = raw[34 + 2 * s] | raw[35 + 2 * s] << 8;
            const float scale = d * static_cast<float>(2 * (word >> 12 & 7) + 1);
            const bool down = word >> 15;
            for (int h = 0; h < 2; h++) {
                const uint8_t* i = raw + 2 + 4 * s + 2 * h;
                const int a = i[0] | (word >> 6 * h & 7) << 8, b = i[1] | (word >> (6 * h + 3) & 7) << 8;
                put(32 * s + 16 * h, with_eighth(a, b, down, down), scale, 0);
            }
        }
    }
};

struct IQ1_M {
    static constexpr int VALUES = 256, BYTES = 56;
    static constexpr int GROUP = 16, BIAS = 16, MOST = 25;
    static constexpr bool LEAST = false;
    static constexpr Grid& GRID = GRID_1;

    template <class Put>
    static inline void each(const uint8_t* raw, Put put) {
        const uint8_t* sc = raw + 48;  // four words of three scales and a fourth of d's bits
        const int half = sc[1] >> 4 | (sc[3] & 0xf0) | (sc[5] & 0xf0) << 4 | (sc[7] & 0xf0) << 8;
        const float d = half_of(static_cast<uint16_t>(half)) * 0.125f;
#pragma GCC unroll 16
        for (int g = 0; g < 16; g++) {
            const int word = sc[g / 4 * 2] | sc[g / 4 * 2 + 1] << 8, high = raw[32 + g];
            const int a = raw[2 * g] | (high & 7) << 8, b = raw[2 * g + 1] | (high >> 4 & 7) << 8;
            const float scale = d * static_cast<float>(2 * (word >> 3 * (g % 4) & 7) + 1);
            put(16 * g, with_eighth(a, b, high >> 3 & 1, high >> 7), scale, 0);
        }
    }
};

template <class Block>
static constexpr Layout grid_blocks(const char* name) {
    Layout layout = blocks<Block>(name);
    layout.grid = &Block::GRID;
    return layout;
}

static const Layout GRID_BLOCKS[] = {
    grid_blocks<IQ2_XXS>("IQ2_XXS"), grid_blocks<IQ2_XS>("IQ2_XS"), grid_blocks<IQ2_S>("IQ2_S"),
    grid_blocks<IQ3_XXS>("IQ3_XXS"), grid_blocks<IQ3_S>("IQ3_S"),   grid_blocks<IQ1_S>("IQ1_S"),
    grid_blocks<IQ1_M>("IQ1_M"),
};
