// Eight lanes at a time, with any compiler that knows vector types; fused multiply-add, exponentials and logarithms.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__FMA__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#include <omp.h>

enum { F32, BF16, U4, S6, S8 };  // how weights are stored

typedef float v8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef uint32_t u8 __attribute__((vector_size(32)));
typedef uint16_t h8 __attribute__((vector_size(16)));

#define ALWAYS static inline __attribute__((always_inline))

ALWAYS v8 load_f32(const float *p) {
    v8 v;
    memcpy(&v, p, sizeof v);
    return v;
}

ALWAYS v8 load_bf16(const uint16_t *p) {
#ifdef __AVX2__
    return (v8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
#else
    h8 half;
    memcpy(&half, p, sizeof half);
    u8 wide = __builtin_convertvector(half, u8) << 16;
    v8 v;
    memcpy(&v, &wide, sizeof v);
    return v;
#endif
}

// a * b + sum, fused in every tile or in none: left to itself the compiler fuses in some of them, and rows come to depend on the tile.
ALWAYS v8 fused(v8 a, v8 b, v8 sum) {
#ifdef __FMA__
    return (v8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    return a * b + sum;
#endif
}

ALWAYS float total(v8 v) {
#ifdef __AVX2__
    __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
#endif
}

ALWAYS v8 larger(v8 a, v8 b) {
    i8 first = a > b;
    return (v8)(((i8)a & first) | ((i8)b & ~first));
}

// exp on eight lanes, relative error about 2e-7 (Cephes polynomial); above 88 it stays at exp(88), below -87 it is 0.
ALWAYS v8 exp8(v8 x) {
    const float rounding = 12582912.0f;
    i8 kept = x > -87.0f, large = x > 88.0f;
    v8 most = x * 0.0f + 88.0f;
    x = (v8)(((i8)x & ~large) | ((i8)most & large));
    v8 k = (x * 1.44269504f + rounding) - rounding;
    v8 f = x - k * 0.693359375f + k * 2.12194440e-4f;
    v8 p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    i8 bits = ((__builtin_convertvector(k, i8) + 127) << 23) & kept;
    v8 scale;
    memcpy(&scale, &bits, sizeof scale);
    i8 value;
    v8 result = p * scale;
    memcpy(&value, &result, sizeof value);
    value &= kept;
    memcpy(&result, &value, sizeof result);
    return result;
}

// log on eight lanes for normal positive numbers, relative error about 2e-7 (Cephes polynomial).
ALWAYS v8 log8(v8 x) {
    i8 bits;
    memcpy(&bits, &x, sizeof bits);
    i8 exponent = (bits >> 23) - 126;
    bits = (bits & 0x007fffff) | 0x3f000000;
    v8 m;
    memcpy(&m, &bits, sizeof m);
    i8 small = m < 0.70710678f;
    i8 extra;
    memcpy(&extra, &m, sizeof extra);
    extra &= small;
    v8 doubled;
    memcpy(&doubled, &extra, sizeof doubled);
    v8 e = __builtin_convertvector(exponent + small, v8);
    v8 f = m - 1.0f + doubled;
    v8 z = f * f, p = f * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    v8 y = p * f * z + e * -2.12194440e-4f - z * 0.5f;
    return f + y + e * 0.693359375f;
}
