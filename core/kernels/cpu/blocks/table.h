// Every stored type that the kernels know, found by its name.
//
// Not here: how a block is read (small_blocks.h, super_blocks.h, grid_blocks.h).
#pragma once
#include "grid_blocks.h"
#include "small_blocks.h"
#include "super_blocks.h"

// Types without blocks: n values from raw into out.
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

static const Layout PLAIN[] = {
    {"F32", 1, 4, plain_f32},
    {"F16", 1, 2, plain_f16},
    {"BF16", 1, 2, plain_bf16},
};

// Null where there is no such type.
static const Layout* find_layout(const char* name) {
    const Layout* found = nullptr;
    const auto search = [&](const auto& table) {
        for (const Layout& row : table)
            if (strcmp(row.name, name) == 0) found = &row;
    };
    search(PLAIN), search(SMALL_BLOCKS), search(SUPER_BLOCKS), search(GRID_BLOCKS);
    return found;
}
