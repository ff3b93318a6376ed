// The instruction sets of x86, each compiled for itself and chosen when the library is asked to.
#pragma once
#include "integers.h"
#include <immintrin.h>
#if defined(__linux__) && __has_include(<amxint8intrin.h>)
#define TILES
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifdef TILES_TWIN
#include TILES_TWIN
#endif
#endif

#define FETCHED(KIND) for (int64_t line = 0; line < cell_of(KIND); line += 64) _mm_prefetch((const char *)cell + AHEAD + line, _MM_HINT_T0)

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,f16c,fma")
#define INLINE static inline __attribute__((always_inline))

INLINE void cell_512(const uint8_t *cell, int kind, __m512i *w) {
    const __m512i low = _mm512_set1_epi8(15), upper = _mm512_set1_epi8(48);
    for (int j = 0; j < (kind == S8 ? 8 : 4); j++) w[j] = _mm512_loadu_si512(cell + j * 64);
    if (kind == S8) return;
    for (int j = 0; j < 4; j++) {
        w[j + 4] = _mm512_and_si512(_mm512_srli_epi16(w[j], 4), low);
        w[j] = _mm512_and_si512(w[j], low);
    }
    if (kind == U4) return;
    for (int h = 0; h < 2; h++) {
        __m512i bits = _mm512_loadu_si512(cell + 256 + h * 64);
        w[h * 4] = _mm512_or_si512(w[h * 4], _mm512_and_si512(_mm512_slli_epi16(bits, 4), upper));
        w[h * 4 + 1] = _mm512_or_si512(w[h * 4 + 1], _mm512_and_si512(_mm512_slli_epi16(bits, 2), upper));
        w[h * 4 + 2] = _mm512_or_si512(w[h * 4 + 2], _mm512_and_si512(bits, upper));
        w[h * 4 + 3] = _mm512_or_si512(w[h * 4 + 3], _mm512_and_si512(_mm512_srli_epi16(bits, 2), upper));
    }
}

INLINE __m512i four_512(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}

// A cell's part of a row: of a 4-bit cell `a` are the whole products, else `a` and `b` those of its halves.
INLINE __m512 added_512(__m512 sum, int kind, __m512i a, __m512i b, const Rounded *group, __m512 first, __m512 second) {
    __m512 scale = _mm512_set1_ps(group->scale);
    sum = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(a), scale), first, sum);
    if (kind == U4) return _mm512_fnmadd_ps(_mm512_set1_ps(group->offset), second, sum);
    return _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(b), scale), second, sum);
}

INLINE void rows_512(const uint8_t *cells, int kind, int64_t count, int rows, const int8_t *codes, const Rounded *groups, float *out, int64_t stride) {
    __m512 sum[AT_ONCE];
    for (int r = 0; r < rows; r++) sum[r] = _mm512_setzero_ps();
    for (int64_t g = 0; g < count; g++) {
        const uint8_t *cell = cells + g * cell_of(kind), *numbers = cell + codes_of(kind);
        FETCHED(kind);
        __m512i w[8];
        cell_512(cell, kind, w);
        __m512 first = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)numbers));
        __m512 second = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(numbers + 32)));
        for (int r = 0; r < rows; r++) {
            const int8_t *x = codes + (r * count + g) * CELL;
            const Rounded *group = groups + r * count + g;
            __m512i a = _mm512_setzero_si512(), b = a;
            if (kind != U4) a = _mm512_set1_epi32(-centre_of(kind) * sum_of(group, 0)), b = _mm512_set1_epi32(-centre_of(kind) * sum_of(group, 1));
            for (int j = 0; j < 4; j++) {
                a = _mm512_dpbusd_epi32(a, w[j], four_512(x + j * 4));
                b = _mm512_dpbusd_epi32(b, w[j + 4], four_512(x + 16 + j * 4));
            }
            sum[r] = added_512(sum[r], kind, kind == U4 ? _mm512_add_epi32(a, b) : a, b, group, first, second);
        }
    }
    for (int r = 0; r < rows; r++) _mm512_storeu_ps(out + r * stride, sum[r]);
}

#define OF_KIND(ROWS, NAME, KIND)                                                                                                      \
    static void NAME(const uint8_t *cells, int64_t count, int rows, const int8_t *codes, const Rounded *groups, float *out, int64_t stride) { \
        switch (rows) {                                                                                                                \
            case 1: ROWS(cells, KIND, count, 1, codes, groups, out, stride); break;                                                    \
            case 2: ROWS(cells, KIND, count, 2, codes, groups, out, stride); break;                                                    \
            case 3: ROWS(cells, KIND, count, 3, codes, groups, out, stride); break;                                                    \
            case 4: ROWS(cells, KIND, count, 4, codes, groups, out, stride); break;                                                    \
            case 5: ROWS(cells, KIND, count, 5, codes, groups, out, stride); break;                                                    \
            case 6: ROWS(cells, KIND, count, 6, codes, groups, out, stride); break;                                                    \
            case 7: ROWS(cells, KIND, count, 7, codes, groups, out, stride); break;                                                    \
            case 8: ROWS(cells, KIND, count, 8, codes, groups, out, stride); break;                                                    \
            case 9: ROWS(cells, KIND, count, 9, codes, groups, out, stride); break;                                                    \
            case 10: ROWS(cells, KIND, count, 10, codes, groups, out, stride); break;                                                  \
            case 11: ROWS(cells, KIND, count, 11, codes, groups, out, stride); break;                                                  \
            case 12: ROWS(cells, KIND, count, 12, codes, groups, out, stride); break;                                                  \
            case 13: ROWS(cells, KIND, count, 13, codes, groups, out, stride); break;                                                  \
            case 14: ROWS(cells, KIND, count, 14, codes, groups, out, stride); break;                                                  \
            case 15: ROWS(cells, KIND, count, 15, codes, groups, out, stride); break;                                                  \
            default: ROWS(cells, KIND, count, 16, codes, groups, out, stride);                                                         \
        }                                                                                                                              \
    }
#define ANY_KIND(ROWS, ISA)                                                                                                            \
    OF_KIND(ROWS, u4_##ISA, U4)                                                                                                        \
    OF_KIND(ROWS, s6_##ISA, S6)                                                                                                        \
    OF_KIND(ROWS, s8_##ISA, S8)                                                                                                        \
    static void product_##ISA(const uint8_t *cells, int kind, int64_t count, int rows, const int8_t *codes, const Rounded *groups, float *out, int64_t stride) { \
        (kind == U4 ? u4_##ISA : kind == S6 ? s6_##ISA : s8_##ISA)(cells, count, rows, codes, groups, out, stride);                   \
    }

ANY_KIND(rows_512, avx512)
#pragma GCC pop_options

static int has_avx512(void) { return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"); }

#ifdef TILES
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,f16c,fma,amx-tile,amx-int8")
// What a processor is told of its tiles: bytes of a row, and rows.
typedef struct Tiles {
    uint8_t palette, start, nothing[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} Tiles;

// Tiles 0 and 1 hold the products of a cell's halves, 2 and 3 the rows' codes, 4 and 5 the cell's: its vectors lie as the
// instruction wants them.
static void product_amx(const uint8_t *cells, int kind, int64_t count, int rows, const int8_t *codes, const Rounded *groups, float *out, int64_t stride) {
    Tiles tiles = {.palette = 1, .bytes = {64, 64, 16, 16, 64, 64}, .rows = {(uint8_t)rows, (uint8_t)rows, (uint8_t)rows, (uint8_t)rows, 4, 4}};
    __m512i w[8], dots[2][AT_ONCE];
    __m512 sum[AT_ONCE];
    _tile_loadconfig(&tiles);
    for (int r = 0; r < rows; r++) sum[r] = _mm512_setzero_ps();
    for (int64_t g = 0; g < count; g++) {
        const uint8_t *cell = cells + g * cell_of(kind), *numbers = cell + codes_of(kind);
        FETCHED(kind);
        cell_512(cell, kind, w);
        __asm__ volatile("" ::: "memory");  // tiles are loaded from memory, behind the compiler's back
        _tile_loadd(2, codes + g * CELL, count * CELL);
        _tile_loadd(3, codes + g * CELL + 16, count * CELL);
        _tile_loadd(4, w, 64);
        _tile_loadd(5, w + 4, 64);
        _tile_zero(0);
        _tile_dpbsud(0, 2, 4);
        if (kind == U4) {
            _tile_dpbsud(0, 3, 5);
        } else {
            _tile_zero(1);
            _tile_dpbsud(1, 3, 5);
            _tile_stored(1, dots[1], 64);
        }
        _tile_stored(0, dots[0], 64);
        __asm__ volatile("" ::: "memory");
        __m512 first = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)numbers));
        __m512 second = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(numbers + 32)));
        for (int r = 0; r < rows; r++) {
            const Rounded *group = groups + r * count + g;
            __m512i a = dots[0][r], b = dots[1][r];
            if (kind != U4) {
                a = _mm512_sub_epi32(a, _mm512_set1_epi32(centre_of(kind) * sum_of(group, 0)));
                b = _mm512_sub_epi32(b, _mm512_set1_epi32(centre_of(kind) * sum_of(group, 1)));
            }
            sum[r] = added_512(sum[r], kind, a, b, group, first, second);
        }
    }
    _tile_release();
    for (int r = 0; r < rows; r++) _mm512_storeu_ps(out + r * stride, sum[r]);
}
#pragma GCC pop_options

// Whether the processor has tiles and the system grants them to this process.
static int has_amx(void) {
#ifdef TILES_TWIN
    return 1;
#endif
    unsigned a, b, c, d;
    int there = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 3) == 3;
    return there && has_avx512() && !syscall(SYS_arch_prctl, 0x1023, 18);
}
#endif

// 256 bits: the eight upper lanes of a panel after the eight lower ones.
#pragma GCC push_options
#pragma GCC target("avx2,f16c,fma")
INLINE __m256i shifted(__m256i bits, int by) { return by > 0 ? _mm256_slli_epi16(bits, by) : _mm256_srli_epi16(bits, -by); }

// Codes of vector `j` of a cell, eight rows from `at` bytes on.
INLINE __m256i codes_256(const uint8_t *cell, int kind, int at, int j) {
    const __m256i low = _mm256_set1_epi8(15), upper = _mm256_set1_epi8(48);
    if (kind == S8) return _mm256_loadu_si256((const __m256i *)(cell + j * 64 + at));
    __m256i w = _mm256_loadu_si256((const __m256i *)(cell + j % 4 * 64 + at));
    w = _mm256_and_si256(j < 4 ? w : _mm256_srli_epi16(w, 4), low);
    if (kind == U4) return w;
    __m256i bits = _mm256_loadu_si256((const __m256i *)(cell + 256 + j / 4 * 64 + at));
    return _mm256_or_si256(w, _mm256_and_si256(shifted(bits, 4 - j % 4 * 2), upper));
}

INLINE __m256i four_256(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}

// Products of eight rows' 8-bit codes with x, in `a` of columns 0 to 15 and in `b` of the others. Codes are centred first, so
// that the sum of a pair fits into 16 bits.
INLINE void dots_avx2(int kind, const __m256i *w, const int8_t *x, const Rounded *group, __m256i *a, __m256i *b) {
    const __m256i ones = _mm256_set1_epi16(1), sign = _mm256_set1_epi8(-128);
    __m256i dots[8];
    for (int j = 0; j < 8; j++) {
        __m256i own = _mm256_xor_si256(w[j], sign);
        dots[j] = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(own), _mm256_sign_epi8(four_256(x + j * 4), own)), ones);
        if (j % 4) dots[j / 4 * 4] = _mm256_add_epi32(dots[j / 4 * 4], dots[j]);
    }
    *a = dots[0], *b = dots[4];
}

// Both halves of a panel in one pass, so that memory is read while products are made.
#define ROWS_256(NAME, DOTS)                                                                                                           \
    INLINE void NAME(const uint8_t *cells, int kind, int64_t count, int rows, const int8_t *codes, const Rounded *groups, float *out, int64_t stride) { \
        __m256 sum[2][AT_ONCE];                                                                                                        \
        for (int r = 0; r < rows; r++) sum[0][r] = sum[1][r] = _mm256_setzero_ps();                                                    \
        for (int64_t g = 0; g < count; g++) {                                                                                          \
            const uint8_t *cell = cells + g * cell_of(kind), *numbers = cell + codes_of(kind);                                         \
            FETCHED(kind);                                                                                                             \
            for (int half = 0; half < 2; half++) {                                                                                     \
                __m256i w[8], a, b;                                                                                                    \
                for (int j = 0; j < 8; j++) w[j] = codes_256(cell, kind, half * 32, j);                                                \
                __m256 first = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(numbers + half * 16)));                               \
                __m256 second = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(numbers + 32 + half * 16)));                         \
                for (int r = 0; r < rows; r++) {                                                                                       \
                    const Rounded *group = groups + r * count + g;                                                                     \
                    DOTS(kind, w, codes + (r * count + g) * CELL, group, &a, &b);                                                      \
                    __m256 scale = _mm256_set1_ps(group->scale), *to = sum[half] + r;                                                  \
                    *to = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(a), scale), first, *to);                                    \
                    if (kind == U4) *to = _mm256_fnmadd_ps(_mm256_set1_ps(group->offset), second, *to);                                \
                    else *to = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(b), scale), second, *to);                              \
                }                                                                                                                      \
            }                                                                                                                          \
        }                                                                                                                              \
        for (int r = 0; r < rows; r++) {                                                                                               \
            _mm256_storeu_ps(out + r * stride, sum[0][r]);                                                                             \
            _mm256_storeu_ps(out + r * stride + 8, sum[1][r]);                                                                         \
        }                                                                                                                              \
    }

ROWS_256(wide_avx2, dots_avx2)

// Sums of pairs of products of four columns with both halves of a panel, added to `sums` or their first ones. It is written
// out because compilers keep the broadcasts of many rows, and spill the weights.
INLINE void four_columns(__m256i *sums, const __m256i *w, const int8_t *x, int first) {
    __m256i a, b;
    if (first) __asm__("vbroadcastss %4, %1\n\tvpmaddubsw %1, %2, %0\n\tvpmaddubsw %1, %3, %1" : "=&x"(sums[0]), "=&x"(sums[1]) : "x"(w[0]), "x"(w[1]), "m"(*(const int32_t *)x));
    else __asm__("vbroadcastss %6, %2\n\tvpmaddubsw %2, %4, %3\n\tvpmaddubsw %2, %5, %2\n\tvpaddw %3, %0, %0\n\tvpaddw %2, %1, %1" : "+x"(sums[0]), "+x"(sums[1]), "=&x"(b), "=&x"(a) : "x"(w[0]), "x"(w[1]), "m"(*(const int32_t *)x));
}

// Pairs of products are added up in 16 bits: those of a cell's 32 columns with 4-bit codes, of sixteen with 6-bit ones, which
// fit as soon as they are centred, so that it does no harm if a sum wraps around before.
INLINE void narrow_avx2(const uint8_t *cells, int kind, int64_t count, int rows, const int8_t *codes, const Rounded *groups, float *out, int64_t stride) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 sum[AT_ONCE][2], numbers[4];
    __m256i w[4][2], pairs[AT_ONCE][2], sums[2];
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int64_t g = 0; g < count; g++) {
        const uint8_t *cell = cells + g * cell_of(kind);
        FETCHED(kind);
        for (int i = 0; i < 4; i++) numbers[i] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(cell + codes_of(kind)) + i));
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 8; i++) {
                w[i / 2][i % 2] = codes_256(cell, kind, i % 2 * 32, half * 4 + i / 2);
                __asm__("" : "+x"(w[i / 2][i % 2]));  // once for all rows
            }
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                const int8_t *x = codes + (r * count + g) * CELL + half * 16;
                const Rounded *group = groups + r * count + g;
                __m256 scale = _mm256_broadcast_ss(&group->scale);
                for (int j = 0; j < 4; j++) four_columns(sums, w[j], x + j * 4, !j);
                for (int l = 0; l < 2; l++) {
                    if (kind == U4 && !half) {
                        pairs[r][l] = sums[l];
                        continue;
                    }
                    if (kind == U4) sums[l] = _mm256_add_epi16(sums[l], pairs[r][l]);
                    else sums[l] = _mm256_sub_epi16(sums[l], _mm256_slli_epi16(four_256((const int8_t *)group->sums[half]), 5));  // times 32, the centre
                    __m256 dot = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(sums[l], ones)), scale), *to = sum[r] + l;
                    *to = _mm256_fmadd_ps(dot, numbers[kind == U4 ? l : half * 2 + l], *to);
                    if (kind == U4) *to = _mm256_fnmadd_ps(_mm256_broadcast_ss(&group->offset), numbers[2 + l], *to);
                }
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int l = 0; l < 2; l++) _mm256_storeu_ps(out + r * stride + l * 8, sum[r][l]);
}
#define rows_avx2(cells, kind, ...) (kind == S8 ? wide_avx2(cells, kind, __VA_ARGS__) : narrow_avx2(cells, kind, __VA_ARGS__))
ANY_KIND(rows_avx2, avx2)
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,avxvnni,f16c,fma")
INLINE void dots_vnni(int kind, const __m256i *w, const int8_t *x, const Rounded *group, __m256i *a, __m256i *b) {
    *a = *b = _mm256_setzero_si256();
    if (kind != U4) *a = _mm256_set1_epi32(-centre_of(kind) * sum_of(group, 0)), *b = _mm256_set1_epi32(-centre_of(kind) * sum_of(group, 1));
    for (int j = 0; j < 4; j++) {
        *a = _mm256_dpbusd_avx_epi32(*a, w[j], four_256(x + j * 4));
        *b = _mm256_dpbusd_avx_epi32(*b, w[j + 4], four_256(x + 16 + j * 4));
    }
    if (kind == U4) *a = _mm256_add_epi32(*a, *b);
}
ROWS_256(rows_vnni, dots_vnni)
ANY_KIND(rows_vnni, avxvnni)
#pragma GCC pop_options

static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static int has_avxvnni(void) { return has_avx2() && __builtin_cpu_supports("avxvnni"); }
