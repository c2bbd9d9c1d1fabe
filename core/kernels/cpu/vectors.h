// The widest vectors of this build, and the one order in which 16 lanes are added. No arithmetic of its own.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif
constexpr int LANES = 16, PARTS = LANES / VL;

typedef float Vec __attribute__((vector_size(VL * 4)));
typedef int32_t Ints __attribute__((vector_size(VL * 4)));
typedef float Half __attribute__((vector_size(VL * 2)));
typedef double Double __attribute__((vector_size(VL * 4)));  // VL / 2 values

// By memcpy: an attribute that lowers a type's alignment is lost where the type is a template's argument.
template <class V>
static inline V load(const void* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}

// Add the 16 lanes: i to i + 8, then i to i + 4, i + 2, i + 1.
template <class S, class V>
static inline S add_lanes(const V* v) {
    alignas(64) S s[LANES];
    memcpy(s, v, sizeof s);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) s[i] += s[i + width];
    return s[0];
}
